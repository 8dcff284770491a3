"""What is asked of detectron2's configs and of their runs' folders."""

import json

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.config import get_cfg

from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.detectron2 import run_folder


@pytest.fixture
def config(root):
    return str(root / "configs/detectron2/mask_rcnn_R_50_FPN_batch2_ilmgn.yaml")


def overridden(config, overrides):
    cfg = get_cfg()
    cfg.merge_from_file(config)
    cfg.merge_from_list(overrides)
    return cfg


def write_run(folder, config, iterations, overrides):
    """A training of 20 iterations a line, with its test at the end."""
    cfg = overridden(config, overrides)
    (folder / "config.yaml").write_text(cfg.dump())
    lines = [
        {"iteration": i - 1, "total_loss": 1.0 + i, "time": 0.5}
        for i in range(20, iterations + 1, 20)
    ]
    name = f"model_{iterations - 1:07}.pth"
    if iterations == cfg.SOLVER.MAX_ITER:
        name = "model_final.pth"
        lines.append({"iteration": iterations, "bbox/AP": 30.0, "segm/AP": 28.0})
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "last_checkpoint").write_text(name)


def test_a_shortened_run_decays_at_the_same_shares_and_warms_up_as_before(config):
    assert run_folder.length(config) == (90000, "iterations")
    cfg = overridden(config, run_folder.length_overrides(config, 900))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (900, (600, 800))
    assert cfg.SOLVER.WARMUP_ITERS == overridden(config, []).SOLVER.WARMUP_ITERS
    assert overridden(config, run_folder.length_overrides(config, 2)).SOLVER.STEPS == (1,)


def test_a_whole_run_is_read(config, tmp_path):
    overrides = [
        *run_folder.run_overrides(config, tmp_path, 3),
        *run_folder.length_overrides(config, 100),
    ]
    write_run(tmp_path, config, 100, [*overrides, *run_folder.to_words(["SOLVER.BASE_LR=0.1"])])
    found = run_folder.summary(config, tmp_path, 100)
    assert found.run == 100
    assert found.metrics[()]["bbox/AP"] == 30.0 and found.seconds == 50.0
    assert found.curve[0] == {"iterations": 20, "total_loss": 21.0}
    assert run_folder.is_complete(tmp_path, 100) and not run_folder.is_complete(tmp_path, 120)
    cfg = overridden(config, overrides)
    assert (100, 3, str(tmp_path)) == (cfg.SOLVER.MAX_ITER, cfg.SEED, cfg.OUTPUT_DIR)


def test_what_a_resumed_run_logged_anew_takes_the_place_of_what_it_had(config, tmp_path):
    write_run(tmp_path, config, 60, run_folder.length_overrides(config, 100))
    before = (tmp_path / "metrics.json").read_text()
    anew = [{"iteration": i - 1, "total_loss": 100.0 + i, "time": 0.5} for i in (40, 60, 80)]
    text = before + "".join(json.dumps(line) + "\n" for line in anew)
    (tmp_path / "metrics.json").write_text(text)
    curve = run_folder.summary(config, tmp_path, 100).curve
    assert [(row["iterations"], row["total_loss"]) for row in curve] == [
        (20, 21.0),
        (40, 140.0),
        (60, 160.0),
        (80, 180.0),
    ]


def test_a_test_between_two_writes_begins_no_session(config, tmp_path):
    """detectron2 writes the pending values in the order in which their names came first."""
    write_run(tmp_path, config, 60, run_folder.length_overrides(config, 100))
    with (tmp_path / "metrics.json").open("a") as file:
        file.write(json.dumps({"iteration": 49, "bbox/AP": 30.0}) + "\n")
    curve = run_folder.summary(config, tmp_path, 100).curve
    assert [row["total_loss"] for row in curve if "total_loss" in row] == [21.0, 41.0, 61.0]
    assert [row["iterations"] for row in curve if "bbox/AP" in row] == [50]


def test_the_lengths_of_data_are_those_of_the_log(config, tmp_path):
    write_run(tmp_path, config, 100, run_folder.length_overrides(config, 100))
    lines = "[11/21 03:00:00 d2.data.datasets.coco]: Loaded {} images in COCO format from {}\n"
    text = lines.format(100, "coco/annotations/instances_train2017.json")
    text += lines.format(5000, "/data/coco/annotations/instances_val2017.json")
    (tmp_path / "log.txt").write_text(text)
    found = run_folder.summary(config, tmp_path, 100)
    assert (found.images, found.recipe_images) == (100, 118287)
    assert found.test_images == found.recipe_test_images == 5000


def test_a_run_that_was_ended_in_its_last_test_is_not_complete(config, tmp_path):
    write_run(tmp_path, config, 100, run_folder.length_overrides(config, 100))
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    (tmp_path / "metrics.json").write_text("\n".join([*lines[:-1], lines[-1][:9]]))
    assert run_folder.progress(tmp_path)[0] == 100 and not run_folder.is_complete(tmp_path, 100)
    assert run_folder.summary(config, tmp_path, 100).metrics == {}
    earlier = json.dumps({"iteration": 79, "bbox/AP": 20.0})
    (tmp_path / "metrics.json").write_text("\n".join([*lines[:-1], earlier]))
    assert not run_folder.is_complete(tmp_path, 100)
    assert run_folder.summary(config, tmp_path, 100).metrics == {}


def test_a_run_that_was_ended_has_no_figure(config, tmp_path):
    write_run(tmp_path, config, 60, run_folder.length_overrides(config, 100))
    found = run_folder.summary(config, tmp_path, 100)
    assert (found.run, found.metrics) == (60, {})
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(UserError, match="has no run of the command train"):
        run_folder.summary(config, tmp_path, 100)
