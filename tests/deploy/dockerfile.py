"""Runs the steps of a Dockerfile without a container engine.

Every stage is a directory, and every step runs in it by chroot, in namespaces and an environment of
its own. The base image cannot be had without a registry: this machine's /usr (read-only) and its
Python, at /usr/local as in the image, stand in for it; a library that only this machine has is
therefore not missed. Needs Linux, and root to mount.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from app.local.servers import die_with_parent

ROOT = Path(__file__).parents[2]
WORK = ROOT / "var" / "containers"
BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# What a base image has of its own in /etc, and what an engine puts there; pip.conf: this machine's
# way to packages.
ETC = (
    "ssl",
    "ld.so.conf",
    "ld.so.conf.d",
    "login.defs",
    "nsswitch.conf",
    "hosts",
    "resolv.conf",
    "pip.conf",
)
# $1 root, $2 Python, $3 ro or rw; then pairs of a directory and its mount point, "--" and the
# command.
SANDBOX = """
set -eu
root=$1 python=$2 mode=$3; shift 3
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -o bind,ro /usr "$root/usr"
case $python in /usr | /usr/local) ;; *) mount -o bind,ro "$python" "$root/usr/local" ;; esac
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done
shift
[ "$mode" = rw ] || mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"""


class BuildError(Exception):
    """A step cannot be run, or failed."""


class Step(NamedTuple):
    """One instruction of a Dockerfile: `COPY`, {"from": "build"}, the rest of the line."""

    name: str
    flags: dict[str, str]
    text: str

    def words(self) -> list[str]:
        """The rest as an argument list: JSON form, else split as a shell would."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


def parse(dockerfile: str) -> list[Step]:
    """Instructions in order. Comments go, continued lines are joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    steps = []
    for line in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, text = line.strip().partition(" ")
        flags = {}
        while match := re.match(r"\s*--([a-z-]+)=(\S+)\s+", text):
            flags[match[1]] = match[2]
            text = text[match.end() :]
        steps.append(Step(name.upper(), flags, text.strip()))
    return steps


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves a file out: the last pattern that matches it or a parent of it
    decides."""
    verdict = False
    for line in patterns:
        pattern = line.strip().removeprefix("!").strip("/")
        if not pattern or pattern.startswith("#"):
            continue
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
        wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        if re.fullmatch(
            "".join(wild.get(part) or re.escape(part) for part in parts) + "(?:/.*)?", path
        ):
            verdict = not line.strip().startswith("!")
    return verdict


def context_files() -> list[str]:
    """What an engine would be sent: files that git tracks or would track, less what .dockerignore
    leaves out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    names = sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())
    return [name for name in names if not ignored(name, patterns)]


@dataclass
class Image:
    """A stage's files and settings."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    args: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def at(self, path: str) -> Path:
        """Where a path inside lies on this machine; relative ones start at WORKDIR."""
        return self.root / os.path.normpath(os.path.join(self.workdir, path)).lstrip("/")

    def sandboxed(
        self,
        command: list[str],
        env: Mapping[str, str] | None = None,
        volumes: Mapping[Path, str] | None = None,
    ) -> list[str]:
        """The command line that runs `command` in here, as the stage's user. Only root can write
        beyond the volumes."""
        mounts: list[str] = []
        for source, target in (volumes or {}).items():
            self.at(target).mkdir(parents=True, exist_ok=True)
            mounts += [str(source), target]
        uid, gid = self.user.split(":")
        # A change of user forgets `unshare --kill-child`, hence --pdeathsig.
        drop = [
            "setpriv",
            f"--reuid={uid}",
            f"--regid={gid}",
            "--clear-groups",
            "--bounding-set=-all",
        ]
        drop += ["--no-new-privs", "--pdeathsig=KILL"]
        variables = {"HOME": self._home(uid), **self.env, **(env or {})}
        clean = [
            "env",
            "-i",
            f"--chdir={self.workdir}",
            *(f"{key}={value}" for key, value in variables.items()),
        ]
        return [
            *(
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                SANDBOX,
                "sandbox",
            ),
            *(str(self.root), sys.base_prefix, "rw" if uid == "0" else "ro", *mounts, "--"),
            *(drop if uid != "0" else []),
            *clean,
            *command,
        ]

    def _home(self, uid: str) -> str:
        accounts = [line.split(":") for line in (self.root / "etc/passwd").read_text().splitlines()]
        return next((account[5] for account in accounts if account[2] == uid), "/")


