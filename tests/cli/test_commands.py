"""``python -m ilm_plugins COMMAND``, which the scripts in tools/ call too."""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import fresh
from ilm_plugins import __main__ as commands
from ilm_plugins import checkpoints, errors
from ilm_plugins.frameworks import command
from runs import NEEDS


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_is_one_screen_with_an_example_that_parses(name, capsys, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs {NEEDS[name]}")
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        commands.main([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.count("\n") <= 45
    assert all(len(line) <= 100 for line in text.splitlines())
    _, examples = text.split("\nexample:\n")
    parsed = []

    def then_stop(*_, **__):
        parsed.append(name)

    module = commands.import_module(f"ilm_plugins.{commands.COMMANDS[name][0]}")
    monkeypatch.setattr(module, "command", then_stop)
    for line in examples.replace("\\\n", " ").splitlines():
        *python, word = shlex.split(line)[:4]
        assert (python, word) == (["python", "-m", "ilm_plugins"], name)
        commands.main(shlex.split(line)[3:])
    assert len(parsed) == examples.count("python -m") > 0


def test_help_lists_all_commands_and_others_are_refused(capsys):
    with pytest.raises(SystemExit):
        commands.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in commands.COMMANDS)
    with pytest.raises(SystemExit) as ended:
        commands.main(["convertt"])
    assert ended.value.code == 2 and "invalid choice: 'convertt'" in capsys.readouterr().err


def test_a_command_is_named_in_its_errors():
    done = fresh.run([sys.executable, "-m", "ilm_plugins", "reproduce", "list", "en-22"])
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("python -m ilm_plugins reproduce: error: no table 'en-22'")


@pytest.mark.parametrize(
    "name, package, install",
    [
        ("make-shapes", "numpy", "pip install 'ilm_plugins[data]'"),
        ("translate", "mmengine", "pip install onedl-mmengine 'setuptools<82'"),
    ],
)
def test_what_a_command_needs_is_one_line(name, package, install):
    code = (
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv[1:] = [{name!r}]\n"
        "runpy.run_module('ilm_plugins', run_name='__main__', alter_sys=True)"
    )
    done = fresh.run([sys.executable, "-c", code])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    start = f"python -m ilm_plugins {name}: error: the command {name}"
    assert line == f"{start} needs {package}: {install}"


@pytest.mark.parametrize("name", ["tools/train_net.py", "tools/reproduce.py", "-m"])
def test_a_line_is_printed_before_torch_is_imported(name, root, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit(7)")
    words = ["-m", "ilm_plugins", "train"] if name == "-m" else [str(root / name)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    for code, line in ((words, "importing torch ...\n"), (["-c", "import ilm_plugins"], "")):
        done = subprocess.run([sys.executable, *code], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (7, "", line)


def test_extras_have_the_packages_that_errors_name(root):
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    names = {"PIL": "pillow", "sklearn": "scikit-learn"}
    for package, extra in errors.EXTRAS.items():
        assert names.get(package, package) in {re.split("[><=]", p)[0] for p in extras[extra]}
    for _, extra, _ in commands.COMMANDS.values():
        assert not extra or extra in extras


@pytest.mark.parametrize("package", ["safetensors", "numpy"])
def test_safetensors_name_their_extra(package, tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="its files need safetensors")
    path = tmp_path / "a.safetensors"
    checkpoints.write({"a": torch.ones(2)}, path)
    before = path.read_bytes()
    for module in (package, f"{package}.torch"):
        monkeypatch.setitem(sys.modules, module, None)
    install = f"needs {package}: pip install 'ilm_plugins[safetensors]'"
    with pytest.raises(errors.UserError, match=re.escape(f"{path} {install}")):
        checkpoints.write({"a": torch.zeros(2)}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    if package == "safetensors":
        with pytest.raises(
            errors.CheckpointError, match=re.escape(f"cannot be read: it {install}")
        ):
            checkpoints.read(path)


def test_a_package_that_a_command_needs_later_is_named(capsys):
    def draw():
        raise ModuleNotFoundError("No module named 'matplotlib.axes'", name="matplotlib.axes")

    assert command.command(draw, resumes=False) == 2
    error = capsys.readouterr().err
    assert error.endswith(": this command needs matplotlib: pip install 'ilm_plugins[analysis]'\n")


def test_progress_says_what_is_done_and_left(capsys, monkeypatch):
    now = iter([0.0, 1.0, 3.0, 5.0, 14.0, 20.0])
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: next(now)))
    assert list(command.progress([[1] * 4] * 5, 20)) == [[1] * 4] * 5
    # At 3 and 14 seconds: not yet at 1, too soon at 5, done at 20.
    lines = ["8 of 20 images, 4 s left", "16 of 20 images, 4 s left"]
    assert capsys.readouterr().err.splitlines() == lines


def test_make_shapes_says_how_many_images_are_done(tmp_path, capsys, monkeypatch):
    make_shapes = pytest.importorskip(
        "ilm_plugins.cli.make_shapes", reason="needs the extra ilm_plugins[data]"
    )
    now = iter(range(0, 1000, 5))
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: next(now)))
    options = ["--num-training", "2", "--num-validation", "1", "--size", "64"]
    assert make_shapes.main(["--root", str(tmp_path), *options]) == 0
    out, err = capsys.readouterr()
    assert "1 of 2 images, 5 s left" in err
    assert out == f"{tmp_path / 'shapes'}: 2 training and 1 validation images\n"


def test_output_that_nothing_reads_ends_a_command_without_a_line(capfd, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    for text in ("a few words", "x" * 100_000):
        with open(os.dup(write), "w") as closed:
            monkeypatch.setattr(sys, "stdout", closed)
            status = command.command(lambda text=text: print(text), argparse.Namespace())
        assert status == 128 + signal.SIGPIPE and capfd.readouterr().err == ""
    os.close(write)
