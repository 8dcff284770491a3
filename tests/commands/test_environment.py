"""python -m ilm_plugins."""

import importlib.util
import sys

import pytest
import torch

import fresh
import ilm_plugins
from ilm_plugins.cli import environment


def test_versions_and_keys():
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    done = fresh.run([sys.executable, "-m", "ilm_plugins"], check=True)
    assert ilm_plugins.__version__ in done.stdout and torch.__version__ in done.stdout
    for framework in ("detectron2", "mmcv", "mmengine"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(framework)]
        assert line.endswith(f": {', '.join(ilm_plugins.NORMS)}")
    assert "mmseg        1." in done.stdout


def test_the_backend_and_a_framework_that_is_missing(monkeypatch):
    monkeypatch.setenv("ILM_PLUGINS_BACKEND", "cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = environment.report()
    assert "backend      cpu" in found
    assert all(f"{framework:12} not installed" in found for framework in ("detectron2", "mmcv"))


BROKEN = {
    "detectron2/layers.py": "import _nothing_of_this_name",
    "mmcv/cnn.py": "def build_norm_layer(*args):\n    raise RuntimeError('no operator')",
    "mmengine/__init__.py": "raise AssertionError('mmcv 1 is used;\\nmmcv 2 is needed')",
    "mmdet/__init__.py": "del __version__",
}
TOLD = {
    "detectron2": "9.8, cannot be used: ModuleNotFoundError: No module named '_nothing_of_",
    "mmcv": "9.8, cannot be used: RuntimeError: no operator",
    "mmengine": "cannot be used: AssertionError: mmcv 1 is used; mmcv 2 is needed",
    "mmdet": "cannot be used: AttributeError: module 'mmdet' has no attribute '__version__'",
    "mmseg": "9.8",
}


def test_frameworks_that_are_broken(tmp_path):
    for package in TOLD:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("__version__ = '9.8'\n")
    for name, code in BROKEN.items():
        with (tmp_path / name).open("a") as file:
            file.write(code)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from ilm_plugins.cli.environment import report; print(report())"
    lines = fresh.run([sys.executable, "-c", code], check=True).stdout.splitlines()
    for package, words in TOLD.items():
        assert any(line.startswith(f"{package:12} {words}") for line in lines), lines
