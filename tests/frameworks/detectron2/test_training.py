"""Training, killing, resuming and evaluating detectron2's configs by the command ``train``."""

import json
import re
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2 import engine
from detectron2.config import get_cfg

from helpers.close import assert_close
from helpers.trainings import LAZY, NO_TEST, SHAPES, SMALL, train_until_killed
from ilm_plugins import checkpoints
from ilm_plugins.errors import UserError
from ilm_plugins.files import lock
from ilm_plugins.frameworks.detectron2 import training
from ilm_plugins.frameworks.detectron2.config import OpenYaml
from ilm_plugins.frameworks.run.options import RunOptions
from ilm_plugins.frameworks.run.record import RunRecord, read_record
from ilm_plugins.frameworks.run.training import start


def options(out, *overrides, config=SHAPES, **more):
    overrides = ("OUTPUT_DIR", str(out), *SMALL, *overrides)
    return RunOptions(str(config), overrides=overrides, **more)


def train(*args, **more):
    start(options(*args, **more))
    return read_record(args[0])


def last(folder):
    return checkpoints.read(folder / (folder / "last_checkpoint").read_text())


def radii(checkpoint):
    return {value.item() for name, value in checkpoint["model"].items() if name[-7:] == ".radius"}


@pytest.fixture(scope="module")
def killed(datasets, launcher, tmp_path_factory):
    """The output folder of a training that was killed."""
    out = tmp_path_factory.mktemp("runs") / "out"
    words = "train", "--config-file", str(SHAPES), "--num-gpus", "0"
    overrides = ["SOLVER.MAX_ITER", "10000", "SOLVER.CHECKPOINT_PERIOD", "1", *NO_TEST]
    words += options(out, *overrides, "SOLVER.WEIGHT_DECAY", "0.0").overrides
    train_until_killed(launcher, words, out / "model_0000002.pth")
    return out


@pytest.fixture(scope="module")
def trained(killed):
    """The folder after one further iteration and the final evaluation, and its last checkpoint."""
    before = last(killed)
    # The gradient is clipped to nothing: the momentum alone moves the weights.
    clip = "SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0"
    end = str(before["iteration"] + 2)
    train(killed, "SOLVER.MAX_ITER", end, "SEED", "7", *clip, resume=True)
    return killed, before


def test_a_training_tells_its_length_before_its_first_step(trained):
    folder, before = trained
    log, planned = (folder / "log.txt").read_text(), before["iteration"] + 2
    epochs = f"{planned * 2 / 8:.1f} epochs of 8 images"
    assert f"length of the training: {planned} iterations of 2 images, {epochs}\n" in log
    assert log.index("length of the training") < log.index("  iter: ")


def test_a_killed_training_goes_on_where_it_stopped(trained):
    folder, before = trained
    after, end = last(folder), before["iteration"] + 2
    assert after["iteration"] == end - 1
    old, new = (c["trainer"]["_trainer"]["optimizer"]["state"] for c in (before, after))
    for key, state in old.items():
        moved = new[key]["momentum_buffer"]
        assert_close(moved, 0.9 * state["momentum_buffer"], 2, name=f"momentum {key}")
    assert radii(after) == {torch.tensor((end - 1) / end).item()}
    encode = "roi_heads.box_head.conv1.norm.encode.weight"
    assert after["model"][encode].shape == (2, 4)
    assert not torch.equal(after["model"][encode], before["model"][encode])


def test_a_training_is_not_resumed_with_other_norms(trained):
    words = r"others: MODEL\.FPN\.NORM was 'SSN' and is 'SSN\(eps=1e-3\)'; give the norms"
    with pytest.raises(UserError, match=words):
        train(trained[0], "MODEL.FPN.NORM", "SSN(eps=1e-3)", resume=True)


def test_a_run_writes_its_record(trained):
    folder, before = trained
    found, total = read_record(folder), before["iteration"] + 2
    assert (found["unit"], found["planned"], found["run"]) == ("iterations", total, total)
    names = ("framework", "batch", "images", "test images", "seed")
    assert [found[name] for name in names] == ["detectron2", 2, 8, 4, 7]
    assert {"bbox/AP", "segm/AP"} <= found["metrics"][""].keys()
    assert {"iterations", "total_loss", "bbox/AP"} <= (names := found["curve"][-1].keys())
    assert not [name for name in names if "-" in name], "of single classes"
    points = [point["iterations"] for point in found["curve"]]
    assert points == sorted(set(points))
    assert points[-1] == total
    assert found["seconds"] > 0


