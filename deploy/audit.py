"""Is anything that is served known to be vulnerable? `make audit`, or with advisories that lie in a folder

    python -m deploy.audit --advisories CLONE_OF_PYPA_ADVISORY_DATABASE

Asks about each package of the bill of materials (`deploy.sbom`). Ends with 0 when nothing is known, with 1
when something is, and with 2 when it could not be asked: a source that does not answer, knows nothing
(mirrors of the package index answer so), or is old has audited nothing, and "nothing found" would be a lie.
So each source is first asked about a package that is known to be vulnerable.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import Version

from deploy.sbom import bill

Package = tuple[str, str]
# Packages with versions -> for each that is known to be vulnerable, the names of its advisories.
Source = Callable[[Sequence[Package]], dict[Package, list[str]]]

# Known since 2021 (CVE-2020-28493).
KNOWN: Package = ("jinja2", "2.11.2")
# A folder of advisories that was not brought up to date for so long says nothing of today.
FRESH = timedelta(days=30)


class NotAudited(Exception):
    """The source cannot be asked, or what it says is worth nothing."""


def audit(packages: Sequence[Package], source: Source) -> dict[Package, list[str]]:
    """Of `packages`, what is known. Raises NotAudited."""
    if not packages:
        raise NotAudited("there is nothing to ask about: the bill of materials is empty")
    try:
        known = source([KNOWN])
    except NotAudited as error:
        raise NotAudited(
            f"the source does not even answer for {KNOWN[0]} {KNOWN[1]}, which is no dependency but known "
            f"to be vulnerable, and asked about first: {error}"
        ) from None
    if not known:
        raise NotAudited(
            f"the source of advisories knows none of {KNOWN[0]} {KNOWN[1]}, of which there is one"
        )
    return source(packages)


def service(command: Sequence[str] = (sys.executable, "-m", "pip_audit")) -> Source:
    """What pip-audit is told by the package index. command: pip-audit."""

    def ask(packages: Sequence[Package]) -> dict[Package, list[str]]:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.writelines(f"{name}=={version}\n" for name, version in packages)
            file.flush()
            options = ["--strict", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
            done = subprocess.run(
                [*command, *options, "--format", "json", "-r", file.name],
                capture_output=True,
                text=True,
                check=False,
            )
        try:
            found = json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError, TypeError):
            said = done.stderr.strip().splitlines()
            raise NotAudited(f"pip-audit: {said[-1][:300] if said else 'no answer'}") from None
        answered = {canonicalize_name(d["name"]): d for d in found if "vulns" in d}
        if missing := [name for name, _ in packages if name not in answered]:
            raise NotAudited(f"pip-audit has no answer for {', '.join(missing[:5])}")
        ids = {p: [v["id"] for v in answered[p[0]]["vulns"]] for p in packages}
        return {package: some for package, some in ids.items() if some}

    return ask


def folder(path: Path, *, now: datetime | None = None) -> Source:
    """Advisories in OSV's format below `path`, as PyPA's advisory database keeps them
    (`vulns/<package>/<id>.yaml`). Raises NotAudited when there are none, or only old ones."""
    files: dict[str, list[Path]] = {}
    for file in path.glob("vulns/*/*.yaml"):
        files.setdefault(canonicalize_name(file.parent.name), []).append(file)
    if not files:
        raise NotAudited(f"{path} holds no advisories (vulns/<package>/<id>.yaml)")
    newest = max(_modified(file) for some in files.values() for file in some)
    if (now or datetime.now(UTC)) - newest > FRESH:
        raise NotAudited(
            f"the newest advisory in {path} is of {newest:%Y-%m-%d}; bring it up to date"
        )

    def ask(packages: Sequence[Package]) -> dict[Package, list[str]]:
        found: dict[Package, list[str]] = {}
        for name, version in packages:
            for file in sorted(files.get(name, ())):
                advisory = yaml.safe_load(file.read_text(encoding="utf-8"))
                if concerns(advisory, name, version):
                    found.setdefault((name, version), []).append(advisory["id"])
        return found

    return ask


def _modified(file: Path) -> datetime:
    """The day of an advisory, without reading all of its YAML."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("modified:"):
            day = datetime.fromisoformat(line.split(":", 1)[1].strip(" \"'"))
            return day if day.tzinfo else day.replace(tzinfo=UTC)
    return datetime.min.replace(tzinfo=UTC)


def concerns(advisory: dict[str, Any], name: str, version: str) -> bool:
    """Whether an advisory in OSV's format, not withdrawn, is about this version of a package."""
    if advisory.get("withdrawn"):
        return False
    at = Version(version)
    for affected in advisory.get("affected", ()):
        if canonicalize_name(affected["package"]["name"]) != name:
            continue
        if version in affected.get("versions", ()):
            return True
        for reach in affected.get("ranges", ()):
            if reach["type"] == "ECOSYSTEM" and _within(reach["events"], at):
                return True
    return False


def _within(events: Sequence[dict[str, str]], at: Version) -> bool:
    inside = False
    for event in events:
        (kind, value), *_ = event.items()
        if kind == "introduced" and (value == "0" or at >= Version(value)):
            inside = True
        elif (kind == "fixed" and at >= Version(value)) or (
            kind == "last_affected" and at > Version(value)
        ):
            inside = False
    return inside


def served() -> list[Package]:
    """What is served, by canonical name and version."""
    return [
        (canonicalize_name(c["name"]), c["version"])
        for c in bill()["components"]
        if c["type"] == "library"
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--advisories", type=Path, help="a folder, instead of the package index")
    chosen = parser.parse_args(arguments)
    try:
        source = folder(chosen.advisories) if chosen.advisories else service()
        packages = served()
        found = audit(packages, source)
    except NotAudited as error:
        instead = "" if chosen.advisories else "; --advisories DIR asks a clone of PyPA's instead"
        print(f"audit: NOTHING WAS AUDITED: {error}{instead}", file=sys.stderr)
        return 2
    for (name, version), ids in sorted(found.items()):
        print(f"{name} {version}: {', '.join(ids)}")
    print(f"audit: {len(packages)} packages asked about, {len(found)} known to be vulnerable")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
