"""Is this environment fit to serve? Asked once, at start.

`onnxruntime` and `onnxruntime-gpu` install the same files, as do `faiss-cpu` and
`faiss-gpu`; whichever came last wins, silently. We refuse such an environment.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec

from mexma.errors import ConflictingPackages, InstallationError

TWINS = {
    "onnxruntime": (
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-openvino",
        "onnxruntime-directml",
    ),
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs"),
}


OWN = ("mexma", "training", "model_export", "evaluation", "service")


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Around what a command imports that serving does without. Where such a package is missing it ends with
    one sentence, and the status 1."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in OWN:
            raise
        command = sys.argv[0].rpartition("/")[2]
        sys.exit(
            f"{command}: needs {package}, which serving does without; install it by `make dev`, "
            f"or with this project's extra {extra}"
        )


def not_built(module: str, what: str, error: ImportError) -> str:
    """Why a compiled module of ours could not be imported, and what to do."""
    # Of a module that is not there Python says that it may be a circular import.
    why = f" ({error})" if find_spec(module) else ""
    return (
        f"the {what} engine was not built{why}; install a C++ compiler (g++ 11 or newer) and say "
        "`make serve` or `pip install -e .` again"
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def check_installation(version_of: Callable[[str], str | None] = _version) -> dict[str, str]:
    """Return the one distribution, with version, that provides each runtime package.

    version_of: a distribution's installed version or None; the real one by default. Raises
    ConflictingPackages when two distributions provide the same package, InstallationError
    when none does.
    """
    found: dict[str, str] = {}
    for package, candidates in TWINS.items():
        installed = [(name, version) for name in candidates if (version := version_of(name))]
        if len(installed) > 1:
            names = " and ".join(name for name, _ in installed)
            raise ConflictingPackages(
                f"{names} are both installed and overwrite each other's files; uninstall all of "
                "them, then install this project with exactly one of its extras, cpu or gpu"
            )
        if not installed:
            raise InstallationError(
                f"no package provides {package}; install this project with its extra cpu or gpu"
            )
        found[package] = "{} {}".format(*installed[0])
    return found
