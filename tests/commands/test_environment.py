"""python -m ilm_plugins."""

import importlib.util
import os
import sys

import pytest
import torch

import fresh
import ilm_plugins
from ilm_plugins.cli import environment


def test_versions_and_keys():
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    env = {**os.environ, "ILM_PLUGINS_BACKEND": "cpu"}
    done = fresh.run([sys.executable, "-m", "ilm_plugins"], check=True, env=env)
    assert ilm_plugins.__version__ in done.stdout and torch.__version__ in done.stdout
    for framework in ("detectron2", "mmcv", "mmengine"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(framework)]
        assert line.endswith(f": {', '.join(ilm_plugins.NORMS)}")
    assert "mmseg        1." in done.stdout and "backend      cpu" in done.stdout


def test_a_framework_that_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = environment.report()
    for framework in ("detectron2", "mmcv", "mmengine", "mmdet", "mmseg", "mmpretrain"):
        assert f"{framework:12} not installed" in found
