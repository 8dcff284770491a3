"""ilm_plugins.compare: norms in a training function of a user's own, as in a notebook."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="needs the extra ilm_plugins[compare]")

import ilm_plugins
from ilm_plugins import files
from ilm_plugins.comparison.run import folders
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.run.record import read_record

VALUES = {"BN": [70, 70.1, 70.2, 70.4], "EN": [72.5, 72.6, 72.9, 73.0]}


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """The runs that were made, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return []


def function(trained):
    """A training function, which fails for unknown norms."""

    def train(norm, seed, folder):
        trained.append((norm, seed))
        (folder / "model.pt").touch()
        return {"top1": VALUES[norm][seed], "loss": 100 - VALUES[norm][seed]}

    return train


def compare(trained, norms=("BN", "EN"), seeds=(0, 1, 2), **options):
    return ilm_plugins.compare(function(trained), norms, seeds, "out", **options)


def test_a_function_is_compared(trained):
    found = compare(trained)
    assert trained == [(norm, seed) for seed in (0, 1, 2) for norm in ("BN", "EN")]
    assert "+2.57 [+2.15, +2.98]" in repr(found)
    assert repr(found) == Path("out/compare.md").read_text()
    assert pd.DataFrame(found.table)["top1"].to_list() == ["70.10 ± 0.10", "72.67 ± 0.21"]
    values = pd.DataFrame(found.values).query("norm == 'EN' and metric == 'loss'")["value"]
    assert values.to_list() == pytest.approx([27.5, 27.4, 27.1])
    assert Path("out/compare.png").is_file()
    record = read_record("out/EN/seed2")
    assert (record["seed"], record["metrics"][""]["top1"]) == (2, 72.9)


def test_a_notebook_shows_the_answer_the_verdicts_the_picture_and_a_link(trained):
    compare(trained, seeds=(0, 2))
    shown = compare(trained)._repr_html_()
    assert shown.startswith("<p>Use EN in place of BN: gain +2.")
    assert "<p>Compared by top1: higher is better.</p>" in shown
    assert "<p>EN: better. Gain: +2." in shown
    assert "Next: use EN in place of BN.</p>" in shown
    assert "<td>72.67 ± 0.21</td>" in shown
    assert "call 1: BN and EN by top1, seeds 0 2; call 2: BN and EN by top1, seeds 0 1 2." in shown
    picture = base64.b64encode(Path("out/compare.png").read_bytes()).decode()
    assert f'src="data:image/png;base64,{picture}"' in shown
    assert '<a href="out/compare.html">' in shown
    assert "<b>" not in compare(trained, ("BN", "<b>"), (0,))._repr_html_()
    other = ilm_plugins.compare(lambda *_: {"top1": 1.0}, ["BN"], [0], "a #1")
    assert '<a href="a%20%231/compare.html">a #1/compare.html</a>' in other._repr_html_()


def test_recorded_runs_are_skipped(trained):
    compare(trained, seeds=(0,))
    trained.clear()
    compare(trained, seeds=(0, 1))
    assert trained == [("BN", 1), ("EN", 1)]


def test_the_unit_of_a_metric_may_be_given(trained):
    found = compare(trained, metric="loss", higher_is_better=False)
    assert found.results.unit.name == "number"
    found = compare(trained, unit="percent", metric="loss", higher_is_better=False)
    assert found.results.unit.ends == (100, 0)
    with pytest.raises(UserError, match="unit 'points': give one of percent, fraction, number"):
        compare(trained, unit="points")


@pytest.mark.parametrize("margin", [-1, 0, float("nan"), float("inf")])
def test_a_margin_is_above_0(trained, margin):
    with pytest.raises(UserError, match=f"margin {margin:g}: give a number of points above 0"):
        compare(trained, margin=margin)


def test_a_report_names_the_runs_that_were_made_elsewhere(trained, monkeypatch):
    """The environment of single runs, as on a cluster, may differ."""
    compare(trained, ("BN",))
    compare(trained, seeds=(0,))
    monkeypatch.setattr(folders, "device", lambda _: "another one")
    monkeypatch.setattr(folders, "versions", lambda: {"torch": "another one"})
    found = compare(trained)
    text = (
        "Runs with EN differ from those with BN not only in the norm, but in device, torch: seeds 1"
    )
    for report in (repr(found), Path("out/compare.html").read_text(), found._repr_html_()):
        assert f"{text}, 2." in report
    assert "differ from" not in repr(compare(trained, seeds=(0, 3)))


