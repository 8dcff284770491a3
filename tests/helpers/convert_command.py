"""The command convert, run in the process of the tests."""

from ilm_plugins.__main__ import main


def run(*words):
    """Return the exit status of ``convert`` with arguments."""
    return main(["convert", *map(str, words)])


def refused(capsys, *words):
    """Return the one line that ``convert`` prints where it refuses its arguments."""
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error
