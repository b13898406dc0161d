"""The README of an example, and a bash that runs its commands as a reader would."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# For the first block of commands, which installs packages, and for each of the others.
INSTALL_LIMIT, BLOCK_LIMIT = 600.0, 60.0
CLEAN_UP = "Clean up"
# What an installation leaves in a folder; it stays there from one run to the next.
INSTALLED = ("venv", "node_modules")
# What differs from one run to the next: ids, and digits.
VARIES = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{32}\b|\d+")


class Wrong(Exception):
    """Something was seen that is not what it must be."""


@dataclass(frozen=True)
class Step:
    """A block of commands, and what the README says that one sees."""

    heading: str
    commands: str
    seen: str


def steps(readme: Path) -> list[Step]:
    """The blocks ```sh of a README, each with the block ```text that follows it."""
    found: list[Step] = []
    heading, block, language = "", [], None
    for line in readme.read_text().splitlines():
        if language is None and line.startswith("```"):
            language, block = line[3:], []
        elif language is not None and line == "```":
            text = "\n".join(block) + "\n"
            if language == "sh":
                found.append(Step(heading, text, ""))
            elif language == "text" and found:
                found[-1] = Step(found[-1].heading, found[-1].commands, text)
            language = None
        elif language is not None:
            block.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    return found


def copied(source: Path, folder: Path, ports: Mapping[int, int]) -> None:
    """Copies an example, with other ports in all its texts."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.name not in INSTALLED:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*INSTALLED, "__pycache__", "*.log"))
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "package-lock.json" and not set(INSTALLED) & set(file.relative_to(folder).parts):
            file.write_text(re.sub(r"\b\d{4,5}\b", lambda number: str(ports.get(int(number[0]), number[0])), file.read_text()))


def compare(step: Step, output: str, folder: Path) -> None:
    """Each line that the README shows comes in the output, in this order, perhaps with more before and behind it."""
    lines = [VARIES.sub("0", " ".join(line.split())) for line in output.splitlines()]
    at = 0
    for shown in step.seen.splitlines():
        wanted = VARIES.sub("0", " ".join(shown.split())).removesuffix("...")
        while at < len(lines) and wanted not in lines[at]:
            at += 1
        if at == len(lines):
            logs = "".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}\n" for log in sorted(folder.glob("*.log")))
            raise Wrong(f"{step.heading}: the README shows {shown!r}; the commands said:\n{output}\n{logs}")
        at += 1


class Shell:
    """One bash for all commands of a README. `command` is another way to start it."""

    def __init__(self, folder: Path, env: Mapping[str, str], command: Sequence[str] = ("bash", "-e")) -> None:
        self.folder, self.env, self.command = folder, env, command

    async def __aenter__(self) -> Shell:
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self.folder, env={**os.environ, **self.env}, start_new_session=True, limit=1 << 24,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        await self.process.wait()

    async def run(self, commands: str, limit: float = BLOCK_LIMIT) -> str:
        """Runs commands, and returns what they print. A command that fails ends the bash, and is an error."""
        assert self.process.stdin and self.process.stdout
        end = f"--- end {os.urandom(8).hex()}"
        # In braces, so that no command of the block reads the rest of it.
        self.process.stdin.write(f"{{\n{commands}\n}} < /dev/null; echo; echo '{end}'\n".encode())
        printed = ""
        try:
            async with asyncio.timeout(limit):
                while line := (await self.process.stdout.readline()).decode(errors="replace"):
                    if line.strip() == end:
                        return printed
                    printed += line
        except TimeoutError:
            raise Wrong(f"not over within {limit:.0f} s:\n{commands}\n{printed}") from None
        raise Wrong(f"a command failed:\n{commands}\n{printed}")

    async def follow(self, every: Sequence[Step], ports: Mapping[int, int], folder: Path) -> None:
        """Runs the commands above the clean-up, and compares what they print, in which the README's ports stand for the others."""
        for step in every:
            if step.heading == CLEAN_UP:
                break
            output = await self.run(step.commands, INSTALL_LIMIT if step is every[0] else BLOCK_LIMIT)
            for old, new in ports.items():
                output = output.replace(str(new), str(old))
            compare(step, output, folder)

    def left(self) -> list[str]:
        """The processes that the commands have left running, besides the bash itself."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # After the name, which may hold anything: state, parent, group, session.
                words = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(words[3]) == self.process.pid and int(folder.name) != self.process.pid and words[0] != "Z":
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except (OSError, IndexError):
                continue
        return found
