"""Runs the commands of docs/install.md as they are there, each way in a Debian of its own, and those of the first example after them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path += [str(TOP / "tests/examples"), str(TOP / "tests/backends")]

from process import free_port  # noqa: E402
from readme import Shell, Wrong, copied, steps  # noqa: E402

HOME = "/home/reader"
# What a machine has that can reach PyPI. It may have a certificate of its own, and settings of pip.
NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
# No systemd runs there: systemctl changes its files, and starts nothing.
SYSTEMCTL = """#!/bin/sh
for word; do shift; [ "$word" = --now ] || set -- "$@" "$word"; done
SYSTEMD_OFFLINE=1 exec /usr/bin/systemctl "$@"
"""
# A block of commands that builds the program.
BUILD_LIMIT = 1800.0
# The ports that the example's texts name, and the admin interface's.
PORTS = (8080, 8000, 8001, 6379, 9901)


class Debian:
    """A Debian for one trial, with a reader who may use sudo. `source` is what was packed, `dist` what is downloaded."""

    def __init__(self, root: Path, source: Path, dist: Path) -> None:
        self.root, self.source = root, source
        # By the folder in it: a folder of this machine. They are there while a shell runs.
        self.mounts = {"/dist": dist}
        self.env = {"HOME": HOME, "PATH": f"{HOME}/.cargo/bin:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        self.env |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.chroot("useradd", "--create-home", "--shell=/bin/bash", "reader")
        (root / "etc/sudoers.d/reader").write_text("reader ALL=(ALL) NOPASSWD: ALL\n")
        systemctl = root / "usr/local/sbin/systemctl"
        systemctl.write_text(SYSTEMCTL)
        systemctl.chmod(0o755)
        for file in map(Path, NETWORK):
            if file.exists():
                there = root / file.relative_to("/")
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, there)

    def chroot(self, *command: str) -> None:
        subprocess.run(["chroot", self.root, *command], check=True)

    def home(self) -> Path:
        return self.root / HOME.lstrip("/")

    def rust(self, vendor: Path, repository: Path, url: str) -> None:
        """Rust and the crates of this machine, and the repository that has this URL."""
        sysroot = subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip()
        self.mounts |= {"/rust": Path(sysroot), "/vendor": vendor, "/repository": repository}
        self.env["PATH"] += ":/rust/bin"
        settings = self.home() / ".cargo/config.toml"
        settings.parent.mkdir()
        settings.write_text('[source.crates-io]\nreplace-with = "vendor"\n[source.vendor]\ndirectory = "/vendor"\n')
        (self.home() / ".gitconfig").write_text(f'[url "file:///repository"]\n  insteadOf = {url}\n')
        self.chroot("chown", "-R", "reader:", HOME)

    def shell(self) -> Shell:
        mounts = ["mount -t proc proc proc"]
        for inside, outside in self.mounts.items():
            (self.root / inside.lstrip("/")).mkdir(exist_ok=True)
            mounts.append(f"mount --bind {shlex.quote(str(outside))} {inside.lstrip('/')}")
        variables = shlex.join(f"{name}={value}" for name, value in self.env.items())
        line = " && ".join([*mounts, f"exec chroot --userspec=reader:reader . env -i {variables} bash -e"])
        return Shell(self.root, {}, ("unshare", "--mount", "sh", "-c", line))

    async def install(self, way: str, version: str, place: str) -> None:
        """The commands below one heading of docs/install.md install this version of the program."""
        page = steps(self.source / "docs/install.md")
        ours = [step for step in page if step.heading == way]
        if not ours:
            raise Wrong(f"docs/install.md has no commands below “{way}”")
        async with self.shell() as shell:
            await shell.run("cd")
            # The variables.
            await shell.run(page[0].commands)
            await shell.run("URL=file:///dist")
            for step in ours:
                await shell.run(step.commands, BUILD_LIMIT if way == "cargo" else 60)
            there = (await shell.run("hash -r; command -v seriatim; seriatim --version")).split()
            if there != [place, "seriatim", version]:
                raise Wrong(f"{way}: {there} instead of {place} with version {version}")

    async def example(self, name: str) -> None:
        """The commands of an example's README, with the program that is installed."""
        ports = {port: free_port() for port in PORTS}
        folder = self.home() / name
        copied(self.source / "examples" / name, folder, ports)
        self.chroot("chown", "-R", "reader:", HOME)
        async with self.shell() as shell:
            await shell.run(f"cd ~/{name}; export SERIATIM__ADMIN__LISTEN=127.0.0.1:{ports[9901]}")
            await shell.follow(steps(folder / "README.md"), ports, folder)


async def tried(debian: Callable[[str], Path], source: Path, dist: Path, version: str) -> None:
    """The archive and the package, and the first example with what the package has installed."""
    one = Debian(debian("archive"), source, dist)
    await one.install("Archive", version, "/usr/local/bin/seriatim")
    one = Debian(debian("package"), source, dist)
    await one.install("Debian package", version, "/usr/bin/seriatim")
    await one.example("fastapi")


async def built(debian: Callable[[str], Path], source: Path, dist: Path, version: str) -> None:
    """`cargo install` from a repository, which has the sources and the version's tag."""
    vendor, repository = source.parent / "vendor", source.parent / "repository"
    subprocess.run(["cargo", "vendor", "--quiet", "--locked", "--versioned-dirs", vendor], cwd=source, check=True, stdout=subprocess.DEVNULL)
    # Some crates have files for their owner alone, and the reader is another user.
    subprocess.run(["chmod", "-R", "a+rX", vendor], check=True)
    subprocess.run(["git", "init", "--quiet", "--bare", repository], check=True)
    git = ["git", f"--git-dir={repository}", f"--work-tree={source}", "-c", "user.name=release", "-c", "user.email="]
    for words in (["add", "--all"], ["commit", "--quiet", "--message=release"], ["tag", f"v{version}"]):
        subprocess.run([*git, *words], check=True)
    one = Debian(debian("cargo"), source, dist)
    one.rust(vendor, repository, os.environ["REPOSITORY"])
    await one.install("cargo", version, f"{HOME}/.cargo/bin/seriatim")
