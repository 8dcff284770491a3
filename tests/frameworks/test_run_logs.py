"""The logs of detectron2 and MMEngine, read back."""

import json

import pytest

from ilm_plugins.frameworks.run_logs import scalars


def write(path, *entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


def test_detectron2s_iterations_are_counted_from_one(tmp_path):
    write(tmp_path / "metrics.json", {"iteration": 19, "total_loss": 2.5, "bbox/AP": 7.0})
    found = scalars(tmp_path)
    assert (found["total_loss"], found["bbox/AP"]) == ({20: 2.5}, {20: 7.0})


def test_a_resumed_training_replaces_the_steps_that_were_lost(tmp_path):
    first, second = (tmp_path / name / "vis_data/scalars.json" for name in ("1_1", "1_2"))
    write(first, *({"step": step, "loss": 1.0} for step in (10, 20, 30)))
    write(second, {"step": 15, "loss": 0.5}, {"step": 25, "loss": 0.4})
    assert list(scalars(tmp_path)["loss"].items()) == [(10, 1.0), (15, 0.5), (25, 0.4)]


def test_epochs_of_a_validation_do_not_end_the_iterations_of_the_loss(tmp_path):
    entries = {"step": 10, "loss": 1.0}, {"step": 1, "mIoU": 40.0}, {"step": 20, "loss": 0.5}
    write(tmp_path / "1/vis_data/scalars.json", *entries)
    found = scalars(tmp_path)
    assert (found["loss"], found["mIoU"]) == ({10: 1.0, 20: 0.5}, {1: 40.0})


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"text"', "null"])
def test_what_is_no_finite_number_is_left_out(tmp_path, value):
    line = f'{{"iteration": 0, "total_loss": {value}}}\n'
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "lr": 1.0}\n' + line)
    assert "total_loss" not in scalars(tmp_path)


def test_a_line_that_a_kill_has_cut_is_left_out(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "loss": 1.0}\n{"iteration": 1, "lo')
    assert scalars(tmp_path)["loss"] == {1: 1.0}
