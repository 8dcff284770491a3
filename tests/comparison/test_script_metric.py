"""The metric that a training script has written, read from its file."""

import json
import math
import os

import pytest

from ilm_plugins.comparison.script_metric import ScriptMetric
from ilm_plugins.errors import UserError

#: As Lightning's CSVLogger writes it.
SPARSE = "epoch,train_loss,val_acc\n0,2.5,\n0,,0.4\n1,2.0,\n1,,0.3\n1,1.9,\n"
LINES = "\n".join(json.dumps(line) for line in [{"lr": 1}, {"mAP": 0.1}, {"mAP": 0.3}, {"lr": 2}])
PRINTED = """
Epoch: [0]  [0/2]  loss: 2.3 (2.3)  acc1: 12.500 (12.500)
Test:  Acc@1 10.000 Acc@5 50.000
Test: EMA  Acc@1 11.000 Acc@5 51.000
Epoch: [1]  [0/2]  loss: 1.25e-1 (2.0)  acc1: 40.000 (40.000)
Test:  Acc@1 30.500 Acc@5 70.000
"""


def read(text, folder):
    metric = ScriptMetric.of(text)
    return metric.choose(metric.values(folder))


@pytest.mark.parametrize(
    "file, content, metric, value",
    [
        ("results.json", '{"top1": 71.5}', "top1:results.json", 71.5),
        ("r.json", '{"test": {"top1": 7, "top5": 9}}', "test.top1:r.json", 7),
        ("r.json", '[{"val": {"l.1": 3}}, {"val": {"l.1": 2}}]', "val.l.1:r.json", 2),
        ("r.json", '{"bbox": [0.31, 0.5, 0.64]}', "bbox.0:r.json", 0.31),
        ("log.txt", '{"bbox": [1, 2]}\n{"bbox": [3, 4]}\n', "bbox.1:log.txt:max", 4),
        ("r.json", '{"top1": "tensor(0.9, device=\'cuda:0\')"}', "top1:r.json", 0.9),
        ("state.json", '{"log": [{"acc": 1}, {"x": 2}, {"acc": 3}]}', "log.acc:state.json", 3),
        ("scalars.json", LINES, "mAP:scalars.json", 0.3),
        ("log.jsonl", LINES + "\n", "mAP:log.jsonl:max", 0.3),
        ("a/version_0/metrics.csv", SPARSE, "val_acc:a/*/metrics.csv", 0.3),
        (
            "results.csv",
            "  epoch,  metrics/mAP50(B)\n  1,   0.25\n",
            "metrics/mAP50(B):*.csv",
            0.25,
        ),
        ("log.txt", PRINTED, "Acc@1:log.txt", 30.5),
        ("log.txt", PRINTED, "Test: Acc@1:log.txt:min", 10),
        ("log.txt", PRINTED, "EMA Acc@1:log.txt", 11),
        ("log.txt", PRINTED, "loss:log.txt:min", 0.125),
        ("log.txt", "{'eval_accuracy': 0.5}", "eval_accuracy:log.txt", 0.5),
        ("log.txt", "acc: 0.6 best acc: 0.75 train acc: 0.9", "acc:log.txt", 0.6),
        ("log.txt", "acc: 0.6 best acc: 0.75", "best acc:log.txt", 0.75),
        ("log.txt", "loss 0.1 acc 0.6; loss nan acc 0.7", "acc:log.txt:max", 0.7),
        ("log.txt", "{'loss': np.float64(0.21), 'acc': np.float64(0.915)}", "acc:log.txt", 0.915),
        ("log.txt", "acc: tensor(0.9, device='cuda:0')", "acc:log.txt", 0.9),
    ],
)
def test_a_metric_is_read(tmp_path, file, content, metric, value):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    assert read(metric, tmp_path) == value


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"top_1": 3, "loss": 2}', "results.json has no value of 'top1'; it has top_1, loss"),
        ('{"top1": "many"}', "results.json has 'many', not a number such as 1234.5"),
        ('{"top1": 3', "results.json cannot be read (it is neither JSON nor JSON lines)"),
    ],
)
def test_a_file_without_the_metric_is_named(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"--metric top1:results\.json:last: ") as caught:
        read("top1:results.json", tmp_path)
    assert message in str(caught.value)


def test_a_number_of_the_next_line_is_no_value(tmp_path):
    """As of a table, or where a line ends with the metric's name."""
    text = "step\ttop1\n3\t70.5\nsaved the best top1\n2026-11-29 done\ntop1:\n5\n"
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(UserError, match=r"log\.txt has no value of 'top1'"):
        read("top1:log.txt", tmp_path)


@pytest.mark.parametrize(
    "number",
    ["71,5", "1,234.5", "1'234", "45/60"],
)
def test_a_text_that_only_begins_as_a_number_is_refused(tmp_path, number):
    (tmp_path / "log.txt").write_text(f"top1: 2.5\ntop1: {number} (75%)\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read("top1:log.txt", tmp_path)
    assert f"log.txt has {number!r}, not a number such as 1234.5" in str(caught.value)


def test_other_metrics_whose_names_end_alike_are_named(tmp_path):
    (tmp_path / "log.txt").write_text("train acc: 0.9, best acc: 0.8")
    with pytest.raises(UserError, match="has no value of 'acc'; it has best acc, train acc"):
        read("acc:log.txt", tmp_path)


def test_a_decimal_comma_in_a_csv_is_told_with_its_line(tmp_path):
    (tmp_path / "metrics.csv").write_text("top1,epoch\n71.5,1,\n72,5,2\n")
    with pytest.raises(UserError, match="line 3 has more cells than the header"):
        read("top1:metrics.csv", tmp_path)


@pytest.mark.parametrize("file", ["/out/r.json", "**r.json", ".", "../r.json", "a/../../r.json"])
def test_a_file_that_is_not_below_the_runs_folder_is_refused(file):
    with pytest.raises(UserError, match="give the name or the pattern of a file in "):
        ScriptMetric.of(f"top1:{file}")


def test_a_column_that_a_csv_lacks_is_named_with_its_neighbours(tmp_path):
    (tmp_path / "summary.csv").write_text("epoch,eval_top1\n0,1\n")
    with pytest.raises(UserError, match=r"summary.csv has no value of 'top1'; it has eval_top1"):
        read("top1:summary.csv", tmp_path)


def test_a_missing_file_is_named_with_its_neighbours(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.csv").touch()
    with pytest.raises(UserError, match=r"has no file 'summary.csv'; it has run/summary.csv"):
        read("top1:summary.csv", tmp_path)


@pytest.mark.parametrize("text", ["top1", "top1:", ":results.json", "top1:max"])
def test_a_metric_without_name_or_file_is_refused(text):
    with pytest.raises(UserError, match=r"expected NAME:FILE\[:RULE\]"):
        ScriptMetric.of(text)


def test_the_newest_of_several_files_counts(tmp_path):
    for i, value in enumerate((3, 5, 4)):
        (tmp_path / f"{value}.json").write_text(f'{{"top1": {value}}}')
        os.utime(tmp_path / f"{value}.json", (i % 2, i % 2))
    assert read("top1:*.json", tmp_path) == 5


@pytest.mark.parametrize("rule, value", [("max", 2), ("min", 1), ("last", None)])
def test_only_the_last_value_may_be_nan(tmp_path, rule, value):
    """A training that diverges in the end may have been better before."""
    (tmp_path / "r.json").write_text('{"top1": 1}\n{"top1": 2}\n{"top1": NaN}')
    found = read(f"top1:r.json:{rule}", tmp_path)
    assert (None if math.isnan(found) else found) == value
