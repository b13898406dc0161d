"""The packages that a backend's folder pins: what is installed, and what their registries have."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
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


async def newest(registry: str, name: str) -> str:
    """The newest version that the registry has, without pre-releases."""
    pip = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", name]
    npm = ["npm", "view", "--loglevel=error", name, "version"]
    ask = await asyncio.create_subprocess_exec(*(npm if registry == "npm" else pip), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    output, errors = await ask.communicate()
    if ask.returncode:
        raise SystemExit(f"{name}: {errors.decode()}")
    # pip says: NAME (VERSION), then all versions.
    return output.decode().strip() if registry == "npm" else output.decode().split("(")[1].split(")")[0]


async def compared(folders: list[Path]) -> list[str]:
    """One line for each package that has moved on from the version that a folder pins."""
    pins = [(folder.name, *pin) for folder in folders for pin in pinned(folder)]
    found = await asyncio.gather(*(newest(registry, name) for _, registry, name, _ in pins))
    return [f"{folder}: {name} {version} -> {new}" for (folder, _, name, version), new in zip(pins, found) if new != version]
