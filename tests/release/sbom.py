"""Prints the program's bill of materials, as CycloneDX: `sbom.py FOLDER TRIPLE < BINARY`. FOLDER has Cargo.toml.

The crates are those that cargo builds into the program for TRIPLE, without what only build scripts and macros use.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
from datetime import datetime, timezone
from pathlib import Path

TOP, TRIPLE = Path(sys.argv[1]), sys.argv[2]
package = tomllib.loads((TOP / "Cargo.toml").read_text())["package"]
checksums = {
    (crate["name"], crate["version"]): crate.get("checksum")
    for crate in tomllib.loads((TOP / "Cargo.lock").read_text())["package"]
}


def output(*command):
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True).stdout


def purl(name, version, kind="cargo"):
    return f"pkg:{kind}/{name}@{version}"


def licences(text):
    # `A/B` is how crates wrote `A OR B` before there were expressions.
    return [{"expression": text.replace("/", " OR ")}] if text else []


# The depth in the tree, the crate, its licence and its repository.
tree = output(
    *("cargo", "tree", "--locked", "--edges", "normal,no-proc-macro", "--target", TRIPLE),
    *("--prefix", "depth", "--format", " {p}|{l}|{r}"),
)
components, needs, path = {}, {}, []
for line in tree.splitlines():
    depth, name, version, licence, repository = re.match(r"(\d+) (\S+) v(\S+)[^|]*\|([^|]*)\|(\S*)", line).groups()
    reference = purl(name, version)
    path[int(depth) :] = [reference]
    needs.setdefault(reference, set())
    if depth == "0":
        continue
    needs[path[-2]].add(reference)
    components[reference] = {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": checksums[name, version]}],
        "licenses": licences(licence),
        "purl": reference,
        "externalReferences": [{"type": "vcs", "url": repository}] if repository else [],
    }

# What the linker adds.
program = path[0]
rust = output("rustc", "--version").split()[1]
glibc = output("getconf", "GNU_LIBC_VERSION").split()[1]
for name, version, licence in ("rust-std", rust, "MIT OR Apache-2.0"), ("glibc", glibc, "LGPL-2.1-or-later"):
    reference = purl(name, version, "generic")
    components[reference] = {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "licenses": licences(licence),
        "purl": reference,
    }
    needs[reference] = set()
    needs[program].add(reference)

digest = hashlib.sha256(sys.stdin.buffer.read()).hexdigest()
moment = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), timezone.utc)
print(
    json.dumps(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            # The same program has the same number.
            "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
            "version": 1,
            "metadata": {
                "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "component": {
                    "type": "application",
                    "bom-ref": program,
                    "name": package["name"],
                    "version": package["version"],
                    "description": package["description"],
                    "hashes": [{"alg": "SHA-256", "content": digest}],
                    "licenses": licences(package["license"]),
                    "purl": program,
                    "externalReferences": [{"type": "vcs", "url": package["repository"]}],
                },
                "properties": [{"name": "target", "value": TRIPLE}],
            },
            "components": [components[reference] for reference in sorted(components)],
            "dependencies": [{"ref": name, "dependsOn": sorted(of)} for name, of in sorted(needs.items())],
        },
        indent=1,
    )
)
