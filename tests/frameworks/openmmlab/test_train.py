"""Training, evaluation and resuming of MMEngine's configs, and the record of a run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")

from torch import nn

from ilm_plugins.checkpoints import read
from ilm_plugins.cli import train
from ilm_plugins.frameworks import record
from ilm_plugins.frameworks.openmmlab.checkpoints import latest, use_safe_checkpoints
from ilm_plugins.frameworks.openmmlab.train import StopAtNaN
from runs import mmengine_command as command

use_safe_checkpoints()  # it lets MMEngine's log of losses be read


def derive(path, config, text):
    """Write a config that derives from another."""
    path.write_text(f"_base_ = {str(config)!r}\n{text}")
    return path


def test_a_training_leaves_checkpoints_and_its_record(trained):
    state = read(trained / "iter_4.pth")["state_dict"]
    assert state["decode_head.convs.0.gn.encode.weight"].shape == (2, 2)
    found = record.read(trained)
    names = ("unit", "planned", "run", "batch", "images", "seed", "processes", "metrics")
    assert [found[name] for name in names] == ["iterations", 4, 4, 2, 4, 0, 1, {}]
    assert [point["iterations"] for point in found["curve"]] == [1, 2, 3, 4]
    assert all(point["loss"] == point["decode.loss_ce"] > 0 for point in found["curve"])


def test_a_point_of_an_epoch_has_mean_losses_and_the_validation(config, tmp_path):
    text = (
        "val_dataloader = {{_base_.test_dataloader}}\nval_evaluator = {{_base_.test_evaluator}}\n"
        "val_cfg = dict()\ntrain_dataloader = dict(sampler=dict(type='DefaultSampler'))\n"
        "train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=2)\n"
        "log_processor = dict(by_epoch=True)\n"
    )
    path = derive(tmp_path / "epochs.py", config, text)
    assert train.main(command(path, out=tmp_path / "out")) == 0
    found = record.read(tmp_path / "out")
    assert (found["unit"], found["planned"]) == ("epochs", 2)
    (log,) = (tmp_path / "out").glob("*/vis_data/scalars.json")
    logged = [entry for entry in map(json.loads, log.open()) if "loss" in entry]
    assert [point["epochs"] for point in found["curve"]] == [1, 2]
    # The log has means of a window of 10 iterations.
    assert found["curve"][0]["loss"] == pytest.approx(logged[1]["loss"], abs=1e-4)
    assert all(0 <= point["mIoU"] <= 100 for point in found["curve"])


def test_a_killed_training_resumes_with_its_optimizer(config, tmp_path):
    out = tmp_path / "out"
    opts = ["train_cfg.max_iters=100000", "default_hooks.checkpoint.max_keep_ckpts=2"]
    code = "import sys; from ilm_plugins.cli import train; sys.exit(train.main(sys.argv[1:]))"
    words = map(str, command(config, out=out, opts=opts))
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL) as run:
        end = time.monotonic() + 180
        while not (out / "iter_6.pth").exists():
            assert run.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGKILL)
    first = read(latest(out))
    at = first["meta"]["iter"]
    # Gradients are clipped to nothing: the momentum alone moves the weights.
    clip = ["optim_wrapper.clip_grad._delete_=True", "optim_wrapper.clip_grad.max_norm=1e-30"]
    opts = [f"train_cfg.max_iters={at + 2}", *clip]
    assert train.main(command(config, "--resume", out=out, opts=opts)) == 0
    last = read(out / f"iter_{at + 2}.pth")
    group, state = first["optimizer"]["param_groups"][0], first["optimizer"]["state"]
    name, momentum, buffer = "backbone.conv1.weight", group["momentum"], state[0]["momentum_buffer"]
    expected = -group["lr"] * (momentum + momentum**2) * buffer
    moved = last["state_dict"][name] - first["state_dict"][name]
    assert buffer.any()
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-7)
    # Points between the checkpoint and the kill are replaced.
    steps = [point["iterations"] for point in record.read(out)["curve"]]
    assert steps == sorted(set(steps)) and steps[-1] == record.read(out)["run"] == at + 2


def test_resuming_without_a_checkpoint_starts_from_load_from(config, trained, tmp_path):
    opts = [f"load_from={trained / 'iter_4.pth'}", "train_cfg.max_iters=1"]
    assert train.main(command(config, "--resume", out=tmp_path, opts=opts)) == 0
    (point,) = record.read(tmp_path)["curve"]
    assert point["iterations"] == 1
    assert point["loss"] != record.read(trained)["curve"][0]["loss"]


def test_evaluations_are_recorded_beside_the_training(config, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "out")
    opts = ["train_dataloader.dataset.data_root=/nowhere"]  # an evaluation needs none
    for options in ([], ["--tta"]):
        argv = command(config, "--eval-only", "--resume", *options, out=out, opts=opts)
        assert train.main(argv) == 0
    elsewhere = [f"load_from={trained / 'iter_4.pth'}"]
    argv = command(config, "--eval-only", out=tmp_path / "other", opts=elsewhere)
    assert train.main(argv) == 0
    found, other = record.read(out), record.read(tmp_path / "other")
    assert found["curve"] == record.read(trained)["curve"] and found["test images"] == 4
    assert found["metrics"].keys() == {"", "tta"}
    assert found["metrics"][""] == other["metrics"][""] and other["planned"] == 0
    assert 0 < found["metrics"]["tta"]["mIoU"] < 100


@pytest.mark.parametrize(
    "options, word",
    [
        (["train_cfg.max_iters", "3"], "'train_cfg.max_iters' .* is not KEY=VALUE"),
        (["--eval-only"], "nothing to evaluate"),
        (["--tta"], "give --eval-only"),
        (["load_from=/nowhere/none.pth"], "none.pth' does not exist"),
    ],
)
def test_a_mistake_is_one_line(config, tmp_path, capfd, options, word):
    flags = [option for option in options if option.startswith("--")]
    opts = [option for option in options if option not in flags]
    assert train.main(command(config, *flags, out=tmp_path, opts=opts)) == 2
    assert re.search(f"error: .*{word}", capfd.readouterr().err.splitlines()[-1])


def test_a_loss_that_is_nan_ends_the_run_before_it_is_saved(config, tmp_path):
    opts = ["optim_wrapper.optimizer.lr=1e30", "default_hooks.checkpoint.interval=1"]
    with pytest.raises(FloatingPointError, match="the loss became infinite or NaN at") as error:
        train.main(command(config, out=tmp_path, opts=opts))
    # Its number from 0 is that of the iterations before it, of which the last was saved.
    iteration = int(str(error.value).split()[-1])
    assert latest(tmp_path) == str(tmp_path / f"iter_{iteration}.pth")
    assert record.read(tmp_path)["diverged"] == str(error.value)


def test_only_losses_count_and_in_float32():
    hook, runner = StopAtNaN(), SimpleNamespace(iter=4, model=nn.Linear(2, 2))
    fine = {"loss": torch.full((9,), 6e4, dtype=torch.float16), "acc": torch.tensor(torch.nan)}
    hook.after_train_iter(runner, 0, outputs=fine)
    with pytest.raises(FloatingPointError, match="at iteration 4"):
        hook.after_train_iter(runner, 0, outputs={"loss_bbox": torch.tensor([1, torch.inf])})
    hook.before_save_checkpoint(runner, {})
    runner.model.bias.data[1] = torch.inf
    with pytest.raises(FloatingPointError, match="weights became infinite or NaN at iteration 4"):
        hook.before_save_checkpoint(runner, {})


SPOIL = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Spoil(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == 3:
            data_batch["inputs"] = [x.float() * float("nan") for x in data_batch["inputs"]]
"""


