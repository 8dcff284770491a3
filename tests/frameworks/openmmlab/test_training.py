"""Training, evaluation and resuming of MMEngine's configs, and the record of a run."""

import json
import re
import shutil
from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch

pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from helpers.close import assert_close, assert_equal
from helpers.trainings import mmengine_command as command
from helpers.trainings import train_until_killed
from ilm_plugins.__main__ import main
from ilm_plugins.checkpoints import read
from ilm_plugins.files import lock
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.openmmlab.checkpoints import (
    latest,
    use_safe_checkpoints,
)
from ilm_plugins.frameworks.openmmlab.training import PluginRunner, StopAtNaN, numbers
from ilm_plugins.frameworks.run.record import read_record, write_record

use_safe_checkpoints()  # it lets MMEngine's log of losses be read


def test_a_frozen_backbone_without_trained_statistics_is_told(config, tmp_path):
    part = "model.backbone"
    opts = [f"{part}.norm_cfg._delete_=True", f"{part}.norm_cfg.type=EN", f"{part}.norm_eval=True"]
    with pytest.warns(UserWarning, match=r"^backbone\.gn1 is frozen, .* but not trained"):
        assert main(command(config, out=tmp_path / "out", opts=opts)) == 0


def test_a_training_leaves_checkpoints(trained):
    state = read(trained / "iter_4.pth")["state_dict"]
    assert state["decode_head.convs.0.gn.encode.weight"].shape == (2, 2)


def test_a_training_leaves_its_record(trained):
    found = read_record(trained)
    names = ("unit", "planned", "run", "batch", "images", "seed", "processes", "metrics")
    assert [found[name] for name in names] == ["iterations", 4, 4, 2, 4, 0, 1, {}]


def test_a_record_has_the_losses_of_each_iteration(trained):
    curve = read_record(trained)["curve"]
    assert [point["iterations"] for point in curve] == [1, 2, 3, 4]
    assert all(point["loss"] == point["decode.loss_ce"] > 0 for point in curve)


@pytest.fixture(scope="module")
def epochs(config, tmp_path_factory):
    """The output folder of two epochs with validation."""
    folder = tmp_path_factory.mktemp("epochs")
    text = (
        "val_dataloader = dict(_base_.test_dataloader, _delete_=True)\n"
        "val_evaluator = dict(_base_.test_evaluator, _delete_=True)\n"
        "val_cfg = dict(_delete_=True)\n"
        "train_dataloader = dict(sampler=dict(type='DefaultSampler'))\n"
        "train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=2)\n"
        "log_processor = dict(by_epoch=True)\n"
    )
    (folder / "epochs.py").write_text(f"_base_ = {str(config)!r}\n{text}")
    assert main(command(folder / "epochs.py", out=folder / "out")) == 0
    return folder / "out"


def test_a_training_by_epochs_is_recorded_in_epochs(epochs):
    found = read_record(epochs)
    assert (found["unit"], found["planned"]) == ("epochs", 2)
    assert [point["epochs"] for point in found["curve"]] == [1, 2]


def test_a_point_of_an_epoch_has_mean_losses(epochs):
    (log,) = epochs.glob("*/vis_data/scalars.json")
    entries = [entry for entry in map(json.loads, log.open()) if "loss" in entry]
    # The log has means of a window of 10 iterations, of 4 decimals.
    assert abs(read_record(epochs)["curve"][0]["loss"] - entries[1]["loss"]) <= 1e-4


def test_a_point_of_an_epoch_has_the_validation(epochs):
    curve = read_record(epochs)["curve"]
    assert all(0 <= point["mIoU"] <= 100 for point in curve)


