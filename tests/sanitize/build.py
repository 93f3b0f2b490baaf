"""The native engine built with a sanitizer, and the environment in which Python loads that build."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import ROOT

SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}

# In the first folder of PYTHONPATH, so that every Python below it takes this build.
REPLACES = """
import sys
from importlib.util import spec_from_file_location
from pathlib import Path

class Sanitized:
    def find_spec(self, name, path=None, target=None):
        if name == "mexma.native._engine":
            return spec_from_file_location(name, Path(__file__).parent / "_engine.abi3.so")

sys.meta_path.insert(0, Sanitized())
"""


def build(sanitizer: str, folder: Path, *, macros: tuple[str, ...] = ()) -> dict[str, str]:
    """Compile into `folder`; returns the environment in which Python uses what was compiled.

    macros: "NAME=VALUE". Raises RuntimeError with the compiler's words."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        modules = tomllib.load(file)["tool"]["setuptools"]["ext-modules"]
    module = next(m for m in modules if m["name"] == "mexma.native._engine")
    folder.mkdir(parents=True, exist_ok=True)
    flags = [
        *module["extra-compile-args"], "-w", "-O1", "-g", "-fno-omit-frame-pointer", "-fPIC",
        f"-I{sysconfig.get_paths()['include']}", *SANITIZERS[sanitizer], *(f"-D{m}" for m in macros),
    ]  # fmt: skip
    parts = [(source, str(folder / f"{Path(source).stem}.o")) for source in module["sources"]]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda part: _compile([*flags, "-c", part[0], "-o", part[1]]), parts))
    made = [part for _, part in parts]
    _compile(
        [
            *flags,
            *module["extra-link-args"],
            "-shared",
            *made,
            "-o",
            str(folder / "_engine.abi3.so"),
        ]
    )
    (folder / "sitecustomize.py").write_text(REPLACES)
    # C++'s own library too: the runtime looks for what it replaces in there before the engine brings it.
    preloaded = " ".join(_library(name) for name in (RUNTIMES[sanitizer], "libstdc++.so"))
    return (
        os.environ
        | {
            "LD_PRELOAD": preloaded,
            "PYTHONPATH": f"{folder}:{ROOT}",
            "PYTHONMALLOC": "malloc",  # each object of the interpreter by itself, buffers among them
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # the interpreter leaks at its end
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "TSAN_OPTIONS": "halt_on_error=1",
            "OPENBLAS_NUM_THREADS": "1",
        }
    )


def _compile(arguments: list[str]) -> None:
    command = ["g++", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")


def _library(name: str) -> str:
    """Path of one of the compiler's own libraries. Raises RuntimeError where it is not installed."""
    command = ["g++", f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_absolute():
        raise RuntimeError(f"the compiler has no {name}; it comes with g++ on Debian")
    return str(Path(found).resolve())
