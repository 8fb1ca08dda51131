"""What `docker compose config` does not look at: compose.py FILE

Every file that is mounted or built from is there, and the passwords in the several files are the same ones. Prints what
is wrong, and ends with 1 then.
"""

import base64
import hashlib
import json
import pathlib
import sys
import urllib.parse

import yaml

problems = []


def main():
    file = pathlib.Path(sys.argv[1])
    folder = file.parent
    compose = yaml.safe_load(file.read_text())
    sources = [secret["file"] for secret in compose["secrets"].values()]
    for name, service in compose["services"].items():
        mounts = [volume.split(":")[0] for volume in service.get("volumes", [])]
        sources += [mount for mount in mounts if mount.startswith(".")]
        if build := service.get("build"):
            sources.append(str(pathlib.Path(build["context"], build["dockerfile"])))
        for secret in service.get("secrets", []):
            expect(secret in compose["secrets"], f"{name}: there is no secret {secret}")
    for source in sources:
        expect((folder / source).exists(), f"{source} is not there")

    def secret(name):
        return (folder / compose["secrets"][name]["file"]).read_text().strip()

    expect(urllib.parse.urlsplit(secret("database-url")).password == secret("database-password"), "database passwords differ")
    definitions = json.loads((folder / "broker/definitions.json").read_text())
    relay = next(user for user in definitions["users"] if user["name"] == "relay")
    hashed = base64.b64decode(relay["password_hash"])
    password = urllib.parse.urlsplit(secret("amqp-url")).password.encode()
    expect(hashed[4:] == hashlib.sha256(hashed[:4] + password).digest(), "the broker has another password for the relay")
    print("\n".join(problems) or f"{len(sources)} files, passwords agree")
    sys.exit(bool(problems))


def expect(condition, problem):
    if not condition:
        problems.append(problem)


main()
