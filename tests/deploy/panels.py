"""Makes rules of the dashboard's queries, for promtool to check: panels.py DASHBOARD > RULES

Fails when panels overlap or share an id.
"""

import json
import pathlib
import sys

dashboard = json.loads(pathlib.Path(sys.argv[1]).read_text())
taken = {}
rules = []
for panel in dashboard["panels"]:
    place = panel["gridPos"]
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            if other := taken.get((x, y)):
                sys.exit(f"the panels {other!r} and {panel['title']!r} overlap")
            taken[x, y] = panel["title"]
    for target in panel["targets"]:
        query = target["expr"].replace("$namespace", ".*").replace("$job", ".*")
        rules.append({"record": f"panel:{len(rules)}", "expr": query})
ids = [panel["id"] for panel in dashboard["panels"]]
if len(set(ids)) != len(ids):
    sys.exit("two panels have the same id")
print(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
