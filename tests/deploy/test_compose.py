"""deploy/compose.yaml: what the Compose specification takes, and what is promised of each container."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from service.__main__ import GRACE_S
from service.settings import Settings
from tests.conftest import ROOT
from tests.deploy.tools import tool

FILE = ROOT / "deploy" / "compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES = COMPOSE["services"]


def check_schema(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "check_jsonschema",
            "--builtin-schema", "vendor.compose-spec", str(file),
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def test_it_is_what_the_specification_says():
    done = check_schema(FILE)
    assert done.returncode == 0, done.stdout


def test_the_specification_would_notice(tmp_path):
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("cap_drop:", "capdrop:", 1))
    assert check_schema(wrong).returncode == 1


def test_what_is_mounted_is_there_and_what_is_named_is_declared():
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (FILE.parent / source).exists(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]


def test_nothing_listens_beyond_this_machine():
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_service_is_confined_and_has_time_to_end():
    mexma = SERVICES["mexma"]
    assert mexma["read_only"] is True
    assert mexma["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in mexma["security_opt"]
    assert int(mexma["stop_grace_period"].removesuffix("s")) > GRACE_S
    stages = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines()]
    assert mexma["build"]["target"] in {s[3] for s in stages if s[:1] == ["FROM"] and len(s) == 4}
    assert set(mexma["environment"]) <= {f"MEXMA_{name.upper()}" for name in Settings.model_fields}


def test_models_of_the_checkout_are_where_a_reload_looks():
    mexma = SERVICES["mexma"]
    mounted = {v.split(":")[1]: v.split(":") for v in mexma["volumes"]}
    source, _, how = mounted[mexma["environment"]["MEXMA_MODELS_DIR"]]
    assert (FILE.parent / source / "default" / "manifest.json").exists()
    assert how == "ro"


def test_milvus_is_started_only_when_asked_for():
    assert SERVICES["milvus"]["profiles"] == ["milvus"]
    assert all("profiles" not in SERVICES[name] for name in ("mexma", "prometheus", "grafana"))


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """Prometheus's files where the container has them."""
    for volume in SERVICES["prometheus"]["volumes"]:
        source, target = volume.split(":")[:2]
        if source.startswith("."):
            (tmp_path / Path(target).name).write_text((FILE.parent / source).read_text())
    return tmp_path


def test_prometheus_takes_its_configuration(laid_out):
    (config,) = [
        argument.removeprefix("--config.file=")
        for argument in SERVICES["prometheus"]["command"]
        if argument.startswith("--config.file=")
    ]
    done = subprocess.run(
        [tool("promtool"), "check", "config", Path(config).name],
        cwd=laid_out,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rule files" in done.stdout
    assert "mexma:8080" in (laid_out / Path(config).name).read_text()
