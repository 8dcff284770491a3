"""python -m ilm_plugins."""

import importlib.util
import subprocess
import sys

import pytest
import torch

import ilm_plugins
from ilm_plugins.integrations import report


def test_versions_and_keys():
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    done = subprocess.run(
        [sys.executable, "-m", "ilm_plugins"], capture_output=True, text=True, check=True
    )
    assert ilm_plugins.__version__ in done.stdout and torch.__version__ in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("detectron2")]
    assert line.endswith(", ".join(ilm_plugins.NORMS))


def test_a_framework_that_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "detectron2   not installed" in report.report()
