"""What all commands share: ``python -m ilm_plugins COMMAND``, its help, and how mistakes end it."""

import importlib.util
import os
import pickle
import shlex
import subprocess
import sys
from functools import partial
from unittest.mock import Mock

import pytest
import torch

import ilm_plugins
from helpers import processes
from helpers.trainings import NEEDS
from helpers.workers import Harmful
from ilm_plugins import __main__ as commands
from ilm_plugins import trust
from ilm_plugins.cli import environment
from ilm_plugins.errors import UserError, say

CONFIG = "ilm_plugins://pix2pix/shapes_ilmin_in.py"


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_is_one_screen_with_an_example_that_parses(name, capsys, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs {NEEDS[name]}")
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        commands.main([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert text.count("\n") <= 45
    _, examples = text.split("\nexample:\n")
    for line in examples.replace("\\\n", " ").splitlines():
        *start, word = shlex.split(line)[:4]
        assert [*start, word] == ["python", "-m", "ilm_plugins", name]
        monkeypatch.setattr(f"ilm_plugins.cli.{name.replace('-', '_')}.run", lambda args: None)
        assert commands.main(shlex.split(line)[3:]) == 0


@pytest.mark.parametrize("word, status", [("--help", 0), ("--none", 2)])
def test_options_are_parsed_without_any_package(word, status):
    command = [
        sys.executable,
        processes.PROGRAMS / "commands_without_packages.py",
        word,
        str(status),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [[], ["convert", "a.pth", "b.pth", "--to", "EN"]])
def test_an_unknown_backend_in_the_environment_ends_in_one_line(words):
    environment = {**os.environ, "ILM_PLUGINS_BACKEND": "CPU"}
    done = processes.run([sys.executable, "-m", "ilm_plugins", *words], env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "ILM_PLUGINS_BACKEND='CPU' is unknown" in done.stderr


def test_a_mistake_ends_a_command_by_one_line(capsys, monkeypatch):
    raised = Mock(side_effect=UserError("give a file"))
    monkeypatch.setattr("ilm_plugins.cli.make_shapes.run", raised)
    assert commands.main(["make-shapes"]) == 2
    assert capsys.readouterr().err.endswith("error: give a file\n")


def test_what_a_command_prints_does_not_move_the_cursor(capsys):
    say("GN\x1b[2J", "two\nlines\x9b", "")
    assert capsys.readouterr().out == "GN\\x1b[2J\ntwo\nlines\\x9b\n\n"


@pytest.mark.parametrize("error", [KeyError("lost"), ModuleNotFoundError("No module", name="mine")])
def test_other_exceptions_pass(monkeypatch, error):
    monkeypatch.setattr("ilm_plugins.cli.make_shapes.run", Mock(side_effect=error))
    with pytest.raises(type(error)):
        commands.main(["make-shapes"])


@pytest.mark.parametrize("weights_only", [None, False])
def test_no_command_runs_code_of_a_checkpoint(tmp_path, monkeypatch, weights_only):
    trap = tmp_path / "ran"
    torch.save(Harmful(trap), tmp_path / "c.pth")
    monkeypatch.setenv(trust.ALLOW_CODE, "1")
    load = partial(torch.load, tmp_path / "c.pth", weights_only=weights_only)
    monkeypatch.setattr("ilm_plugins.cli.make_shapes.run", lambda args: load())
    with pytest.raises(pickle.UnpicklingError):
        commands.main(["make-shapes"])
    assert not trap.exists()


@pytest.mark.parametrize(
    "words, package, install",
    [
        (["make-shapes"], "numpy", "numpy: pip install 'ilm_plugins[data]'"),
        (["train", "--config-file", CONFIG], "mmengine", "mmengine: pip install onedl-"),
        (["train", "--config-file", CONFIG], "mmengine.runner", "mmengine: pip install onedl-"),
        *(
            (["compare", CONFIG, "GN"], name, f"{name}: pip install 'ilm_plugins[compare]'")
            for name in ("scipy", "matplotlib")
        ),
    ],
)
def test_a_mistake_ends_a_command_with_one_line_that_says_what_it_needs(words, package, install):
    done = processes.run(
        [sys.executable, processes.PROGRAMS / "command_without.py", package, *words]
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"python -m ilm_plugins {words[0]}: error: ")
    assert f"needs {install}" in done.stderr


def test_a_full_disk_ends_make_shapes_with_one_line(tmp_path, capsys, small_files):
    pytest.importorskip("PIL", reason="make-shapes needs PIL")
    with small_files(200):
        assert commands.main(["make-shapes", "--root", str(tmp_path)]) == 2
    assert f"{tmp_path} cannot be written to (File too large)" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def printed():
    """The lines that the package prints by itself, by their first words."""
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    env = {**os.environ, "ILM_PLUGINS_BACKEND": "cpu"}
    done = processes.run([sys.executable, "-m", "ilm_plugins"], check=True, env=env)
    return {line.split()[0]: line for line in done.stdout.splitlines() if line}


@pytest.mark.parametrize("package", [ilm_plugins, torch])
def test_the_versions_are_printed(printed, package):
    assert package.__version__ in printed[package.__name__]


@pytest.mark.parametrize("framework", ["detectron2", "mmcv", "mmengine"])
def test_the_keys_of_each_framework_are_printed(printed, framework):
    assert printed[framework].endswith(f": {', '.join(ilm_plugins.NORMS)}")


@pytest.fixture
def without_operators(monkeypatch):
    """mmcv without its compiled operators."""
    pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")
    find = importlib.util.find_spec

    def find_other(name, package=None):
        return None if name == "mmcv._ext" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_other)


NEEDS_OPERATORS = "needs mmcv with its compiled operators: run 'make install-openmmlab'"


@pytest.mark.parametrize("command", ["train --num-gpus 0", "convert a.pth b.pth"])
def test_a_config_of_mmdet_without_mmcvs_operators_ends_in_one_line(
    without_operators, capsys, monkeypatch, command
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # restored afterwards
    config = "ilm_plugins://mmdet/shapes/mask-rcnn_r18_fpn_gn_shapes_ilmgn.py"
    assert commands.main([*command.split(), "--config-file", config]) == 2
    assert NEEDS_OPERATORS in capsys.readouterr().err.splitlines()[-1]


FRAMEWORKS = "detectron2", "mmcv", "mmengine", "mmdet", "mmpretrain"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_missing_framework_is_reported(monkeypatch, framework):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert f"{framework:12} not installed" in environment.report()
