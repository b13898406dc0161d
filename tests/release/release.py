"""Tries what `.ci/release` made, as somebody who has downloaded it: `release.py DIST WORK TARGET [--cargo]`.

Without root, or with SERIATIM_SKIP_IMAGE=1, what needs a root of its own is left out. `--cargo` also runs the `cargo install`
of docs/install.md in a Debian of its own, which builds the program anew.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import helm_python as helm
import pages
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

DIST, WORK, TARGET = (Path(word).resolve() for word in sys.argv[1:4])
TOP = Path(__file__).resolve().parents[2]
LIMIT = 30  # seconds; what takes longer has gone wrong
AS_ROOT = os.geteuid() == 0 and os.environ.get("SERIATIM_SKIP_IMAGE") != "1"
MOMENT = int(os.environ["SOURCE_DATE_EPOCH"])


def check(holds, rule):
    if not holds:
        raise SystemExit(f"release: {rule}")


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    check(done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def the(pattern):
    found = list(DIST.glob(pattern))
    check(len(found) == 1, f"there is one {pattern}: {found}")
    return found[0]


def unpack(archive, into):
    """Unpacks an archive that has no trace of who made it, and when."""
    shutil.rmtree(into, ignore_errors=True)
    with tarfile.open(archive) as members:
        for member in members:
            named = member.uname or member.gname or member.uid or member.gid
            check(not named and member.mtime == MOMENT, f"{member.name} in {archive.name} is nobody's, and of the commit's time")
        members.extractall(into)
    return next(into.iterdir())


def checksums():
    listed = dict(reversed(line.split("  ")) for line in (DIST / "SHA256SUMS").read_text().splitlines())
    there = {file.name for file in DIST.iterdir()} - {"SHA256SUMS"}
    check(set(listed) == there, f"each file has a checksum: {there ^ set(listed)}")
    for name, digest in listed.items():
        check(hashlib.sha256((DIST / name).read_bytes()).hexdigest() == digest, f"{name} is as in SHA256SUMS")


def program(folder):
    file = folder / "seriatim"
    code = file.read_bytes()
    # The header of a 64-bit ELF file: its type, and where its segments are described, how large and how many.
    kind, at, length, count = (*struct.unpack_from("<H", code, 16), *struct.unpack_from("<Q14xHH", code, 32))
    segments = {struct.unpack_from("<I", code, at + n * length)[0] for n in range(count)}
    check(kind == 3 and 3 not in segments, "the program is position-independent and needs no loader")
    for path in str(TOP), os.environ.get("CARGO_HOME", str(Path.home() / ".cargo")):
        check(path.encode() not in code, f"the program does not name {path}")
    return file


def demo(file, root=None):
    """The demo serves a turn, with `root` as its root if there is one."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [str(file), "demo", "--listen", f"127.0.0.1:{port}"]
    if root:
        command = ["chroot", "--userspec=65534:65534", str(root), "/" + file.name, *command[1:]]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        end = time.monotonic() + LIMIT
        while True:
            check(running.poll() is None, f"the demo goes on: {running.stdout.read() if running.poll() is not None else ''}")
            check(time.monotonic() < end, "the demo serves a turn")
            body = b'{"session_id": "release", "input": "hello"}'
            request = urllib.request.Request(f"http://127.0.0.1:{port}/chat", body, {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=LIMIT) as response:
                    check(response.read(), "the turn has an answer")
                    break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        running.terminate()
        check(running.wait(LIMIT) in (0, -signal.SIGTERM), "a signal ends the demo")
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


def archive(version):
    folder = unpack(the("seriatim-*-linux-*.tar.gz"), WORK / "unpacked")
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    wanted = {"LICENSE", "THIRD-PARTY-LICENSES", "README.md", "config.toml", "seriatim.service", "man/seriatim-locks-list.1"}
    wanted |= {f"completions/{name}" for name in ("seriatim", "_seriatim", "seriatim.fish")}
    check(wanted <= names, f"the archive has {wanted - names}")
    licences = (folder / "THIRD-PARTY-LICENSES").read_text()
    for component in bill["components"]:
        name = "\nThe GNU C Library " if component["name"] == "glibc" else f"\n{component['name']} "
        check(name in licences or component["name"] == "rust-std", f"the licences have {component['name']}")
    file = program(folder)
    check(run(file, "--version") == f"seriatim {version}\n", "the program has the version")
    run(file, "check", "--config", folder / "config.toml")
    if AS_ROOT:
        root = WORK / "empty"
        (root / "dev").mkdir(parents=True)
        shutil.copy(file, root)
        # Nothing else but the system's random numbers, which every container has.
        for minor, name in (8, "random"), (9, "urandom"):
            os.mknod(root / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            os.chmod(root / "dev" / name, 0o666)
        demo(root / "seriatim", root)
    else:
        demo(file)


def debian(name):
    """A small Debian for one trial, with what docs/install.md and the first example ask of their readers."""
    base, wanted = TARGET / "release-root", "curl,gcc,libc6-dev,procps,python3-venv,redis-server,sudo,systemd"
    complete = base / "complete"
    if not complete.exists() or complete.read_text() != wanted:
        shutil.rmtree(base, ignore_errors=True)
        run("debootstrap", "--variant=minbase", f"--include={wanted}", "bookworm", base)
        complete.write_text(wanted)
    run("cp", "-a", base, WORK / name)
    return WORK / name


def package(version):
    """The package in a Debian of its own: installed, updated, removed and purged."""
    root = debian("debian")
    inside = lambda *command: run("chroot", root, *command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    shutil.copy(the("*.deb"), root / "seriatim.deb")
    inside("dpkg", "--install", "/seriatim.deb")
    check(inside("seriatim", "--version") == f"seriatim {version}\n", "the package has the program")
    inside("seriatim", "check", "--config", "/etc/seriatim/config.toml")
    unit = "lib/systemd/system/seriatim.service"
    check(not list((root / "etc/systemd").rglob("seriatim.service")), "the service is not enabled")
    said = subprocess.run(["chroot", root, "systemd-analyze", "verify", "--man=no", "/" + unit], capture_output=True, text=True)
    ours = [line for line in said.stderr.splitlines() if "seriatim" in line]
    check(said.returncode == 0 and not ours, f"systemd understands the service: {ours or said.stderr}")
    # From 0, nothing can be reached, to 100, everything.
    inside("systemd-analyze", "security", "--offline=true", "--threshold=20", "/" + unit)
    # A changed configuration survives an update and a removal, but not a purge.
    config = root / "etc/seriatim/config.toml"
    config.write_text(config.read_text() + "# changed\n")
    inside("dpkg", "--install", "/seriatim.deb")
    inside("dpkg", "--remove", "seriatim")
    check(config.read_text().endswith("# changed\n"), "the configuration stays")
    check(not (root / "usr/bin/seriatim").exists() and not (root / unit).exists(), "the program and the service go")
    inside("dpkg", "--purge", "seriatim")
    left = run("find", root, "-xdev", "-name", "*seriatim*", "-not", "-name", "seriatim.deb")
    check(not left, f"nothing is left: {left}")


def chart(version):
    folder = unpack(the("seriatim-chart-*.tgz"), WORK / "unpacked-chart")
    report = helm.lint(str(folder), {"agent": {"image": "agent"}}, strict=True)
    check(not report.get("messages"), f"helm lint: {report}")
    said = yaml.safe_load((folder / "Chart.yaml").read_text())
    for key in ("home", "sources", "icon", "maintainers", "kubeVersion", "annotations"):
        check(said.get(key), f"Chart.yaml has {key}")
    # Artifact Hub's lists are YAML in a string.
    notes = {key.removeprefix("artifacthub.io/"): yaml.safe_load(text) for key, text in said["annotations"].items()}
    for change in notes["changes"]:
        kinds = {"added", "changed", "deprecated", "removed", "fixed", "security"}
        check(change.keys() == {"kind", "description"} and change["kind"] in kinds, f"a change is one for Artifact Hub: {change}")
    image = f"{os.environ['IMAGE']}:{version}"
    check([one["image"] for one in notes["images"]] == [image], f"Artifact Hub learns of {image}: {notes['images']}")
    values = yaml.safe_load((folder / "values.yaml").read_text())
    check(values["image"] | {"tag": said["appVersion"]} == values["image"] | {"repository": os.environ["IMAGE"], "tag": version}, "its image is that of the release")


def crate(version):
    """`cargo install`, from what the registry would have. The build without optimisation is shared with the other checks."""
    folder = WORK / "unpacked-crate"
    folder.mkdir()
    with tarfile.open(the("*.crate")) as members:
        members.extractall(folder)
    command = ("cargo", "install", "--quiet", "--debug", "--locked", "--root", WORK / "installed", "--target-dir", TARGET)
    run(*command, "--path", next(folder.iterdir()))
    check(run(WORK / "installed/bin/seriatim", "--version") == f"seriatim {version}\n", "the crate builds")


def names(version):
    """Wherever the repository names a tag of the image, or the version that is downloaded, it is this version."""
    # The last one is the first line of both READMEs.
    place = re.compile(r"seriatim\}?:v?(\d+\.[\w.]*\w)|registry\.example\.com/seriatim\}?:([\w.$]*\w)|^VERSION=(\S+)|(?:version|版本) ([\d.]+) ·", re.M)
    found = []
    for name in run("git", "-C", TOP, "ls-files", "-z", ":!fuzz").split("\0")[:-1]:
        for match in place.finditer((TOP / name).read_text(errors="replace")):
            found.append(f"{name}: {match[0]}")
            # A variable, and the word for a version that comes.
            named = "".join(filter(None, match.groups()))
            check(named in (version, "$VERSION", "NEW"), f"{found[-1]} names version {version}")
    check(len(found) > 15, f"the places are found: {found}")


text = the("*.cdx.json").read_text()
bill = json.loads(text)
problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
check(problem is None, f"the bill of materials is as CycloneDX has it: {problem}")
version = bill["metadata"]["component"]["version"]
parts = {component["name"] for component in bill["components"]}
check({"hyper", "tokio", "redis", "glibc"} <= parts and "proptest" not in parts, "it names what the program is made of")

names(version)
checksums()
archive(version)
chart(version)
crate(version)
if AS_ROOT:
    package(version)
    asyncio.run(pages.tried(debian, WORK / "source", DIST, version))
    if "--cargo" in sys.argv:
        asyncio.run(pages.built(debian, WORK / "source", DIST, version))
else:
    print("The package is not installed, and no empty root tried: that takes root.", file=sys.stderr)
print(f"release {version}: passed")
