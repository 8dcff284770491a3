"""compare.html, from made-up runs: what it has, and that it needs nothing else."""

import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib", reason="needs the extra ilm_plugins[compare]")
pytest.importorskip("jinja2", reason="needs the extra ilm_plugins[compare]")

from ilm_plugins.comparison import plot
from ilm_plugins.comparison.page import page
from ilm_plugins.comparison.results import OWN_TEST, Results, Value

#: Elements without an end.
VOID = {"img", "meta"}
#: A norm and a metric that would break a page if they were not escaped.
BOLD, METRIC = 'ILMGN("<b>&", long=\'' + "x" * 60 + "')", "mIoU</h2>"
NORMS = ["GN", BOLD, "EN"]
COMMAND = f"python -m ilm_plugins compare my.py GN '{BOLD}' EN"


@pytest.fixture(scope="module")
def written():
    """The page of made-up runs, of which the last of EN diverges."""
    values = [
        Value(norm, seed, OWN_TEST, METRIC, 40 + 2 * i + 0.1 * i * seed + seed)
        for i, norm in enumerate(NORMS)
        for seed in range(3)
    ]
    values[-1] = Value("EN", 2, OWN_TEST, METRIC, None, "diverged: <i>NaN</i>")
    return page(Results(NORMS, values, METRIC, steps={n: {"seconds": 0.5} for n in NORMS}), COMMAND)


class Reader(HTMLParser):
    """What a page has: its elements with their attributes, and its text; AssertionError if torn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"line {self.getpos()[0]}"

    def handle_data(self, data):
        self.words.append(data)

    def find(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def read(written):
    return Reader(written)


def test_the_page_begins_with_one_answer_on_all_norms_then_what_failed(read):
    gain = "gain +2.10 (95 %: +1.74 to +2.46)"
    cost = f"a step takes 1.00 times GN's with {BOLD}"
    failed = "Not tested: EN. 1 of 3 runs with EN (seed 2) diverged."
    assert f"Use {BOLD} in place of GN: {gain}; {cost}. {failed} Comp" in read.text


def test_each_norm_has_a_heading_a_verdict_and_a_next_step(read):
    assert [one["class"] for one in read.find("div") if "card " in one["class"]] == [
        "card better",
        "card not-tested",
    ]
    text = "Gain: +2.10 (95 %: +1.74 to +2.46), p = 0.002."
    assert f"{BOLD} better {text} Next: use {BOLD} in place of GN." in read.text


@pytest.mark.parametrize("text", [BOLD, METRIC, COMMAND, "<i>NaN</i>"])
def test_texts_are_shown_as_they_are(read, text):
    assert text in read.text
    assert not {"b", "i", "script"} & {tag for tag, _ in read.elements}


def test_the_page_needs_no_other_file(read, written):
    assert not {"link", "script", "iframe", "object", "use"} & {tag for tag, _ in read.elements}
    (picture,) = read.find("img")
    assert picture["src"].startswith("data:image/")
    assert "@import" not in written
    assert "url(" not in written


def values_of(words, norms=("GN", "EN"), test=OWN_TEST):
    """Return values from words such as "40 41", one text for each norm; a text of a failure."""
    found = []
    for norm, text in zip(norms, words, strict=True):
        for seed, word in enumerate(text.split()):
            known = word.replace(".", "").isdigit()
            value = (float(word), None) if known else (None, word)
            found.append(Value(norm, seed, test, "mIoU", *value))
    return found


def test_the_page_has_no_empty_column():
    found = Results(["GN", "EN"], values_of(("40 41", "44 39")), "mIoU")
    columns = re.findall('<th scope="col">(.*?)</th>', page(found, COMMAND))
    assert columns[:6] == ["norm", "seeds", "mIoU", "minus GN [95 %]", "p", "verdict"]
    assert columns[6:] == ["norm", "seeds", "mIoU"]


def test_without_differences_there_is_no_plot_of_them():
    found = Results(["GN"], values_of(["40 41"], ["GN"]), "mIoU")
    read = Reader(page(found, ""))
    assert "minus GN" not in read.find("img")[0]["alt"] + read.text
    assert not plot.has_differences(found)


def test_without_any_run_the_page_says_so():
    values = [Value(norm, 0, OWN_TEST, "mIoU", None, "not run") for norm in NORMS]
    text = Reader(page(Results(NORMS, values, "mIoU"), "")).text
    assert "GN, seed 0: not run" in text