@pytest.mark.wide
def test_two_processes_that_are_killed_resume_with_their_optimizer(config, launcher, tmp_path):
    """Also with an entry for channels_last, SyncBN, which is for GPUs, and SSN without a hook."""
    text = (
        "channels_last = True\nsync_bn = 'torch'\n"
        "model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='SSN')),\n"
        "    decode_head=dict(norm_cfg=dict(_delete_=True, type='SyncBN')))\n"
        "default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))\n"
    )
    path, out = tmp_path / "two.py", tmp_path / "out"
    path.write_text(f"_base_ = {str(config)!r}\n{text}")
    opts = ["train_cfg.max_iters=100000"]
    words = command(path, "--num-processes", "2", out=out, opts=opts)
    train_until_killed(launcher, words, out / "iter_4.pth")
    found = read_record(out)
    assert (found["processes"], found["batch"], found["planned"]) == (2, 4, 100000)

    first = read(latest(out))
    at, code = first["meta"]["iter"], {"config": "raise RuntimeError"}  # which MMEngine would run
    torch.save({**first, "meta": first["meta"] | code}, latest(out))
    # Gradients are clipped to nothing: the momentum alone moves the weights.
    opts = [f"train_cfg.max_iters={at + 2}", "optim_wrapper.clip_grad.max_norm=1e-30"]
    assert main(command(path, "--resume", out=out, opts=opts)) == 0
    last = read(out / f"iter_{at + 2}.pth")
    group, state = first["optimizer"]["param_groups"][0], first["optimizer"]["state"]
    name, momentum, buffer = "backbone.conv1.weight", group["momentum"], state[0]["momentum_buffer"]
    expected = first["state_dict"][name] - group["lr"] * (momentum + momentum**2) * buffer
    assert buffer.any()
    assert not torch.equal(expected, first["state_dict"][name])
    assert_close(last["state_dict"][name], expected, 16)
    # Points between the checkpoint and the kill are replaced.
    steps = [point["iterations"] for point in read_record(out)["curve"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == read_record(out)["run"] == at + 2

    radii = {value.item() for name, value in last["state_dict"].items() if name[-7:] == ".radius"}
    assert radii == {torch.tensor((at + 1) / (at + 2)).item()}
    weight = last["state_dict"]["backbone.layer1.0.conv1.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_a_resumed_training_records_the_learning_rate_that_it_keeps(config, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    opts = ["optim_wrapper.optimizer.lr=0.5", "train_cfg.max_iters=5"]
    assert main(command(config, "--resume", out=tmp_path / "out", opts=opts)) == 0
    assert read_record(tmp_path / "out")["learning rate"] == 0.01


@pytest.mark.parametrize("by_epoch", [False, pytest.param(True, marks=pytest.mark.wide)])
def test_a_longer_training_resumes_with_the_schedule_of_its_config(config, tmp_path, by_epoch):
    """MMEngine restores the settings of the schedule, by which the rate would stay at 0."""
    loop = "by_epoch=True, max_epochs=2" if by_epoch else "type='IterBasedTrainLoop', max_iters=2"
    text = (
        f"_base_ = {str(config)!r}\ntrain_cfg = dict(_delete_=True, {loop})\n"
        "train_dataloader = dict(sampler=dict(type='DefaultSampler'))\n"
        "param_scheduler = dict(_delete_=True, type='LinearLR', start_factor=1, end_factor=0,\n"
        f"    begin=0, end=3, by_epoch={by_epoch})\n"
        f"default_hooks = dict(checkpoint=dict(by_epoch={by_epoch}, interval=1))\n"
    )
    if not by_epoch:
        text = text.replace("DefaultSampler", "InfiniteSampler")
    (tmp_path / "linear.py").write_text(text)
    first = command(tmp_path / "linear.py", out=tmp_path / "out")
    assert main(first) == 0
    end = "train_cfg.max_epochs=4" if by_epoch else "train_cfg.max_iters=4"
    opts = [end, "param_scheduler.end=9"]
    assert main(command(tmp_path / "linear.py", "--resume", out=tmp_path / "out", opts=opts)) == 0
    *_, log = sorted(tmp_path.glob("out/*/vis_data/scalars.json"))
    rates = [entry["lr"] for entry in map(json.loads, log.open()) if "lr" in entry]
    per_step = 2 if by_epoch else 1
    expected = [0.01 * (1 - step / 8) for step in (2, 3) for _ in range(per_step)]
    # MMEngine names a folder by the second: both trainings may have one log.
    assert rates[-len(expected) :] == pytest.approx(expected, rel=1e-6)


def test_resuming_without_a_checkpoint_starts_from_load_from(
    config, trained, tmp_path, monkeypatch
):
    opts = [f"load_from={trained / 'iter_4.pth'}", "train_cfg.max_iters=1"]
    assert main(command(config, "--resume", out=tmp_path, opts=opts)) == 0
    (point,) = read_record(tmp_path)["curve"]
    assert point["iterations"] == 1
    assert point["loss"] != read_record(trained)["curve"][0]["loss"]
    monkeypatch.setattr("ilm_plugins.frameworks.openmmlab.training.POINTS", 2)
    opts[1] = "train_cfg.max_iters=5"  # the last iteration is always recorded
    assert main(command(config, "--resume", out=tmp_path, opts=opts)) == 0
    assert [point["iterations"] for point in read_record(tmp_path)["curve"]] == [1, 2, 4, 5]


def test_evaluations_are_recorded_beside_the_training(config, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("ilm_plugins.files.PATIENCE", 0)
    out = shutil.copytree(trained, tmp_path / "out")
    opts = ["train_dataloader.dataset.data_root=/nowhere"]  # an evaluation needs none
    for options in ([], ["--tta"]):
        argv = command(config, "--eval-only", "--resume", *options, out=out, opts=opts)
        with lock(out):  # as while the training goes on
            assert main(argv) == 0
            assert main(command(config, out=out)) == 2
    elsewhere = [f"load_from={trained / 'iter_4.pth'}"]
    argv = command(config, "--eval-only", out=tmp_path / "other", opts=elsewhere)
    assert main(argv) == 0
    found, other = read_record(out), read_record(tmp_path / "other")
    assert found["curve"] == read_record(trained)["curve"]
    assert found["test images"] == 4
    assert found["metrics"].keys() == {"", "tta"}
    assert found["metrics"][""] == other["metrics"][""]
    assert other["planned"] == 0
    assert 0 < found["metrics"]["tta"]["mIoU"] < 100


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_a_wrapped_model_are_loaded(config, trained, tmp_path, prefix):
    state = read(trained / "iter_4.pth")["state_dict"]
    torch.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, tmp_path / "w.pth")
    opened = open_config(str(config), [f"work_dir={tmp_path}", f"experiment_name={tmp_path.name}"])
    runner = PluginRunner.from_cfg(opened.config)
    runner.load_checkpoint(str(tmp_path / "w.pth"))
    assert_equal(dict(runner.model.state_dict()), dict(state))


@pytest.mark.parametrize("tta", [[], ["--tta"]])
def test_weights_of_another_norm_give_a_warning_to_convert_them(config, tmp_path, capfd, tta):
    norm = "model.decode_head.norm_cfg"
    plain = open_config(str(config), [f"{norm}._delete_=True", f"{norm}.type=BN"]).build_model()
    weights = tmp_path / "bn.pth"
    torch.save({"state_dict": plain.state_dict()}, weights)
    opts = [f"load_from={weights}"]
    assert main(command(config, "--eval-only", *tta, out=tmp_path, opts=opts)) == 0
    layers = sum(type(module) is nn.BatchNorm2d for module in plain.modules())
    printed = capfd.readouterr()
    told = (
        f"the checkpoint for EncoderDecoder has another norm's weights for {layers} layers, such "
        "as decode_head.convs.0.gn, which"
    )
    assert (printed.out + printed.err).count(told) == 1


@pytest.mark.parametrize(
    "options, word",
    [
        (["train_cfg.max_iters", "3"], "'train_cfg.max_iters' .* is not KEY=VALUE"),
        (["--eval-only"], "nothing to evaluate"),
        (["--eval-only", "--resume", "load_from=other.pth"], "--resume: .* has no checkpoint"),
        (["--tta"], "give --eval-only"),
        (["dataset.data_root=a"], "dataset is a variable .*; give the keys that have its value"),
        (["model.decode_head.norm_cfg.type=ILMNG"], "'ILMNG', an unknown norm; near ones are ILM"),
        (["load_from=/nowhere/none.pth"], "none.pth' does not exist"),
        (["load_from=other.pth"], "other.pth' is of another model"),
        (["load_from=two.pth"], "two.pth' holds tensors in 'student', 'teacher'; save one"),
    ],
)
def test_a_mistake_is_one_line(config, tmp_path, capfd, monkeypatch, options, word):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": torch.ones(1)}}, "other.pth")
    torch.save({name: {"weight": torch.ones(1)} for name in ("student", "teacher")}, "two.pth")
    flags = [option for option in options if option.startswith("--")]
    opts = [option for option in options if option not in flags]
    assert main(command(config, *flags, out=tmp_path, opts=opts)) == 2
    assert re.search(f"error: .*{word}", capfd.readouterr().err.splitlines()[-1])


def test_a_loss_that_is_nan_ends_the_run_before_it_is_saved(config, tmp_path):
    opts = ["optim_wrapper.optimizer.lr=1e30", "default_hooks.checkpoint.interval=1"]
    with pytest.raises(FloatingPointError, match="the loss became infinite or NaN at") as error:
        main(command(config, out=tmp_path, opts=opts))
    # Its number from 0 is that of the iterations before it, of which the last was saved.
    iteration = int(re.search(r"iteration (\d+)", str(error.value))[1])
    assert latest(tmp_path) == str(tmp_path / f"iter_{iteration}.pth")
    assert read_record(tmp_path)["diverged"] == str(error.value)


@pytest.mark.parametrize("size, name", [(6_000, ""), (100_000, "/iter_1.pth")])
def test_a_full_disk_ends_a_training_with_one_line(
    config, tmp_path, capsys, small_files, monkeypatch, size, name
):
    """Already for the log of a training, or for its checkpoint."""
    monkeypatch.setattr("logging.raiseExceptions", True)  # restored afterwards
    with small_files(size):
        assert main(command(config, out=tmp_path / "out", opts=["train_cfg.max_iters=1"])) == 2
    error = capsys.readouterr().err
    words = f"error: {tmp_path}/out{name} cannot be written to (File too large); free space, then "
    assert words + "the same command with --resume continues" in error
    assert "Traceback" not in error
    assert not name or read_record(tmp_path / "out")["run"] == 0


def test_a_training_that_stops_early_says_so(config, tmp_path):
    class Stop(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.train_loop.stop_training = True

    HOOKS.register_module(name="StopAtOnce", module=Stop, force=True)
    path = tmp_path / "stop.py"
    path.write_text(f"_base_ = {str(config)!r}\ncustom_hooks = [dict(type='StopAtOnce')]\n")
    assert main(command(path, out=tmp_path / "out")) == 0
    found = read_record(tmp_path / "out")
    assert (found["run"], found["stopped early"]) == (1, True)


def test_a_record_that_a_kill_left_behind_its_checkpoint_is_completed(config, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "out")
    write_record(out / "record.json", {**read_record(out), "run": 3})
    assert main(command(config, "--resume", out=out)) == 0
    assert read_record(out)["run"] == 4


def test_a_record_has_finite_numbers_of_six_decimals():
    given = {"a": torch.tensor(1.23456789), "nan": float("nan"), "b": 2, "c": "d"}
    assert numbers(given) == {"a": 1.234568, "b": 2}


def test_an_ap_that_pycocotools_could_not_measure_is_no_number():
    """It is -1, which compare would subtract, and reproduce call -100 %."""
    objects, names = {"images": [{"id": 1}], "categories": [{"id": 1}]}, ("mAP", "mAP_50")
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 99, 99], "area": 9801, "iscrowd": 0}
    truth = COCO()
    truth.dataset = {**objects, "annotations": [{"id": 1, **box}]}
    truth.createIndex()
    test = COCOeval(truth, truth.loadRes([{**box, "score": 1.0}]), "bbox")
    test.params.maxDets = [1, 10, 500]
    for step in (test.evaluate, test.accumulate, test.summarize):
        step()
    given = dict(zip((f"coco/bbox_{name}" for name in names), test.stats, strict=False))
    assert given["coco/bbox_mAP"] == -1
    assert numbers({**given, "loss": -1}) == {"coco/bbox_mAP_50": 1, "loss": -1}
    assert not numbers({"coco/AR_s@1000": -1.0, "coco/bbox_AR@100": -1.0})


def test_mmengines_own_resume_goes_on(config, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    before = read(tmp_path / "out" / "iter_4.pth")["state_dict"]
    opts = [f"load_from={tmp_path / 'out' / 'iter_4.pth'}", "resume=True", "train_cfg.max_iters=5"]
    assert main(command(config, out=tmp_path / "out", opts=opts)) == 0
    record = read_record(tmp_path / "out")
    assert [point["iterations"] for point in record["curve"]] == [1, 2, 3, 4, 5]
    after = read(tmp_path / "out" / "iter_4.pth")["state_dict"]
    assert torch.equal(after["backbone.conv1.weight"], before["backbone.conv1.weight"])


def test_mmengines_own_resume_does_not_go_on_with_another_norm(config, trained, capsys):
    opts = ["resume=True", "model.backbone.norm_cfg.num_groups=2"]
    assert main(command(config, out=trained, opts=opts)) == 2
    assert "model.backbone.norm_cfg.num_groups was 4 and is 2" in capsys.readouterr().err


def test_an_evaluation_of_an_earlier_checkpoint_leaves_the_trainings_metrics(
    config, trained, tmp_path
):
    shutil.copytree(trained, tmp_path / "out")
    assert main(command(config, "--eval-only", "--resume", out=tmp_path / "out")) == 0
    before = read_record(tmp_path / "out")["metrics"]
    opts = [f"load_from={tmp_path / 'out' / 'iter_2.pth'}"]
    assert main(command(config, "--eval-only", out=tmp_path / "out", opts=opts)) == 0
    found = read_record(tmp_path / "out")
    assert found["metrics"] == before
    assert "iter_2.pth" in found["other evaluations"][0]["command"]


def test_an_evaluation_on_other_images_leaves_the_trainings_metrics(config, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    words = "--eval-only", "--resume"
    assert main(command(config, *words, out=tmp_path / "out")) == 0
    before = read_record(tmp_path / "out")["metrics"]
    opts = ["test_dataloader.dataset.data_prefix.img_path=images/training"]
    opts.append("test_dataloader.dataset.data_prefix.seg_map_path=annotations/training")
    assert main(command(config, *words, out=tmp_path / "out", opts=opts)) == 0
    found = read_record(tmp_path / "out")
    assert before
    assert found["metrics"] == before
    assert [other["test images"] for other in found["other evaluations"]] == [8]


@pytest.fixture
def runner():
    return SimpleNamespace(iter=4, model=nn.Linear(2, 2))


def test_a_large_loss_of_float16_does_not_end_a_run(runner):
    """Nor does an accuracy of NaN."""
    fine = {"loss": torch.full((9,), 6e4, dtype=torch.float16), "acc": torch.tensor(torch.nan)}
    StopAtNaN().after_train_iter(runner, 0, outputs=fine)


def test_an_infinite_loss_ends_a_run(runner):
    with pytest.raises(FloatingPointError, match="at iteration 4"):
        StopAtNaN().after_train_iter(runner, 0, outputs={"loss_bbox": torch.tensor([1, torch.inf])})


def test_infinite_weights_end_a_run_before_they_are_saved(runner):
    """As the gradients of another process make them."""
    runner.model.bias.data[1] = torch.inf
    with pytest.raises(FloatingPointError, match="weights became infinite or NaN at iteration 4"):
        StopAtNaN().before_save_checkpoint(runner, {})


def test_a_single_step_knows_how_far_a_training_is(config):
    """Some models of mmdet compute with it."""
    MessageHub.get_instance(uuid4().hex)  # of its own, without what earlier trainings wrote
    open_config(str(config)).training_step()
    found = MessageHub.get_current_instance()
    assert [found.get_info(name) for name in ("epoch", "iter")] == [0, 0]
