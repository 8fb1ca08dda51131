"""What no schema says of the Kubernetes objects: objects.py CRD_FOLDER FILE...

Every way of deploying adds the same container; each has the probes that it should have; the objects of the Prometheus
Operator fit its definitions (from CRD_FOLDER). Prints what is wrong, and ends with 1 then.
"""

import pathlib
import sys

import jsonschema
import yaml

# Where the ways of deploying may differ.
OWN = {"image", "imagePullPolicy", "restartPolicy", "readinessProbe", "env", "envFrom"}
WORKLOADS = {"Deployment", "StatefulSet", "Job"}

problems = []
containers = []


def main():
    crds, *files = sys.argv[1:]
    definitions = {kind: definition(crds, kind) for kind in ("PodMonitor", "PrometheusRule")}
    for file in files:
        for thing in filter(None, yaml.safe_load_all(pathlib.Path(file).read_text())):
            where = f"{file}: {thing['kind']} {thing['metadata']['name']}"
            if thing["kind"] in WORKLOADS:
                workload(where, thing["kind"], thing["spec"]["template"])
            if thing["kind"] in definitions:
                for error in jsonschema.Draft202012Validator(definitions[thing["kind"]]).iter_errors(thing):
                    problems.append(f"{where}: {error.json_path}: {error.message}")
    expect(len(containers) >= 8, f"only {len(containers)} relays are in {files}")
    for where, container in containers:
        expect(container == containers[0][1], f"{where}: the container is another than that of {containers[0][0]}")
    print("\n".join(problems) or f"{len(containers)} relays, the same container in each")
    sys.exit(bool(problems))


def expect(condition, problem):
    if not condition:
        problems.append(problem)


def definition(folder, kind):
    """The schema of a custom resource, closed to unknown fields as the API server closes it."""
    file = pathlib.Path(folder, f"monitoring.coreos.com_{kind.lower()}s.yaml")
    return closed(yaml.safe_load(file.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"], top=True)


def closed(schema, top=False):
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    # `metadata` is described elsewhere.
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and schema["properties"]:
        schema.setdefault("additionalProperties", False)
    if top:
        schema["properties"]["metadata"] = {"type": "object"}
    return schema


def workload(where, kind, template):
    pod = template["spec"]
    way = template["metadata"]["labels"].get("outbox-relay")
    init = [c for c in pod.get("initContainers", []) if c["name"] == "outbox-relay"]
    plain = [c for c in pod["containers"] if c["name"] == "outbox-relay"]
    expect(way in ("sidecar", "container", "standalone"), f"{where}: the pod has no label outbox-relay")
    expect((len(init), len(plain)) == ((1, 0) if way == "sidecar" else (0, 1)), f"{where}: not one relay where it belongs")
    expect(pod.get("enableServiceLinks") is False, f"{where}: enableServiceLinks is not false")
    for relay in init + plain:
        variables = {variable["name"]: variable["value"] for variable in relay["env"]}
        drains = variables.get("RELAY_SHUTDOWN_DRAIN") == "true"
        expect(drains == (kind == "Job"), f"{where}: a relay drains beside a Job, and only there")
        if drains:
            grace = (variables.get("RELAY_SHUTDOWN_GRACE"), pod.get("terminationGracePeriodSeconds"))
            expect(grace == ("10m", 630), f"{where}: the graces of relay and pod are {grace}")
        expect(relay.get("restartPolicy") == ("Always" if way == "sidecar" else None), f"{where}: restartPolicy")
        ready = relay.get("readinessProbe", {}).get("httpGet", {}).get("path")
        expect(ready == ("/readyz" if way == "standalone" else None), f"{where}: readiness is only for a pod of its own")
        volumes = {volume["name"] for volume in pod["volumes"]}
        expect(all(mount["name"] in volumes for mount in relay["volumeMounts"]), f"{where}: a volume is missing")
        for name in ("RELAY_DATABASE_URL_FILE", "RELAY_AMQP_URL_FILE"):
            expect(variables.get(name, "").startswith("/etc/outbox-relay/"), f"{where}: {name}")
        containers.append((where, {key: value for key, value in relay.items() if key not in OWN}))


main()