class Builder:
    """Builds stages, each once, and only those that are needed."""

    def __init__(self) -> None:
        self._stages: dict[str, list[Step]] = {}
        steps: list[Step] = []
        for step in parse((ROOT / "Dockerfile").read_text()):
            if step.name == "FROM":
                steps = self._stages.setdefault(step.words()[-1], [])
            steps.append(step)
        self._built: dict[str, Image] = {}
        self._context = WORK / "context"
        for name in context_files():
            (self._context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self._context / name)

    def build(self, target: str) -> Image:
        """The finished stage. Raises `BuildError`."""
        if target not in self._built:
            first, *rest = self._stages[target]
            source = first.words()[0]
            if source in self._stages:
                parent = self.build(source)
                image = deepcopy(parent)
                image.root = WORK / "stages" / target
                copy(parent.root, image.root)
                image.args = {}
            elif source.startswith("python:"):
                image = stand_in(WORK / "stages" / target)
            else:
                raise BuildError(f"nothing can stand in for the image {source}")
            print(f"[{target}] FROM {source}")
            for step in rest:
                self._apply(image, step, target)
            self._built[target] = image
        return self._built[target]

    def _apply(self, image: Image, step: Step, target: str) -> None:
        """One step. An instruction or a flag that is not known here is an error, never skipped."""
        begin = time.monotonic()
        known = {
            "RUN": {"mount"},
            "COPY": {"from"},
            "HEALTHCHECK": {"interval", "timeout", "start-period", "retries"},
        }
        if surplus := set(step.flags) - known.get(step.name, set()):
            raise BuildError(f"{step.name}: the flags {surplus} are not known here")
        text = re.sub(
            r"\$\{?(\w+)\}?", lambda name: {**image.args, **image.env}.get(name[1], ""), step.text
        )
        match step.name:
            case "ARG":
                name, _, default = text.partition("=")
                if value := os.environ.get(name, default):
                    image.args[name] = value
            case "ENV":
                image.env |= dict(word.split("=", 1) for word in shlex.split(text))
            case "WORKDIR":
                image.workdir = os.path.join(image.workdir, text)
                image.at(".").mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = text
            case "COPY":
                self._copy(image, shlex.split(text), step.flags.get("from"))
            case "RUN":
                self._run(image, step)
            case "ENTRYPOINT":
                image.entrypoint, image.command = step.words(), []
            case "CMD":
                image.command = step.words()
            case "HEALTHCHECK":
                image.health = json.loads(step.text.removeprefix("CMD"))
            case "EXPOSE":
                pass
            case _:
                raise BuildError(f"the instruction {step.name} is not known here")
        shown = " ".join(step.text.split())[:100]
        print(f"[{target}] {step.name} {shown}  ({time.monotonic() - begin:.1f} s)", flush=True)

    def _copy(self, image: Image, words: list[str], stage: str | None) -> None:
        *sources, target = words
        base = self.build(stage).root if stage else self._context
        into_directory = target.endswith("/") or len(sources) > 1
        for source in sources:
            found = sorted(base.glob(source.strip("/")))
            if not found:
                raise BuildError(
                    f"COPY: there is no {source} in {stage or 'the context'}; does .dockerignore"
                    " name it?"
                )
            for path in found:
                copy(
                    path,
                    (
                        image.at(target) / path.name
                        if path.is_file() and into_directory
                        else image.at(target)
                    ),
                )

    def _run(self, image: Image, step: Step) -> None:
        volumes = {}
        if mount := step.flags.get("mount"):
            options = dict(option.split("=", 1) for option in mount.split(","))
            if options.get("type") != "cache":
                raise BuildError(f"RUN: the mount {mount} is not known here")
            cache = WORK / "cache" / options["target"].strip("/").replace("/", "-")
            cache.mkdir(parents=True, exist_ok=True)
            volumes[cache] = options["target"]
        # A directory of packages that a build argument names is one of this machine: show it at the
        # same place.
        named = [
            value for value in image.args.values() if value.startswith("/") and Path(value).is_dir()
        ]
        volumes |= {Path(value): value for value in named}
        execute(image.sandboxed(["/bin/sh", "-c", step.text], image.args, volumes))


def copy(source: Path, target: Path) -> None:
    """A file to a file, or what a directory holds into a directory; modes, times and links are
    kept."""
    target.parent.mkdir(parents=True, exist_ok=True)
    what = [f"{source}/.", str(target)] if source.is_dir() else [str(source), str(target)]
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", *what], check=True)


def stand_in(root: Path) -> Image:
    """An empty system in place of the base image: mount points, links into /usr, and the least that
    /etc must have."""
    for name in ("dev", "proc", "tmp", "usr", "root", "var", "opt", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for name in ETC:
        if Path("/etc", name).exists():
            subprocess.run(["cp", "-aH", f"/etc/{name}", root / "etc" / name], check=True)
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
    )
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    image = Image(root)
    execute(image.sandboxed(["ldconfig"]))  # Python's own library lies in /usr/local/lib here
    return image


def execute(command: list[str]) -> None:
    """Run a command line to its end; its output is shown when it fails. Raises `BuildError`."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=end_with_us
    )
    if done.returncode != 0:
        raise BuildError(f"status {done.returncode}:\n{done.stdout[-4000:]}")


def end_with_us() -> None:
    """In a child, before exec: `unshare` takes its namespace along when it is killed, and it is
    killed when we end."""
    die_with_parent(with_signal=signal.SIGKILL)
