"""Build an image of the Dockerfile and run the service in it, where no container engine runs.

    python deploy/try_image.py --target cpu --work FOLDER      (root, Debian with debootstrap and buildah)

buildah executes the Dockerfile itself, in chroots. Its base image, which a registry would give, is made with
debootstrap: Debian with its own python3 in the place of `python:3.11-slim-bookworm`. Then the image's own
command is run as the image's own user in a chroot of the image's root: mounted read-only, /tmp and the
volume apart, every capability dropped, no new privileges, in mount, process and IPC namespaces of its own.

Ends with 0 and a report when: the image holds no torch, compiler or installer and no file that gives
privileges away; the service becomes ready by the image's own healthcheck, answers, cannot write outside its
volume, keeps its collections over a restart, and ends with 0 on SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUITE = "bookworm"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
BASE = "localhost/mexma-try-base"
READY_WITHIN_S = 300

# Mounts for the namespace the service runs in, then the exec into it. The chroot is entered before
# privileges are dropped, since entering needs one.
ENTER = """set -eu
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs -o nosuid,nodev,size=256m tmp "$1/tmp"
mount --bind "$2" "$1$3"
mount -o remount,bind,ro "$1"
root=$1 user=$4
shift 4
exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs \
  --bounding-set=-all --inh-caps=-all "$@"
"""


class Storage:
    """buildah with a store of its own, so that nothing of the machine's is touched."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "storage.conf"
        configuration.write_text(
            f'[storage]\ndriver = "overlay"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/images"\n'
        )
        self._environment = os.environ | {
            "CONTAINERS_STORAGE_CONF": str(configuration),
            "BUILDAH_ISOLATION": "chroot",
        }

    def buildah(self, *arguments: str | Path, quiet: bool = True) -> str:
        done = subprocess.run(
            ["buildah", *map(str, arguments)],
            env=self._environment,
            check=True,
            text=True,
            stdout=subprocess.PIPE if quiet else None,
        )
        return (done.stdout or "").strip()

    def has(self, image: str) -> bool:
        asked = ["buildah", "inspect", "--type", "image", image]
        done = subprocess.run(asked, env=self._environment, capture_output=True, check=False)
        return done.returncode == 0


def make_base(storage: Storage, work: Path) -> None:
    """The stand-in for the registry's Python image."""
    if storage.has(BASE):
        return
    tree = work / "base"
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", SUITE, tree],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(tree / "var/cache/apt/archives", ignore_errors=True)
    shutil.rmtree(tree / "var/lib/apt/lists", ignore_errors=True)
    container = storage.buildah("from", "scratch")
    storage.buildah("add", "-q", container, tree, "/")
    storage.buildah("commit", "-q", "--rm", container, BASE)
    shutil.rmtree(tree)


def build(storage: Storage, work: Path, target: str) -> str:
    """Run the Dockerfile. Returns the image's name."""
    image = f"localhost/mexma-try:{target}"
    arguments: list[str | Path] = [
        "bud", "--format", "docker", "--layers", "--build-arg", f"BASE={BASE}",
        "--target", target, "--tag", image,
    ]  # fmt: skip
    # A package index behind a certificate of its own needs that said inside, too.
    if certificates := os.environ.get("PIP_CERT"):
        pip_conf = work / "pip.conf"
        pip_conf.write_text("[global]\ncert = /run/index.pem\n")
        arguments += ["--volume", f"{certificates}:/run/index.pem:ro"]
        arguments += ["--volume", f"{pip_conf}:/etc/pip.conf:ro"]
    storage.buildah(*arguments, ROOT, quiet=False)
    return image


def inspect_root(root: Path) -> dict[str, Any]:
    """What must not be in an image, asserted, and what it weighs."""
    site = next((root / "opt/venv/lib").glob("python3*/site-packages"))
    names = {p.name for p in site.iterdir()}
    for absent in ("torch", "transformers", "pip", "training", "model_export", "evaluation"):
        assert absent not in names, f"the image holds {absent}"
    for tool in ("usr/bin/g++", "usr/bin/gcc", "usr/bin/cc", "opt/venv/bin/pip"):
        assert not (root / tool).exists(), f"the image holds /{tool}"
    sizes = {"venv": 0, "model": 0}
    for part, folder in (("venv", root / "opt/venv"), ("model", root / "app/models")):
        for path in folder.rglob("*"):
            mode = path.lstat().st_mode
            assert not mode & (stat.S_ISUID | stat.S_ISGID) or path.is_dir(), f"{path} is setuid"
            assert path.lstat().st_uid == 0, f"{path} belongs to the user that serves"
            assert stat.S_ISLNK(mode) or not mode & stat.S_IWOTH, f"{path} is writable by all"
            sizes[part] += path.lstat().st_size if stat.S_ISREG(mode) else 0
    return {f"{part}_mb": round(size / 1e6) for part, size in sizes.items()}


