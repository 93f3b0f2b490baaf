"""The systemd unit: verified and weighed by systemd's own tools."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.__main__ import GRACE_S
from service.settings import Settings
from tests.conftest import ROOT
from tests.deploy.tools import tool

UNIT = ROOT / "deploy" / "mexma.service"


@pytest.fixture
def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser["Service"]


def verify(text: str, folder: Path) -> str:
    """What systemd says of a unit whose program exists."""
    copy = folder / UNIT.name
    copy.write_text(text.replace("/opt/mexma/.venv/bin/mexma-serve", sys.executable))
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    return "\n".join(line for line in done.stderr.splitlines() if UNIT.name in line)


def test_systemd_has_nothing_to_say(tmp_path):
    assert verify(UNIT.read_text(), tmp_path) == ""


def test_systemd_would_notice(tmp_path):
    assert "NoNewPriviliges" in verify(
        UNIT.read_text().replace("NoNewPrivileges", "NoNewPriviliges"), tmp_path
    )


def test_systemd_rates_its_exposure_as_small():
    """From 0 (none) to 10; most services of a distribution have more than 9."""
    done = subprocess.run(
        [tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]


def test_its_program_and_settings_are_the_service_s_and_it_has_time_to_end(service):
    assert service["ExecStart"].endswith("/.venv/bin/mexma-serve")
    assert re.search(r'^mexma-serve = "', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    names = re.findall(r"(MEXMA_\w+)=", service["Environment"])
    assert names
    assert set(names) <= {f"MEXMA_{name.upper()}" for name in Settings.model_fields}
    assert int(service["TimeoutStopSec"]) > GRACE_S
    assert service["StateDirectory"] in service["Environment"]
