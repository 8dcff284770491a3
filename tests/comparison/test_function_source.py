"""The digest of a training function's code: what counts as a change of the function."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ilm_plugins.comparison.function_source import digest_of

CELLS = """
RATE, unused = 0.1, 1
class Base:
    def start(self): return 5
class Net(Base):
    def forward(self): return self.start() + 10
def decorated(function): return function
@decorated
def helper(x, *, k=2): return Net().forward() * x + RATE
def train(norm, seed, folder):
    return {"top1": [helper(s) for s in (1, 2)], "is known": norm in {"BN", "GN", "EN", "SN"}}
"""


def digest(text, name="train"):
    names = {"__name__": "a notebook"}
    exec(text, names)
    return digest_of(names[name])


@pytest.mark.parametrize(
    "before, after",
    [
        ("(1, 2)", "(1, 3)"),
        ("* x +", "* x -"),
        ("RATE, unused = 0.1", "RATE, unused = 0.2"),
        ("k=2", "k=3"),
        ("+ 10", "+ 20"),
        ("return 5", "return 6"),
    ],
    ids=["constant", "function", "global number", "default", "class", "base class"],
)
def test_a_change_of_what_a_function_uses_changes_its_digest(before, after):
    assert CELLS.count(before) == 1
    assert digest(CELLS.replace(before, after)) != digest(CELLS)


@pytest.mark.parametrize(
    "before, after",
    [("def train", "# a comment\n\ndef train"), ("unused = 0.1, 1", "unused = 0.1, 2")],
    ids=["comment", "unused global"],
)
def test_nothing_else_changes_the_digest(before, after):
    assert digest(CELLS.replace(before, after)) == digest(CELLS)


def test_arguments_of_a_partial_count():
    assert digest_of(partial(digest, rate=0.1)) != digest_of(partial(digest, rate=0.2))


def test_what_a_function_closes_over_counts():
    def make(rate):
        return lambda norm, seed, folder: {"top1": rate}

    assert digest_of(make(0.1)) != digest_of(make(0.2))


def test_a_name_without_a_value_counts_as_none():
    def train(norm, seed, folder):
        return {"top1": later}

    assert digest_of(train)
    later = 1
    assert digest_of(train)


class Callable:
    def __init__(self, value):
        self.value = value

    def __call__(self, norm, seed, folder):
        return {"top1": self.value}


def test_an_object_has_the_digest_of_its_class():
    assert digest_of(Callable([1])) == digest_of(Callable([2])) != digest_of(Callable.__init__)


def test_the_order_of_a_set_does_not_count():
    """Which differs between processes for texts, and by the order in the source for these."""
    found = [
        digest(f"def train(x):\n    return x in {{{numbers}}}") for numbers in ("0, 8", "8, 0")
    ]
    assert [*frozenset((0, 8))] != [*frozenset((8, 0))]
    assert found[0] == found[1]


@pytest.mark.wide
def test_the_digest_is_the_same_in_each_process(root):
    program = f"from {Path(__file__).stem} import CELLS, digest; print(digest(CELLS))"
    path = os.pathsep.join([str(root), str(Path(__file__).parent)])
    found = set()
    for number in "12":  # the order of a set of texts
        env = {**os.environ, "PYTHONHASHSEED": number, "PYTHONPATH": path}
        words = [sys.executable, "-c", program]
        found.add(subprocess.run(words, env=env, capture_output=True, check=True).stdout)
    assert len(found) == 1
