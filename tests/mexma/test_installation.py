"""Environments in which packages overwrite each other are refused."""

from __future__ import annotations

import sys

import onnxruntime
import pytest

from mexma.errors import ConflictingPackages, DeviceUnavailable, InstallationError
from mexma.installation import check_installation
from mexma.session import PROVIDERS, Session


def installed(*names: str):
    return dict.fromkeys(names, "1.0").get


def test_this_environment_is_sound():
    assert set(check_installation()) == {"onnxruntime", "faiss"}


@pytest.mark.parametrize(
    "twins",
    [
        ("onnxruntime", "onnxruntime-gpu"),
        ("faiss-cpu", "faiss-gpu"),
        ("faiss-cpu", "faiss-gpu-cuvs"),
    ],
)
def test_twins_are_refused_by_name(twins):
    others = ("onnxruntime", "faiss-cpu")
    with pytest.raises(ConflictingPackages) as caught:
        check_installation(installed(*twins, *others))
    assert all(name in str(caught.value) for name in twins)
    assert "\n" not in str(caught.value)


def test_a_missing_runtime_is_named():
    with pytest.raises(InstallationError, match="no package provides faiss"):
        check_installation(installed("onnxruntime"))


def test_cuda_is_never_replaced_by_the_cpu_silently(monkeypatch):
    with pytest.raises(DeviceUnavailable, match="device cuda was asked for"):
        Session(None, device="cuda", engine="onnxruntime")  # type: ignore[arg-type]  # refused before it is looked at


class FellBack:
    def get_providers(self):
        return [PROVIDERS["cpu"]]


def test_a_runtime_that_falls_back_at_load_is_caught(monkeypatch, tmp_path):
    """The GPU package lists CUDA even where no driver is; only the made session tells."""

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*PROVIDERS.values()])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: FellBack())
    artifact = type("A", (), {"manifest": None, "model": tmp_path, "packed": tmp_path})()
    libraries = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda **_: libraries.append("asked for"))
    with pytest.raises(DeviceUnavailable, match="would have run on CPUExecutionProvider"):
        Session(artifact, device="cuda", engine="onnxruntime")  # type: ignore[arg-type]
    assert libraries, (
        "pip's CUDA libraries are found only when the runtime is told to look for them"
    )


def test_missing_cuda_libraries_are_named(monkeypatch, tmp_path, capfd):
    """What the runtime prints about them is in the error, and not on standard output."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDERS["cuda"]])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: FellBack())
    monkeypatch.setattr(
        onnxruntime, "preload_dlls", lambda **_: print("Failed to load libcublas.so.13: gone")
    )
    artifact = type("A", (), {"manifest": None, "model": tmp_path, "packed": tmp_path})()
    with pytest.raises(DeviceUnavailable, match="libcublas"):
        Session(artifact, device="cuda", engine="onnxruntime")  # type: ignore[arg-type]
    assert not capfd.readouterr().out


def test_what_is_served_never_imports_torch():
    import subprocess

    code = (
        "import service.app, service.__main__, sys; "
        "found = {'torch', 'transformers', 'onnx'} & set(sys.modules); "
        "sys.exit(f'imported {found}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_packages_are_those_of_this_repository():
    from pathlib import Path

    import mexma
    import model_export
    import service
    import training

    root = Path(__file__).resolve().parents[2]
    for package in (mexma, model_export, service, training):
        assert Path(package.__file__).is_relative_to(root)
