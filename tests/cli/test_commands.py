"""``python -m ilm_plugins COMMAND``, which the scripts in tools/ call too."""

import shlex
import sys

import pytest

import fresh
from ilm_plugins import __main__ as commands
from ilm_plugins.frameworks import command

#: What commands need before they look at their words.
NEEDS = {
    "analyze": "matplotlib",
    "evaluate-images": "PIL",
    "make-shapes": "PIL",
    "translate": "mmengine",
}


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
        ("evaluate-images", "PIL", "'ilm_plugins[pix2pix]'"),
        ("make-shapes", "numpy", "'ilm_plugins[data]'"),
        ("translate", "mmengine", "mmengine"),
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
    assert line.startswith(f"python -m ilm_plugins {name}: error: it needs {package}, ")
    assert line.endswith(f"run pip install {install}")


def test_progress_says_what_is_done_and_left(capsys, monkeypatch):
    now = iter([0.0, 1.0, 3.0, 5.0, 14.0, 20.0])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(now))
    assert list(command.progress([[1] * 4] * 5, 20)) == [[1] * 4] * 5
    # At 3 and 14 seconds: not yet at 1, too soon at 5, done at 20.
    lines = ["8 of 20 images, 4 s left", "16 of 20 images, 4 s left"]
    assert capsys.readouterr().err.splitlines() == lines