class Served:
    """The image's command, running as its user in its root."""

    def __init__(self, root: Path, config: dict[str, Any], data: Path, log: Path):
        user = config["User"].split(":")[0]
        assert user.isdecimal(), f"USER must be a number so that Kubernetes can check it, is {user}"
        assert int(user) > 0, "the image runs as root"
        self.config, self.root, self.user, self.data = config, root, user, data
        os.chown(data, int(user), int(user))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.environment = dict(pair.split("=", 1) for pair in config["Env"]) | {
            "MEXMA_PORT": str(self.port)
        }
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self._inside(config["Cmd"]), env=self.environment, stdout=output, stderr=output
            )

    def _inside(self, command: list[str]) -> list[str]:
        volume = next(iter(self.config["Volumes"]))
        return [
            "unshare", "--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child",
            "sh", "-c", ENTER, "sh", str(self.root), str(self.data), volume, self.user, *command,
        ]  # fmt: skip

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the service is run, beside it."""
        return subprocess.run(
            self._inside(list(command)),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def ask(self, path: str, body: object = None, method: str | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def wait_until_ready(self) -> None:
        """By the image's own healthcheck."""
        check = self.config["Healthcheck"]["Test"]
        assert check[0] == "CMD", check
        deadline = time.monotonic() + READY_WITHIN_S
        while self.exec(*check[1:]).returncode != 0:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.5)

    def stop(self) -> None:
        """SIGTERM to the service itself; it must end with 0."""
        (pid,) = self._descendants()
        os.kill(pid, signal.SIGTERM)
        status = self.process.wait(60)
        assert status == 0, f"ended with {status}\n{self.log.read_text()}"

    def _descendants(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def status(self) -> dict[str, str]:
        """The kernel's word on the process."""
        (pid,) = self._descendants()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def try_service(root: Path, config: dict[str, Any], work: Path) -> dict[str, Any]:
    """Serve, ask, stop, serve again."""
    data, log = work / "data", work / "served.log"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    log.unlink(missing_ok=True)
    began = time.monotonic()
    served = Served(root, config, data, log)
    try:
        served.wait_until_ready()
        ready_s = time.monotonic() - began
        status = served.status()
        assert status["Uid"].split() == [served.user] * 4, status["Uid"]
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd"):
            assert int(status[capabilities], 16) == 0, f"{capabilities} {status[capabilities]}"
        assert status["NoNewPrivs"] == "1"
        for place in ("/app/x", "/opt/venv/x", "/etc/x", "/x"):
            refused = served.exec("touch", place)
            assert refused.returncode != 0, f"{place} could be written"
            assert "Read-only" in refused.stderr, refused.stderr
        answer = served.ask("/v1/embeddings", {"input": ["two cats", "kaksi kissaa"]})
        assert len(answer["data"]) == 2
        served.ask("/v1/collections/kept", method="PUT")
        documents = [{"id": "1", "text": "Kissa nukkuu."}]
        served.ask("/v1/collections/kept/documents", {"documents": documents})
        served.stop()
        served = Served(root, config, data, log)
        served.wait_until_ready()
        assert served.ask("/v1/collections/kept")["count"] == 1
        served.stop()
    finally:
        served.process.kill()
    return {"ready_s": round(ready_s, 1), "user": served.user}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--target", choices=("cpu", "gpu"), default="cpu")
    arguments.add_argument("--work", type=Path, required=True, help="a folder for what is built")
    arguments.add_argument("--build-only", action="store_true", help="do not run it")
    chosen = arguments.parse_args()
    if os.geteuid() != 0:
        sys.exit("try_image: must be root: it mounts and enters chroots")
    for tool in ("buildah", "debootstrap", "unshare", "setpriv"):
        if shutil.which(tool) is None:
            sys.exit(f"try_image: {tool} is not installed (apt-get install buildah debootstrap)")
    work = chosen.work.resolve()
    storage = Storage(work)
    make_base(storage, work)
    image = build(storage, work, chosen.target)
    described = json.loads(storage.buildah("inspect", "--type", "image", image))
    config = described["Docker"]["config"]
    container = storage.buildah("from", image)
    root = Path(storage.buildah("mount", container))
    try:
        report: dict[str, Any] = {"target": chosen.target} | inspect_root(root)
        if not chosen.build_only:
            report |= try_service(root, config, work)
    finally:
        storage.buildah("umount", container)
        storage.buildah("rm", container)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
