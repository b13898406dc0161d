"""The packages that a backend's folder pins: what is installed, and what the registry has."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from protocol import Backend


def pinned(folder: Path) -> list[tuple[str, str, str]]:
    """Registry ("pypi", "npm"), name and version of each package that a folder pins itself."""
    found = []
    if (file := folder / "requirements.txt").exists():
        for line in file.read_text().splitlines():
            if match := re.match(r"([\w.-]+)(?:\[[^]]*\])?==([^\s;#]+)", line):
                found.append(("pypi", match[1], match[2]))
    if (file := folder / "package.json").exists():
        found += [("npm", name, version) for name, version in json.loads(file.read_text())["dependencies"].items()]
    return found


def installed(backend: Backend) -> list[tuple[str, str]]:
    """Name and version of these packages as they are installed."""
    found = []
    for registry, name, _ in pinned(backend.folder):
        if registry == "npm":
            version = json.loads((backend.packages / "node_modules" / name / "package.json").read_text())["version"]
        else:
            ask = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
            version = subprocess.run([*backend.python("python"), "-c", ask, name], capture_output=True, check=True, text=True).stdout.strip()
        found.append((name, version))
    return found
