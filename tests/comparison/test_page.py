"""compare.html, from made-up runs: what it has, that it needs nothing else, and how wide it is."""

import base64
import html
import io
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the extra ilm_plugins[compare]")
pytest.importorskip("jinja2", reason="needs the extra ilm_plugins[compare]")

from ilm_plugins.comparison import (
    command_source,
    plot,
    predictions,
    run_folders,
)
from ilm_plugins.comparison.command_source import CommandSource
from ilm_plugins.comparison.curves import curves, figure_of
from ilm_plugins.comparison.page import page
from ilm_plugins.comparison.plan import Plan, Source
from ilm_plugins.comparison.results import OWN_TEST, ModelSummary, Results, Value
from ilm_plugins.comparison.script_metric import ScriptMetric
from ilm_plugins.frameworks.images import Content, spread
from ilm_plugins.frameworks.run.record import FILE, write_record
from ilm_plugins.reports import style

#: Elements without an end.
VOID = {"img", "meta", "source"}
#: A norm and a metric that would break a page if they were not escaped.
BOLD, METRIC = 'ILMGN("<b>&", long=\'' + "x" * 60 + "')", "mIoU</h2>"
NORMS = ["GN", BOLD, "EN"]
COMMAND = f"python -m ilm_plugins compare my.py GN '{BOLD}' EN"


def plan_of(output):
    """Return the plan of runs whose models are unknown, as a script's."""
    return Plan(Source(), NORMS, [0, 1, 2], output)


def write_run(folder, norm, seed):
    """Write the record and the log of a run; the last seed of EN diverges."""
    diverges = (norm, seed) == ("EN", 2)
    record = {
        **{"framework": "mine", "device": "CPU" if seed else "H100", "commit": "0123abc"},
        **{"versions": {"torch": "2.9"}, "unit": "iterations", "planned": 1000},
        **{"run": 400 if diverges else 1000},
    }
    steps = range(10, record["run"] + 1, 10)
    curve = [{"iterations": step, "total_loss": math.exp(-step / 300)} for step in steps]
    if diverges:
        record = record | {"diverged": "<i>NaN</i>"}
        curve[-1]["total_loss"] = 1e30
    else:
        curve[50][METRIC] = curve[99][METRIC] = 30.0
    folder.mkdir(parents=True)
    write_record(folder / FILE, record | {"curve": curve})


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    plan = plan_of(tmp_path_factory.mktemp("made up"))
    values = []
    for i, norm in enumerate(NORMS):
        for seed in plan.seeds:
            write_run(plan.folder(norm, seed), norm, seed)
            values.append(Value(norm, seed, OWN_TEST, METRIC, 40 + 2 * i + 0.1 * i * seed + seed))
    reason = "diverged: <i>NaN</i>"
    values[-1] = Value("EN", 2, OWN_TEST, METRIC, None, reason)
    run_folders.log_of(plan.folder("EN", 2)).write_text("first\n" * 50 + "<script>last</script>\n")
    models = {norm: ModelSummary(44_123_456, f"53 {norm} (53 adaptive, 0 left)") for norm in NORMS}
    found = Results(
        NORMS,
        [value._replace(seconds=5000.0) for value in values],
        METRIC,
        settings_of_norms={"EN": ["lr=<1>"]},
        models=models,
        steps={norm: {"seconds": 0.5, "memory": 12e9} for norm in NORMS},
    )
    style.save(plot.figure_of(found, plot.WIDE), plan.output / "compare.png")
    return plan, found


@pytest.fixture(scope="module")
def written(made_up):
    return page(*made_up, COMMAND)


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
    failed = "1 of 3 runs with EN (seed 2) diverged."
    assert f"Use {BOLD} in place of GN: {gain}; {cost}. {failed} Comp" in read.text


def test_each_norm_has_a_heading_a_verdict_and_a_next_step(read):
    assert [one["class"] for one in read.find("div") if "card " in one["class"]] == [
        "card better",
        "card not-tested",
    ]
    text = "Gain: +2.10 (95 %: +1.74 to +2.46), p = 0.002."
    assert f"{BOLD} better {text} Next: use {BOLD} in place of GN." in read.text