def history(found):
    """The cells of each row of the history in the report."""
    text = repr(found).partition("## History of this folder")[2]
    rows = (line for line in text.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows][1:]


def test_the_history_has_the_runs_the_readings_and_the_margins_of_all_calls(trained):
    compare(trained, ("BN", "XN"), (0,))
    compare(trained, seeds=(-1, 2))
    compare(trained, seeds=(2, -1), margin=1)
    found = compare(trained, seeds=(0, 2))
    assert [(one.margin, len(one.readings)) for one in found.results.looks] == [
        (None, 1),
        (1, 0),
        (None, 1),
    ]
    assert found.results.differences["test"]["EN"].tests == 6
    assert history(found) == [
        ["BN", "-1", "70.40", "left out", ""],
        ["BN", "0 2", "70.00 70.20", "", ""],
        ["EN", "-1", "73.00", "left out", ""],
        ["EN", "0 2", "72.50 72.90", "", ""],
        ["XN", "0", "-", "left out", "failed: KeyError: 'XN'"],
    ]


def test_a_result_that_was_replaced_is_told_and_is_another_look(trained, monkeypatch):
    compare(trained)
    shutil.rmtree("out/EN/seed2")
    monkeypatch.setitem(VALUES, "EN", [72.5, 72.6, 74.0, 73.0])
    found = compare(trained)
    assert "Runs with a result were repeated: EN, seed 2: 72.90, then 74.00." in repr(found)
    assert found.results.differences["test"]["EN"].tests == 6


def test_a_history_of_before_looks_is_read_as_one_look(trained):
    compare(trained)
    settings = json.loads(Path("out/compare.json").read_text())
    old = [["BN", "EN", "test", "top1", [0, 1]], ["EN", "BN", "test", "top1", [0, 1, 2]]]
    Path("out/compare.json").write_text(json.dumps(settings | {"history": {"read": old}}))
    found = compare(trained)
    assert found.results.differences["test"]["EN"].tests == 2 * 2
    assert len(json.loads(Path("out/compare.json").read_text())["history"]["looks"][0][1]) == 2


def test_a_failure_that_was_repeated_or_removed_leaves_a_trace(trained):
    def train(norm, seed, folder):
        trained.append(norm)
        if norm == "EN" and trained.count("EN") == 1:
            raise RuntimeError("loss is NaN")
        return {"top1": 70.0 + seed}

    ilm_plugins.compare(train, ["BN", "EN"], [0, 1], "out")
    shutil.rmtree("out/EN/seed0")
    found = ilm_plugins.compare(train, ["BN", "EN"], [0, 1], "out")
    rows = {(row[0], row[1]): row[-1] for row in history(found)}
    assert rows["EN", "0"] == "failed: RuntimeError: loss is NaN"
    assert rows["EN", "1"] == ""


def test_a_failure_before_ctrl_c_leaves_a_trace(trained):
    def train(norm, seed, folder):
        trained.append(norm)
        if len(trained) < 3:
            raise RuntimeError("loss is NaN") if norm == "BN" else KeyboardInterrupt
        return {"top1": 70.0 + seed}

    with pytest.raises(KeyboardInterrupt):
        ilm_plugins.compare(train, ["BN", "EN"], [0], "out")
    found = ilm_plugins.compare(train, ["BN", "EN"], [0], "out")
    assert "loss is NaN" in history(found)[0][-1]


def test_an_exception_is_a_failure_of_its_run(trained, capsys, monkeypatch):
    found = compare(trained, ("BN", "XN", "EN"), (0,))
    assert trained == [("BN", 0), ("XN", 0), ("EN", 0)]
    assert "- XN, seed 0: failed: KeyError: 'XN'; see out/XN/seed0.log" in repr(found)
    assert "in train" in Path("out/XN/seed0.log").read_text()
    assert "XN, seed 0 failed: KeyError: 'XN'" in capsys.readouterr().out
    monkeypatch.setitem(VALUES, "XN", [1])
    trained.clear()
    assert "## No result" not in repr(compare(trained, ("BN", "XN", "EN"), (0,)))
    assert trained == [("XN", 0)]


