"""The tables of plain norms and of rules: what they offer, and that the documentation shows it."""

import re

import pytest
from torch import nn

from ilm_plugins import NORMS, surgery
from ilm_plugins.foreign_norms import EXACT, path_of
from ilm_plugins.surgery import plain_norms, rules
from ilm_plugins.surgery.norms_in_state_dict import LAYOUTS
from ilm_plugins.surgery.plain_norms import PLAIN_NORMS, PlainNorm

MARKED = "<!-- conversions -->\n\n", "\n<!-- end -->"
HEAD = "| from | to | outputs | `replacing` |\n|---|---|---|---|\n"


def table():
    """The rows of the documentation's table; rules of the same effect share a row."""
    targets = {}
    for rule in rules.RULES:
        if not set(rule.to) <= NORMS.keys():
            continue
        plain_norm = PLAIN_NORMS.get(rule.kind)
        where = "the same in evaluation" if plain_norm and plain_norm.has_statistics else "the same"
        for key in rule.to:
            asked = plain_norm and plain_norm is not rules.replaced_by(NORMS[key])[0]
            row = (
                plain_norm.title if plain_norm else rule.kind,
                rule.changes or where,
                f'`"{plain_norm.name}"`' if asked else "",
            )
            targets.setdefault(row, []).append(f"`{key}`")
    rows = [(name, ", ".join(keys), told, asked) for (name, told, asked), keys in targets.items()]
    return HEAD + "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)


def test_the_documentation_shows_the_rules(root):
    page = (root / "docs" / "adopting.md").read_text("utf-8")
    (shown,) = [part.split(MARKED[1])[0] for part in page.split(MARKED[0])[1:]]
    assert shown == table(), f"write this between the markers of docs/adopting.md:\n{table()}"


def test_every_plain_norm_has_a_rule():
    assert PLAIN_NORMS.keys() <= {rule.kind for rule in rules.RULES}


def test_every_rule_leads_from_what_there_is_to_what_there_is():
    layouts = {*LAYOUTS, *PLAIN_NORMS, "released SN", "released SSN"}
    assert {rule.kind for rule in rules.RULES} <= layouts
    assert {key for rule in rules.RULES for key in rule.to} <= {*NORMS, *PLAIN_NORMS}


@pytest.mark.parametrize(
    "cls, name",
    [(nn.GroupNorm, "GN"), (nn.InstanceNorm3d, "IN"), (nn.BatchNorm1d, "BN"), (nn.LayerNorm, "LN")],
)
def test_a_class_is_exactly_one_plain_norm(cls, name):
    assert plain_norms.plain_norm_of(cls).name == name


class Standardized(nn.BatchNorm2d):
    """A norm that no layer can replace."""


def test_a_row_is_enough_to_refuse_a_norm_with_a_reason(monkeypatch):
    reason = "its convolution's weights are standardized, which the layer does not know"
    row = PlainNorm("WSBN", nn.modules.batchnorm._BatchNorm, (), lambda *_: reason)
    monkeypatch.setitem(PLAIN_NORMS, row.name, row)
    monkeypatch.setitem(EXACT, re.escape(path_of(Standardized)), row.name)
    _, report = surgery.convert(nn.Sequential(Standardized(32), nn.BatchNorm2d(32)), "EN")
    assert report.left == {"0": f"Standardized, but EN replaces BatchNorm; {reason}"}
    assert [*report.converted] == ["1"]