@pytest.mark.parametrize("text", [BOLD, METRIC, COMMAND, "<i>NaN</i>", "<script>last</script>"])
def test_texts_are_shown_as_they_are(read, text):
    assert text in read.text
    assert not {"b", "i", "script"} & {tag for tag, _ in read.elements}


def test_the_page_needs_no_other_file(read, written):
    assert not {"link", "script", "iframe", "object", "use"} & {tag for tag, _ in read.elements}
    sources = [one["src"] for one in read.find("img")]
    sources += [one["srcset"] for one in read.find("source")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/") for source in sources)
    assert "@import" not in written
    assert "url(" not in written


def test_all_pictures_have_a_text(read):
    runs, curves = (one["alt"] for one in read.find("img"))
    assert runs.startswith(f"{METRIC} of each run by norm, and the differences from GN")
    assert curves.startswith(f"curves of loss and {METRIC} of each run")


def test_a_phone_gets_one_plot_above_the_other(read):
    for wide, narrow in zip(read.find("img"), read.find("source"), strict=True):
        assert narrow["media"] == "(max-width: 700px)"
        shapes = [pixels(uri).shape for uri in (wide["src"], narrow["srcset"])]
        assert shapes[0][1] > 2 * shapes[0][0]
        assert shapes[1][1] < shapes[1][0]


def values_of(words, norms=("GN", "EN"), test=OWN_TEST):
    """Return values from words such as "40 41", one text for each norm; a text of a failure."""
    found = []
    for norm, text in zip(norms, words, strict=True):
        for seed, word in enumerate(text.split()):
            known = word.replace(".", "").isdigit()
            value = (float(word), None) if known else (None, word)
            found.append(Value(norm, seed, test, "mIoU", *value))
    return found


def test_the_page_has_no_empty_column_and_no_curve_of_one_value(tmp_path):
    found = Results(["GN", "EN"], values_of(("40 41", "44 39")), "mIoU")
    plan = plan_of(tmp_path)
    for norm in found.norms:
        plan.folder(norm, 0).mkdir(parents=True)
        curve = [{"iterations": i, "loss": 1.0 / i} for i in (1, 2)]
        curve[-1]["mIoU"] = 40.0
        write_record(plan.folder(norm, 0) / FILE, {"planned": 2, "curve": curve})
    text = page(plan, found, COMMAND)
    columns = re.findall('<th scope="col">(.*?)</th>', text)
    assert columns[:6] == ["norm", "seeds", "mIoU", "minus GN [95 %]", "p", "verdict"]
    assert columns[6:] == ["norm", "seeds", "mIoU"]
    assert [*curves(plan, found)] == ["loss"]
    assert "No run has recorded several values of mIoU" in Reader(text).text


def test_without_differences_there_is_no_plot_of_them(tmp_path, made_up):
    plan, _ = made_up
    found = Results(["GN"], values_of(["40 41"], ["GN"]), "mIoU")
    style.save(plot.figure_of(found, plot.WIDE), plan.output / "compare.png")
    read = Reader(page(plan, found, ""))
    assert "minus GN" not in read.find("img")[0]["alt"] + read.text
    assert not plot.has_differences(found)


def test_a_failed_run_has_the_end_of_its_log(read):
    assert len(read.find("details")) == 1
    assert read.text.count("first") == 19


def test_values_that_differ_between_runs_are_counted(read):
    assert "device H100, CPU " in read.text
    assert "torch 2.9 " in read.text


def test_all_metrics_have_their_means(made_up):
    plan, found = made_up
    values = [*found.values, *(v._replace(metric="AP50", value=v.seed) for v in found.values)]
    text = Reader(page(plan, replace(found, values=values), "")).text
    assert "AP50 1.0 ± 1.0 1.0 ± 1.0 1.0 ± 1.0" in text
    assert "over the seeds that have a value; these differences are not tested" in text


def test_a_script_without_curves_is_told_how_to_get_them(tmp_path):
    source = CommandSource("train {norm} {output}", ScriptMetric.of("AP:results.json"))
    plan = Plan(source, ["GN", "EN"], [0], tmp_path)
    found = Results(["GN", "EN"], values_of(("40", "41")), "mIoU")
    assert "--metric NAME:FILE draws them where FILE" in Reader(page(plan, found, "")).text
    assert "Learning curves" not in Reader(page(plan_of(tmp_path), found, "")).text


def test_without_any_run_the_page_says_so(tmp_path):
    values = [Value(norm, 0, OWN_TEST, "mIoU", None, "not run") for norm in NORMS]
    text = Reader(page(plan_of(tmp_path), Results(NORMS, values, "mIoU"), "")).text
    assert "GN, seed 0: not run" in text


# ---- curves


def test_each_run_has_a_line_in_the_colour_of_its_norm(made_up):
    plan, results_of_runs = made_up
    found = curves(plan, results_of_runs)
    losses, values = figure_of(found, NORMS, plot.WIDE).axes
    colours = [line.get_color() for line in losses.lines if len(line.get_xdata()) > 1]
    assert (len(colours), len({*colours})) == (9, 3)
    assert {*colours[:3]} == {colours[0]}
    assert len(values.lines) == 8  # without a test of the run that diverged
    assert losses.lines[0].get_xydata()[-1] == pytest.approx([1000, math.exp(-1000 / 300)])


def test_a_run_that_diverged_ends_with_a_cross_and_leaves_the_scale_to_the_others(made_up):
    plan, results_of_runs = made_up
    found = curves(plan, results_of_runs)
    axis, _ = figure_of(found, NORMS, plot.WIDE).axes
    (cross,) = [line for line in axis.lines if line.get_marker() == "x"]
    assert cross.get_xydata().tolist() == [[400, axis.get_ylim()[1]]]
    assert axis.get_ylim()[1] < 2


@pytest.mark.parametrize(
    "last, scale", [(0.01, "log"), (0.1, "log"), (0.11, "linear"), (-0.01, "linear"), (0, "linear")]
)
def test_an_axis_of_large_quotients_of_positive_losses_is_logarithmic(tmp_path, last, scale):
    plan = plan_of(tmp_path)
    (folder := plan.folder("GN", 0)).mkdir(parents=True)
    curve = [{"epochs": 1, "loss": 1.0}, {"epochs": 2, "loss": last}]
    write_record(folder / FILE, {"planned": 2, "curve": curve})
    found = curves(plan, Results(NORMS, [], "mIoU"))
    (axis,) = figure_of(found, NORMS, plot.NARROW).axes
    assert (axis.get_xlabel(), axis.get_yscale()) == ("epochs", scale)


def test_the_values_of_a_scripts_metric_are_a_curve(tmp_path):
    metric = ScriptMetric.of("val_acc:metrics.csv:max")
    source = CommandSource("train {norm} {output}", metric)
    plan = Plan(source, ["BN", "EN"], [0], tmp_path)
    text = "epoch,train_loss,val_acc\n0,2,\n0,,.5\n1,1,\n1,,nan\n2,,.7\n"
    for norm, content in (("BN", text), ("EN", "val_acc\n.6\n")):
        plan.folder(norm, 0).mkdir(parents=True)
        (plan.folder(norm, 0) / "metrics.csv").write_text(content)
        command_source.measure(plan.folder(norm, 0), metric)
    ((curve,),) = curves(plan, Results(["BN", "EN"], [], "val_acc")).values()
    assert (curve.unit, curve.norm, curve.values) == ("values", 0, {1: 0.5, 3: 0.7})


# ---- pictures


def pixels(uri):
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.array(image.convert("RGB")).astype(int)


PHOTO = np.zeros((40, 80, 3), np.uint8)


def test_pictures_keep_their_shape_and_are_small():
    drawn = predictions.draw([PHOTO], {"GN": [Content(classes=np.zeros((40, 80), int))]})
    assert [*drawn.columns] == ["GN", "photo"]
    assert pixels(drawn.columns["photo"][0]).shape == (320, 640, 3)
    assert pixels(drawn.columns["GN"][0]).shape == (320, 640, 3)


def test_the_legend_names_the_classes_that_are_there_by_their_colour():
    classes = np.full((40, 80), 1)
    classes[:, :40] = 255
    names = ["sky", "road", "tree"]
    drawn = predictions.draw([PHOTO], {"GN": [Content(classes=classes)]}, names)
    (colour,) = drawn.classes.values()
    found = pixels(drawn.columns["GN"][0])
    assert [*drawn.classes] == ["road"]
    assert found[160, 480] == pytest.approx([*bytes.fromhex(colour[1:])], abs=6)
    assert found[160, 160] == pytest.approx([255] * 3, abs=6)


def test_thirty_classes_have_thirty_colours():
    content = Content(classes=np.arange(30).reshape(5, 6))
    drawn = predictions.draw([PHOTO], {"GN": [content]}, [f"class {i}" for i in range(30)])
    assert len({*drawn.classes.values()}) == 30


def test_objects_are_drawn_from_a_score_on():
    content = Content(
        boxes=np.array([[40.0, 10, 70, 30], [5, 10, 35, 30]]),
        labels=np.array([0, 1]),
        scores=np.array([0.9, 0.4]),
        masks=np.stack([np.arange(80) >= 40, np.arange(80) < 40])[:, None].repeat(40, axis=1),
    )
    drawn = predictions.draw([PHOTO], {"GN": [content]}, ["cat", "dog"])
    found = pixels(drawn.columns["GN"][0]).sum(axis=2)
    assert [*drawn.classes] == ["cat"]
    assert found[160, 480] > 100  # within the mask of the first
    assert found[160, 320] > 2 * found[160, 480]  # the left side of its box
    assert found[:, :280].max() < 40  # nothing of the second


def test_a_detector_that_finds_nothing_says_so(made_up):
    box = {"boxes": np.array([[5.0, 10, 35, 30]]), "labels": np.array([0])}
    found, unsure = Content(**box), Content(**box, scores=np.array([0.4]))
    empty = Content(boxes=np.zeros((0, 4)), labels=np.zeros(0, int))
    columns = {"GN": [unsure, unsure], "annotation": [found, empty]}
    drawn = predictions.draw([PHOTO, PHOTO], columns, ["cat"])
    assert drawn.columns["GN"] == ["no object above 0.5"] * 2
    assert drawn.columns["annotation"][1] == "no annotated object"

    class Detectors(Source):
        def predictions(self, folders):
            return drawn

    plan, results_of_runs = made_up
    read = Reader(page(replace(plan, source=Detectors()), results_of_runs, ""))
    assert read.text.count("no object above 0.5 GN") == 2
    assert [one["alt"] for one in read.find("img")][1:-1] == [
        "image 1: annotation",
        "image 1: photo",
        "image 2: photo",
    ]


@pytest.mark.parametrize(
    "length, count, places",
    [(100, 3, [24, 49, 74]), (2, 6, [0, 1]), (0, 6, []), (7, 6, [0, 1, 2, 3, 4, 5])],
)
def test_images_are_spread_over_the_test_set(length, count, places):
    assert spread(length, count) == places


# ---- a browser

#: Shows a page in frames; then its title has, for each, the widths of its content and of itself,
#: the number of pictures that are torn, and of tables and pictures that it cuts.
FRAMES = """<!DOCTYPE html><title></title>{frames}<script>
addEventListener("load", () => {{
  document.title = [...document.querySelectorAll("iframe")].map(frame => {{
    const root = frame.contentDocument.documentElement;
    const torn = [...frame.contentDocument.images].filter(image => !image.naturalWidth).length;
    const parts = [...frame.contentDocument.querySelectorAll("img, .scroll > *")];
    const cut = parts.filter(part => part.getBoundingClientRect().right > root.clientWidth);
    return [root.scrollWidth, root.clientWidth, torn, cut.length].join();
  }}).join(" ");
}});
</script>"""
FRAME = '<iframe style="width: {}px; height: 900px; border: 0" srcdoc="{}"></iframe>'


@pytest.mark.wide
def test_a_browser_shows_the_page_without_scrolling_to_the_side(written, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("needs a browser: apt-get install chromium")
    widths = 1280, 400
    frames = "".join(FRAME.format(width, html.escape(written)) for width in widths)
    (tmp_path / "frames.html").write_text(FRAMES.format(frames=frames))
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=10000",
    )
    command = [browser, *options, f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    done = subprocess.run(
        [*command, f"file://{tmp_path}/frames.html"], capture_output=True, text=True, timeout=120
    )
    title = re.search("<title>(.*?)</title>", done.stdout)[1]
    found = [tuple(map(int, frame.split(","))) for frame in title.split()]
    assert found == [(width, width, 0, 0) for width in widths]
