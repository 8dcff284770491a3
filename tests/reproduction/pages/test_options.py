"""The table of options in docs/layers.md."""

import inspect
import math
import re

import pytest

from reproduction.pages.options import LAYERS, first_sentence


@pytest.fixture
def options(root):
    """(layer's key, option) -> (default, meaning) of the table in docs/layers.md."""
    page = (root / "docs" / "layers.md").read_text("utf-8")
    table = page.partition("<!-- options: all -->")[2].partition("<!-- end -->")[0]
    found, keys = {}, []
    for line in table.strip().splitlines()[2:]:
        shown, meaning = re.fullmatch(r"\| (.*?) \| (.*) \|", line).groups()
        if layers := re.fullmatch(r"\*\*(.*)\*\*", shown):
            keys = LAYERS if layers[1] == "all layers" else layers[1].split(", ")
        for key in keys:
            for name, default in re.findall(r"`(\w+)=([^`]+`[\w ]*)", shown):
                found[key, name] = default, meaning
    return found


def test_the_table_has_the_options_of_every_layer_and_no_others(options):
    expected = {
        (key, name)
        for key, layer in LAYERS.items()
        for name in inspect.signature(layer).parameters
        if name != "num_channels"
    }
    assert options.keys() == expected


def test_every_option_has_a_meaning(options):
    assert not [where for where, (_, meaning) in options.items() if len(meaning) < 5]


@pytest.mark.parametrize("width", [64, 48, 20])
def test_a_default_that_follows_the_width_has_its_largest_number_in_the_table(options, width):
    shown = {
        (key, name): math.gcd(int(default.split("`")[0]), width)
        for (key, name), (default, meaning) in options.items()
        if default.endswith(" or less") and not meaning.startswith("groups of `")  # unused
    }
    assert ("EN", "reduction") in shown
    assert shown == {(key, name): getattr(LAYERS[key](width), name) for key, name in shown}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Return :class:`~a.b.C` of ``x``.", "Return `C` of `x`"),
        ("None is ``max(2, N // 16)``, or 1.5. The rest.", "None is `max(2, N // 16)`, or 1.5"),
        ("A layer,\n    in two lines.\n\nMore.", "A layer, in two lines"),
        ("No full stop\n\nMore.", "No full stop"),
    ],
)
def test_the_first_sentence_is_markdown_in_one_line(text, expected):
    assert first_sentence(text) == expected
