"""The digest of a training function's code: what counts as a change of the function."""

import linecache
from functools import partial

import pytest

from ilm_plugins.comparison.function_source import digest_of

CELLS = """
RATE, unused = 0.1, 1
class Base:
    size = 7
    def start(self): return 5
class Net(Base):
    def forward(self): return self.start() + 10
def decorated(function): return function
@decorated
def helper(x, *, k=2): return [Net().forward() * y + RATE for y in x]
def train(norm, seed, folder):
    return {"top1": helper(s for s in (1, 2))}
"""


def digest(text):
    """Return the digest of a function of a notebook, which keeps the text of its cells."""
    linecache.cache["a cell"] = (len(text), None, text.splitlines(keepends=True), "a cell")
    names = {"__name__": "a notebook"}
    exec(compile(text, "a cell", "exec"), names)
    return digest_of(names["train"])


@pytest.mark.parametrize(
    "before, after",
    [
        ("(1, 2)", "(1, 3)"),
        ("* y +", "* y -"),
        ("RATE, unused = 0.1", "RATE, unused = 0.2"),
        ("k=2", "k=3"),
        ("+ 10", "+ 20"),
        ("return 5", "return 6"),
        ("size = 7", "size = 8"),
    ],
    ids=["constant", "function", "global", "default", "class", "base class", "attribute"],
)
def test_a_change_of_what_a_function_uses_changes_its_digest(before, after):
    assert CELLS.count(before) == 1
    assert digest(CELLS.replace(before, after)) != digest(CELLS)


@pytest.mark.parametrize(
    "before, after",
    [("def train", "# a comment\n\ndef train"), ("unused = 0.1, 1", "unused = 0.1, 2")],
    ids=["another line", "unused global"],
)
def test_nothing_else_changes_the_digest(before, after):
    assert digest(CELLS.replace(before, after)) == digest(CELLS)


def test_arguments_of_a_partial_count():
    assert digest_of(partial(digest, rate=0.1)) != digest_of(partial(digest, rate=0.2))


def test_what_a_function_closes_over_counts():
    def make(rate):
        return lambda norm, seed, folder: {"top1": rate}

    assert digest_of(make(0.1)) != digest_of(make(0.2))