def test_two_processes_end_with_the_nan_of_one(config, tmp_path, monkeypatch, capfd):
    """SyncBN becomes BN on the CPU; gradients carry the NaN to all weights, which are not saved."""
    (tmp_path / "spoil.py").write_text(SPOIL)
    monkeypatch.syspath_prepend(tmp_path)  # the processes that are started get this path
    text = (
        "custom_imports = dict(imports=['ilm_plugins', 'spoil'])\n"
        "custom_hooks = [dict(type='Spoil')]\nsync_bn = 'torch'\n"
        "model = dict(decode_head=dict(norm_cfg=dict(_delete_=True, type='SyncBN')))\n"
    )
    path, out = derive(tmp_path / "two.py", config, text), tmp_path / "out"
    opts = ["train_cfg.max_iters=9", "default_hooks.checkpoint.interval=1"]
    assert train.main(command(path, "--num-processes", "2", out=out, opts=opts)) == 2
    assert "infinite or NaN at iteration 3" in capfd.readouterr().err.splitlines()[-1]
    assert {path.name for path in out.glob("*.pth")} == {f"iter_{i}.pth" for i in (1, 2, 3)}
    found = record.read(out)
    assert (found["processes"], found["batch"]) == (2, 4)
    assert [point["iterations"] for point in found["curve"]][:3] == [1, 2, 3]


def test_channels_last_is_an_entry_of_a_config(config, tmp_path):
    opts = ["channels_last=True", "train_cfg.max_iters=2"]
    assert train.main(command(config, out=tmp_path, opts=opts)) == 0
    weight = read(tmp_path / "iter_2.pth")["state_dict"]["backbone.layer1.0.conv1.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_ssns_radius_is_set_without_a_hook_in_the_config(config, tmp_path):
    opts = ["model.backbone.norm_cfg.type=SSN", "model.backbone.norm_cfg._delete_=True"]
    assert train.main(command(config, out=tmp_path, opts=opts)) == 0
    saved = read(tmp_path / "iter_4.pth")["state_dict"]
    radii = [value for name, value in saved.items() if name.endswith(".radius")]
    assert radii and all(value == 3 / 4 for value in radii)