def test_evaluation_finds_what_the_training_found(trained, tmp_path, capfd):
    folder, _ = trained
    results = folder / "inference" / "coco_instances_results.json"
    score = "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"
    found, before = [], read_record(folder)
    # As after a kill during the final evaluation.
    again = train(folder, "SOLVER.MAX_ITER", str(before["planned"]), resume=True)
    assert again["curve"] == before["curve"]
    assert again["metrics"][""].keys() >= {"bbox/AP"}
    train(folder, *score, resume=True, eval_only=True)
    assert read_record(folder)["run"] == last(folder)["iteration"] + 1  # it stays the training's
    found.append(json.loads(results.read_text()))
    capfd.readouterr()
    weights = "MODEL.WEIGHTS", f"{folder / 'model_final.pth'}?matching_heuristics=True"
    expected = "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 1000, 1]]"
    with pytest.raises(SystemExit):  # as detectron2's own tools end
        train(tmp_path, *score, *weights, *expected, eval_only=True)
    evaluated = read_record(tmp_path)
    assert "copypaste: Task: segm" in capfd.readouterr().out
    assert evaluated["run"] == 0
    assert evaluated["test images"] == 4
    found.append(json.loads((tmp_path / results.relative_to(folder)).read_text()))
    assert len(found[0]) > 10
    assert found[0] == found[1]


#: Settings that other training scripts of LazyConfigs read; the last one is off.
UNREAD = """
train.clip_grad = dict(enabled=True, params=dict(max_norm=1.0))
train.steps_of_gradients = 2
train.model_ema = dict(enabled=False)
"""


def lazy_options(folder, *overrides, code="", **more):
    """The options of a LazyConfig in a folder, where its output is in "out"; code is added."""
    (folder / "lazy.py").write_text(LAZY + code)
    overrides = (f"train.output_dir={folder / 'out'}", *overrides)
    return RunOptions(str(folder / "lazy.py"), overrides, **more)


@pytest.fixture(scope="module")
def resumed(datasets, tmp_path_factory):
    """The output folder of a LazyConfig, resumed after two of three iterations; options of DDP."""
    folder, ddp = tmp_path_factory.mktemp("lazy"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "create_ddp_model", lambda model, **o: ddp.update(o) or model)
        patch.setattr(training, "POINTS", 1)
        overrides = ("train.ddp.find_unused_parameters=True",)
        first = lazy_options(folder, *overrides, code=UNREAD, resume=True)
        start(first)
        ddp_of_first = dict(ddp)
        start(lazy_options(folder, "train.max_iter=3", resume=True))
    return folder / "out", ddp_of_first


def logged(out):
    return [json.loads(line) for line in (out / "metrics.json").open()]


def test_options_of_ddp_are_a_lazy_configs(resumed):
    _, ddp = resumed
    assert ddp["find_unused_parameters"]


def test_keys_of_a_lazy_config_that_no_training_reads_are_named(resumed):
    (line,) = [line for line in (resumed[0] / "log.txt").open() if "does not read" in line]
    assert "WARNING: train.clip_grad, train.steps_of_gradients: the command train" in line


def test_a_setting_that_a_lazy_configs_train_lacks_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"train\.ddp is missing"):
        start(lazy_options(tmp_path, code="del train['ddp']"))


def test_a_lazy_config_is_resumed(resumed):
    out, _ = resumed
    assert last(out)["iteration"] == 2
    # The evaluation at the end of each is an iteration after the last.
    assert [entry["iteration"] for entry in logged(out)] == [0, 1, 2, 2, 3]


def test_a_resumed_record_has_points_of_both_trainings(resumed):
    out, _ = resumed
    curve = read_record(out)["curve"]
    assert [point["iterations"] for point in curve] == [2, 3]
    # The log has the median since the start, here of two losses.
    assert abs(curve[0]["total_loss"] / logged(out)[1]["total_loss"] - 1) < 1e-6


def test_a_lazy_config_is_evaluated_after_training(resumed):
    out, _ = resumed
    assert "bbox/AP" in read_record(out)["metrics"][""]


def test_a_lazy_config_is_evaluated(resumed, tmp_path, capfd):
    out, _ = resumed
    weights = f"train.init_checkpoint={out / 'model_final.pth'}"
    start(lazy_options(tmp_path, weights, eval_only=True))
    assert "copypaste: Task: bbox" in capfd.readouterr().out


def test_a_frozen_stem_without_trained_statistics_is_told(datasets, tmp_path):
    words = "MODEL.RESNETS.NORM", "EN", "MODEL.BACKBONE.FREEZE_AT", "1", "SOLVER.MAX_ITER", "1"
    with pytest.warns(UserWarning, match=r"^backbone\.bottom_up\.stem\.conv1\.norm is frozen"):
        train(tmp_path, *words, *NO_TEST)


def test_a_loss_that_is_nan_ends_the_run_before_it_is_saved(datasets, tmp_path):
    words = "optimizer.lr=1e12", "train.checkpointer.period=1", "train.max_iter=9"
    with pytest.raises(FloatingPointError):
        start(lazy_options(tmp_path, *words, code="del dataloader['evaluator']\n"))
    out = tmp_path / "out"
    assert read_record(out)["diverged"]
    assert not (out / "model_final.pth").exists()
    assert all(value.isfinite().all() for value in last(out)["model"].values())


