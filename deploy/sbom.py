"""The bill of materials of what is served: `python -m deploy.sbom build/sbom.json`.

CycloneDX 1.6: the packages that the service needs with the extras `cpu` and `otel`, as they are
installed here, and the default model with its files' hashes. Nothing else that may be installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("cpu", "otel")
MODEL = ROOT / "models" / "default"
VERSION = SchemaVersion.V1_6


def closure(name: str = "mexma", extras: tuple[str, ...] = EXTRAS) -> set[str]:
    """Canonical names of `name` and all it needs, with `extras`."""
    found: set[tuple[str, str]] = set()
    waiting = [(name, extra) for extra in ("", *extras)]
    while waiting:
        at = waiting.pop()
        if at in found:
            continue
        found.add(at)
        for line, extra in requires(at[0]):
            requirement = Requirement(line)
            if extra not in ("", at[1]):
                continue
            if requirement.marker is None or requirement.marker.evaluate({"extra": at[1]}):
                needed = canonicalize_name(requirement.name)
                waiting += [(needed, extra) for extra in ("", *requirement.extras)]
    return {name for name, _ in found}


def requires(name: str) -> list[tuple[str, str]]:
    """What a distribution needs, and the extra that needs it; ours as pyproject.toml says it."""
    if name != "mexma":
        return [(line, "") for line in metadata.requires(name) or []]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    own = [(line, "") for line in project["dependencies"]]
    return own + [(line, extra) for extra, lines in optional.items() for line in lines]


def model_component() -> dict[str, Any]:
    """The default model, by what its manifest promises of its files."""
    manifest = json.loads((MODEL / "manifest.json").read_text(encoding="utf-8"))
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{manifest['name']}",
        "name": manifest["name"],
        "description": "Licences of what it was made from: NOTICE",
        "components": [
            {
                "type": "file",
                "bom-ref": f"model:{manifest['name']}/{name}",
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": record["sha256"]}],
            }
            for name, record in sorted(manifest["files"].items())
        ],
    }


def bill() -> dict[str, Any]:
    """The bill, validated. Raises ValueError when it is not what CycloneDX takes."""
    command = [
        sys.executable, "-m", "cyclonedx_py", "environment", "--spec-version", "1.6",
        "--output-reproducible", "--of", "JSON", "--pyproject", str(ROOT / "pyproject.toml"),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    content: dict[str, Any] = json.loads(done.stdout)
    wanted = closure()
    kept = [c for c in content["components"] if canonicalize_name(c["name"]) in wanted]
    kept = [c for c in kept if canonicalize_name(c["name"]) != "mexma"]
    refs = {c["bom-ref"] for c in kept} | {content["metadata"]["component"]["bom-ref"]}
    content["components"] = [*kept, model_component()]
    content["dependencies"] = [
        {**d, "dependsOn": [r for r in d.get("dependsOn", []) if r in refs]}
        for d in content["dependencies"]
        if d["ref"] in refs
    ]
    if problem := JsonStrictValidator(VERSION).validate_str(json.dumps(content)):
        raise ValueError(f"not CycloneDX {VERSION.to_version()}: {problem}")
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what is served, and in which versions.")
    parser.add_argument("target", type=Path)
    chosen = parser.parse_args()
    chosen.target.parent.mkdir(parents=True, exist_ok=True)
    chosen.target.write_text(json.dumps(bill(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
