"""The matrix's legs, how their results are counted, and what it says when a leg cannot run."""

import re
import subprocess
import sys

import pytest

import matrix

LEG = matrix.Leg("leg", f"{sys.version_info[0]}.{sys.version_info[1]}")


def test_the_oldest_leg_has_the_lowest_versions_that_are_supported(root):
    project = (root / "pyproject.toml").read_text().split("[project]")[1].split("\n[")[0:3]
    lowest = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', "".join(project)))
    assert {"torch", "wrapt", "torchmetrics", "pillow"} == lowest.keys()
    oldest = dict(pin.split("==") for pin in matrix.OLDEST)
    for name, version in lowest.items():
        assert f"{oldest[name]}.".startswith(f"{version}.")
    (python,) = re.findall(r'requires-python = ">=([\d.]+)"', "".join(project))
    assert min((leg.python for leg in matrix.LEGS), key=lambda v: int(v[2:])) == python


def test_a_legs_pins_replace_those_of_the_requirements():
    plain, oldest = (matrix.pins(LEG._replace(pins=pins)) for pins in ((), matrix.OLDEST))
    assert oldest["torch"] == "2.4.0" != plain["torch"]
    assert oldest["pytest"] == plain["pytest"] and oldest.keys() == plain.keys()


def script(path, text):
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_does_not_run_is_passed_over(tmp_path, monkeypatch):
    script(tmp_path / "broken" / f"python{LEG.python}", "exit 127")
    script(tmp_path / "other" / f"python{LEG.python}", "echo 2.7")
    found = script(tmp_path / "right" / f"python{LEG.python}", f'exec {sys.executable} "$@"')
    folders = [str(tmp_path / name) for name in ("broken", "other", "none", "right")]
    monkeypatch.setenv("PATH", ":".join(folders))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert matrix.interpreter(LEG.python) == found
    monkeypatch.setenv("PATH", ":".join(folders[:3]))
    assert matrix.interpreter(LEG.python) is None
    of_pyenv = tmp_path / "pyenv" / "versions" / f"{LEG.python}.1" / "bin" / f"python{LEG.python}"
    found = script(of_pyenv, f'exec {sys.executable} "$@"')
    assert matrix.interpreter(LEG.python) == found


def test_a_missing_python_is_named_and_fails_if_strict(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(matrix, "LOGS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert matrix.main(["py312-bare"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.startswith("leg") and row.startswith("py312-bare")
    assert row.endswith("not run: no python3.12 on PATH or in pyenv")
    assert matrix.main(["py312-bare", "--strict"]) == 1


def test_an_unknown_leg_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        matrix.main(["py27"])
    assert stop.value.code == 2
    assert "no leg 'py27'; the legs are py312-bare, " in capsys.readouterr().err


@pytest.mark.wide
def test_counts_are_those_of_the_run(tmp_path):
    test, results = tmp_path / "test_it.py", tmp_path / "results.xml"
    assert matrix.counts(results, 0) == {"passed": 0, "skipped": 0, "failed": 1}
    test.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "def test_broken(nothing): pass\n"
        "@pytest.mark.parametrize('number', range(3))\n"
        "def test_missing(number): pytest.skip('no')\n"
        "def test_last(): pytest.exit('no more')\n"
    )

    def found(*options):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
        command += [f"--junitxml={results}", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True)
        return matrix.counts(results, done.returncode)

    assert found("-k", "not last") == {"passed": 1, "skipped": 3, "failed": 2}
    assert found("-k", "missing") == {"passed": 0, "skipped": 3, "failed": 1}, "nothing was tested"
    assert found("-k", "good or last") == {"passed": 1, "skipped": 0, "failed": 1}, "not to the end"


def test_variants_run_under_their_settings_where_the_processor_has_what_they_need(
    tmp_path, monkeypatch
):
    """Each is judged by its exit status as well as by its counts."""
    flags = (*matrix.processor_flags(), "sse2")
    monkeypatch.setattr(matrix, "processor_flags", lambda: flags)
    commands, statuses = [], {"good": 0, "bad": 2}

    def execute(command, **options):
        if "pytest" not in command:
            return subprocess.CompletedProcess(command, 0)
        commands.append(command)
        suite = '<testsuite tests="3" skipped="0" failures="0" errors="0"/>'
        (tmp_path / "results.xml").write_text(f"<testsuites>{suite}</testsuites>")
        return subprocess.CompletedProcess(command, statuses[options["env"]["SETTING"]])

    monkeypatch.setattr(subprocess, "run", execute)
    variants = (
        matrix.Variant("first", ("SETTING=good",), ("-k", "one"), "sse2"),
        matrix.Variant("second", ("SETTING=bad",), ("-k", "other")),
        matrix.Variant("absent", ("SETTING=none",), (), "none such"),
    )
    with (tmp_path / "log").open("w+") as log:
        found = matrix.run(LEG._replace(variants=variants), sys.executable, tmp_path, 1, log)
        log.seek(0)
        told = log.read()
    assert [command[-2:] for command in commands] == [("-k", "one"), ("-k", "other")]
    assert found == {"passed": 6, "skipped": 1, "failed": 1}, told
    assert "absent: skipped, no none such here" in told and "$ SETTING=good" in told


def test_a_leg_is_built_in_a_folder_that_is_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(matrix, "LEGS", (LEG,))
    monkeypatch.setattr(matrix, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(matrix, "interpreter", lambda version: sys.executable)
    failing = subprocess.CalledProcessError(1, "pip")
    results = iter([failing, {"passed": 1, "failed": 2}, {"passed": 3, "failed": 0}])

    def run(leg, python, folder, jobs, log):
        folders.append(folder)
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    folders = []
    monkeypatch.setattr(matrix, "run", run)
    lines = []
    for code in (1, 1, 0):
        assert matrix.main([]) == code
        lines.append(capsys.readouterr().out.splitlines()[1])
    assert "not built: see" in lines[0] and lines[1].split()[4:6] == ["1", "2"]
    assert lines[2].split()[4:6] == ["3", "0"]
    assert len(folders) == 3 and not any(folder.exists() for folder in folders)