def test_ctrl_c_ends_a_comparison_and_the_next_call_continues(trained):
    def train(norm, seed, folder):
        trained.append(norm)
        if trained.count("EN") == 1:
            raise KeyboardInterrupt
        return {"top1": 1.0}

    with pytest.raises(KeyboardInterrupt):
        ilm_plugins.compare(train, ["BN", "EN", "GN"], [0], "out")
    ilm_plugins.compare(train, ["BN", "EN", "GN"], [0], "out")
    assert trained == ["BN", "EN", "EN", "GN"]


@pytest.mark.parametrize("returned", [None, 3, {}, {"top1": "many"}, {"top1": None}])
def test_a_function_must_return_numbers(trained, returned):
    found = ilm_plugins.compare(lambda *_: returned, ["BN"], [0], "out")
    assert f"the function returned {returned!r}; return a dict of numbers; see" in repr(found)


def test_a_metric_that_the_first_run_lacks_ends_a_comparison(trained):
    with pytest.raises(UserError, match="'top5': the runs have top1, loss; give one"):
        compare(trained, metric="top5")
    assert len(trained) == 1


def test_another_function_needs_another_folder(trained):
    compare(trained, seeds=(0,))
    with pytest.raises(UserError, match=r"out was begun with train = .*train', not .*lambda"):
        ilm_plugins.compare(lambda *_: {"top1": 1}, ["BN"], [0], "out")


def test_runs_of_a_function_that_has_changed_are_named(trained, capsys):
    def train(norm, seed, folder):
        return {"top1": 1}

    ilm_plugins.compare(train, ["BN", "EN"], [0], "out")
    ilm_plugins.compare(train, ["BN", "EN"], [0], "out")
    assert "other code" not in capsys.readouterr().out

    def train(norm, seed, folder):
        return {"top1": 2}

    ilm_plugins.compare(train, ["BN", "EN", "GN"], [0], "out")
    words = "Some runs are of other code than the present one; to repeat what it changes, remove "
    assert words + "out/BN/seed0, out/EN/seed0, or give" in capsys.readouterr().out
    assert words + "out/BN/seed0" in Path("out/compare.html").read_text()
    ilm_plugins.compare(train, ["GN"], [0], "out")
    assert "other code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "file, text",
    [
        ("compare.json", "{"),
        *(
            ("compare.json", f'{{"train": "train", "history": {history}}}')
            for history in (
                *("null", "[]", '{"failures": null}', '{"looks": [[]]}', '{"looks": [null]}'),
                '{"failures": [["EN", "0", "", "no memory"]]}',
                '{"looks": [[null, [[["BN", "EN"], "test", "top1", ["0"], 0]]]]}',
            )
        ),
        ("EN/seed1/record.json", '{"run": 1, "planned": null}'),
        ("EN/seed1", "a file"),
    ],
)
def test_a_damaged_folder_is_told_before_the_runs(trained, file, text):
    compare(trained, seeds=(0,))
    trained.clear()
    Path("out", file).parent.mkdir(exist_ok=True, parents=True)
    Path("out", file).write_text(text)
    with pytest.raises(UserError, match=f"out/{file}'? (is|cannot be written to)"):
        compare(trained, seeds=(0, 1))
    assert not trained


def test_a_comparison_that_is_refused_leaves_the_settings(trained, monkeypatch):
    """Its settings are compared and written in the lock."""
    monkeypatch.setattr(files, "PATIENCE", 0)

    def train(norm, seed, folder):
        with pytest.raises(UserError, match="in use by another training"):
            compare(trained)
        return {"top1": 1}

    train.__qualname__ = "another"
    ilm_plugins.compare(train, ["BN"], [0], "out")
    assert json.loads(Path("out/compare.json").read_text())["train"] == "another"


def test_by_default_five_seeds_are_in_a_folder_named_by_the_function(trained):
    found = ilm_plugins.compare(function(trained), ["BN"])
    assert [seed for _, seed in trained] == [0, 1, 2, 3, 4]
    assert found.output == Path("output/compare/train")


LOAD = """
import sys
from ilm_plugins import compare
sys.exit(", ".join({"torch", "scipy", "matplotlib"}.intersection(sys.modules)) or 0)
"""


def test_the_import_loads_neither_torch_nor_packages_of_reports(root):
    done = subprocess.run([sys.executable, "-c", LOAD], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_told(trained, monkeypatch):
    monkeypatch.delitem(sys.modules, "ilm_plugins.comparison.function_source")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(UserError, match=r"compare needs tqdm: .* 'ilm_plugins\[compare\]'"):
        compare(trained)