def test_a_training_that_fails_is_not_complete(datasets, tmp_path, monkeypatch):
    """detectron2 calls ``after_train`` after an exception, too."""
    step = training.engine.SimpleTrainer.run_step

    def fail(trainer):
        if trainer.iter == 1:
            raise RuntimeError("out of memory")
        step(trainer)

    monkeypatch.setattr(training.engine.SimpleTrainer, "run_step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, "SOLVER.MAX_ITER", "3", *NO_TEST)
    assert read_record(tmp_path)["run"] == 1


@pytest.mark.parametrize(
    "stage, start", [("before_train", 0), ("before_train", 1), ("before_step", 0)]
)
def test_nothing_is_evaluated_after_an_error(tmp_path, stage, start):
    """detectron2 calls ``after_train``, and evaluates if the last iteration was near."""
    trainer, failing = engine.TrainerBase(), engine.HookBase()
    trainer.data_loader, trainer.optimizer = [], torch.optim.SGD(torch.nn.Linear(1, 1).parameters())
    setattr(failing, stage, Mock(side_effect=RuntimeError("the first error")))
    evaluation = Mock(model=torch.nn.Identity())
    record = RunRecord(tmp_path, RunOptions(""), "detectron2")
    recording = training.RecordHook(OpenYaml("", get_cfg(), "cpu"), record, evaluation)
    evaluating = engine.hooks.EvalHook(0, recording.evaluate)
    trainer.register_hooks([failing, evaluating, recording])
    with pytest.raises(RuntimeError, match="the first error"):
        trainer.train(start, 1)
    evaluation.assert_not_called()


OF_FILE = "MODEL.WEIGHTS", "/nowhere/a.pth"


@pytest.mark.parametrize(
    "overrides, options, words",
    [
        ((*OF_FILE, *NO_TEST), {"eval_only": True}, "nothing to evaluate on: .* no DATASETS.TEST"),
        (OF_FILE, {"eval_only": True}, r"^checkpoint '.*a\.pth' does not exist; give a file$"),
        (("TEST.AUG.ENABLED", "True"), {}, "no test-time augmentation"),
        ((), {"eval_only": True, "resume": True}, "--resume: .* has no checkpoint"),
        ((), {"eval_only": True}, "nothing to evaluate"),
    ],
    ids=["no test", "no file", "augmentation", "nothing to resume", "no weights"],
)
def test_what_cannot_be_trained_or_evaluated_is_refused(tmp_path, overrides, options, words):
    with pytest.raises(UserError, match=words):
        train(tmp_path, *overrides, **options)


def test_a_folder_is_free_after_an_error_that_is_kept(tmp_path, monkeypatch):
    """As a notebook keeps an error, with the frames of its traceback."""
    monkeypatch.setattr("ilm_plugins.files.PATIENCE", 0)
    with pytest.raises(ValueError) as kept, lock(tmp_path):
        raise ValueError
    with lock(tmp_path):
        assert kept.tb


@pytest.mark.parametrize("eval_only", [False, True])
@pytest.mark.parametrize(
    "norm, near", [("ilmgn", "ILMGN"), ("ILMNG", "ILMGN"), ("bn", "BN"), ("en(reduction=8)", "EN")]
)
def test_an_unknown_norm_of_a_yaml_is_named_with_near_keys(tmp_path, norm, near, eval_only):
    words = (
        rf"^MODEL\.FPN\.NORM is '{re.escape(norm)}', an unknown norm; near ones are [^;]*\b{near}\b"
    )
    with pytest.raises(UserError, match=words):
        train(tmp_path, "MODEL.FPN.NORM", norm, eval_only=eval_only)


def test_an_unknown_norm_of_a_lazy_config_is_named_with_near_keys(datasets, tmp_path):
    words = r"^model\.backbone\.bottom_up\.stem\.norm is 'gn', an unknown norm; near ones are GN\b"
    with pytest.raises(UserError, match=words):
        start(lazy_options(tmp_path, "model.backbone.bottom_up.stem.norm=gn"))


#: GN, because each process has running statistics of its own, by which it evaluates.
OF_TWO = "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.FPN.NORM", "GN"


@pytest.fixture(scope="module")
def of_two(datasets, tmp_path_factory):
    """The output folder of a training by two processes."""
    out = tmp_path_factory.mktemp("two")
    train(out, "SOLVER.MAX_ITER", "2", *OF_TWO, num_processes=2)
    return out


@pytest.mark.wide
def test_two_processes_divide_the_batch(of_two):
    found = read_record(of_two)
    assert (found["processes"], found["batch"], found["images"], found["run"]) == (2, 2, 8, 2)
    assert "World size: 2" in (of_two / "log.txt.rank1").read_text()


@pytest.mark.wide
def test_two_processes_evaluate_as_one_does(of_two, tmp_path):
    train(tmp_path, *OF_TWO, "MODEL.WEIGHTS", str(of_two / "model_final.pth"), eval_only=True)
    results = []
    for out in (of_two, tmp_path):
        entries = json.loads((out / "inference/coco_instances_results.json").read_text())
        results.append(sorted((r["image_id"], round(r["score"], 4)) for r in entries))
    assert len(results[0]) > 10
    assert results[0] == results[1]
