"""pix2pix through tools/train_net.py: training, evaluation, exact resuming, and mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")
pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS, DATASETS, METRICS, PARAM_SCHEDULERS
from PIL import Image
from torch.utils.data import DataLoader

from feature_maps import OPTIONS, convolutions
from ilm_plugins.cli import train_net
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.openmmlab import deterministic_resume
from ilm_plugins.frameworks.openmmlab.deterministic_resume import ExactSampler
from ilm_plugins.pix2pix import metrics
from ilm_plugins.pix2pix.training import OptimizerEach
from runs import LOADERS


def entries(out):
    return [json.loads(line) for f in out.glob("*/vis_data/scalars.json") for line in f.open()]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_training_leaves_losses_samples_and_both_networks(trained):
    losses = [e for e in entries(trained) if "loss_G_L1" in e]
    first, last = (e["rmse"] for e in entries(trained) if "rmse" in e)
    assert len(losses) == 16 and last < first
    assert {"loss_D_real", "loss_D_fake", "loss_G_GAN", "generator.lr"} <= losses[0].keys()
    (log,) = trained.glob("*/*.log")
    assert re.search(r"Epoch\(train\) \[1\]\[4/8\].* eta: 0:0.*loss_G_L1: ", log.read_text())
    assert "lpips is not computed" in log.read_text()
    # Four rows of input, output and target.
    assert pixels(trained / "samples" / "epoch_0002.png").shape == (4 * 64, 3 * 64, 3)
    assert list(trained.glob("*/vis_data/events.out.tfevents*"))
    saved = torch.load(trained / "epoch_2.pth", weights_only=False)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"generator", "discriminator"}
    assert saved["optimizer"].keys() == {"generator", "discriminator"}
    for state in saved["optimizer"].values():
        assert len(state["state"]) == len(state["param_groups"][0]["params"]) > 0


def test_samples_go_to_tensorboard(trained):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (file,) = trained.glob("*/vis_data/events.out.tfevents*")
    events = accumulator.EventAccumulator(str(file)).Reload()
    assert [event.step for event in events.Images("samples")] == [1, 2]
    assert len(events.Scalars("loss_G_L1")) == 16 and events.Scalars("rmse")


def test_evaluation_prints_what_the_written_images_have(
    command, trained, datasets, tmp_path, capfd
):
    trained = shutil.copytree(trained, tmp_path / "out")
    (trained / "test" / "output").mkdir(parents=True)
    (trained / "test" / "output" / "of another test.png").touch()
    assert train_net.main(command("--eval-only", "--resume", out=trained)) == 0
    printed = capfd.readouterr().out
    outputs, targets = (trained / "test" / kind for kind in ("output", "target"))
    assert len(list(outputs.iterdir())) == len(list(targets.iterdir())) == 4
    pair = pixels(next((datasets / "shapes" / "pairs" / "validation").glob("000002.*")))
    assert np.array_equal(pixels(targets / "000002.png"), pair[:, :64])
    assert np.array_equal(pixels(trained / "test" / "input" / "000002.png"), pair[:, 64:])
    files = sorted(p.name for p in outputs.iterdir())
    pairs = ((metrics.read(outputs / n), metrics.read(targets / n)) for n in files)
    expected = metrics.compare(pairs, metrics.MEASURES)
    shown = {
        name: float(re.findall(rf"{name}: ([\d.]+)", printed)[-1]) for name in metrics.MEASURES
    }
    assert {**shown, "images": 4} == pytest.approx(expected, abs=1e-4)


def test_channels_last_and_mixed_precision(command, tmp_path):
    """Of several optimizers, one of another type; then on, in another layout."""
    replaced = "optim_wrapper.generator.optimizer={'type':'RMSprop','lr':1e-4,'_delete_':True}"
    opts = ["train_dataloader.dataset.images=[0,1]", "train_cfg.val_interval=9", replaced]
    opts += ["default_hooks.checkpoint.interval=1"]
    options = "--amp", "--channels-last"
    with convolutions() as found:
        argv = command(*options, out=tmp_path, opts=[*opts, "train_cfg.max_epochs=1"])
        assert train_net.main(argv) == 0
    assert set(found) == {OPTIONS[options]}
    assert train_net.main(command("--resume", out=tmp_path, opts=opts)) == 0
    layouts = []
    for epoch in (1, 2):
        saved = torch.load(tmp_path / f"epoch_{epoch}.pth", weights_only=False)["optimizer"]
        assert "square_avg" in saved["generator"]["state"][0]
        moments = [v for part in saved.values() for s in part["state"].values() for v in s.values()]
        layouts.append({v.is_contiguous() for v in moments if v.ndim == 4 and v.shape[1] > 1})
    assert layouts == [{False}, {True}]


KILL = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Kill(Hook):
    priority = "LOWEST"
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 12:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.wide
@pytest.mark.parametrize("options", [(), ("--amp", "--channels-last")], ids=" ".join)
def test_a_killed_run_resumes_to_the_same_weights(root, command, tmp_path, options):
    """Bit for bit, with the weights' average and the optimizers; loaded here or in workers."""
    (tmp_path / "kill.py").write_text(KILL)
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = {str(root / 'configs/pix2pix/shapes_ilmin_in.py')!r}\n"
        "custom_imports = dict(imports=['ilm_plugins', 'kill'])\n"
    )
    ema = "{'type': 'EMAHook', 'momentum': 0.1}"
    opts = ["train_cfg.max_epochs=3", "default_hooks.checkpoint.by_epoch=False"]
    opts += ["default_hooks.checkpoint.interval=3", f"custom_hooks=[{ema}]"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert train_net.main(command(*options, out=whole, opts=opts)) == 0
        hooks = f"custom_hooks=[{ema}, {{'type': 'Kill'}}]"
        words = command(*options, out=killed, opts=[*opts, hooks], config=config)
        done = subprocess.run(
            [sys.executable, root / "tools" / "train_net.py", *words],
            env={**os.environ, "PYTHONPATH": f"{root}:{tmp_path}", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        # In the middle of the second epoch of eight.
        assert (killed / "last_checkpoint").read_text().endswith("iter_12.pth")
        opts.append("train_dataloader.num_workers=2")
        assert train_net.main(command("--resume", *options, out=killed, opts=opts)) == 0
    finally:
        torch.set_num_threads(threads)
    a, b = (torch.load(out / "iter_24.pth", weights_only=False) for out in (whole, killed))
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
    average = a["ema_state_dict"]["module.generator.down.0.1.weight"]
    assert not torch.equal(a["state_dict"]["generator.down.0.1.weight"], average)


@pytest.mark.wide
def test_several_processes_train_as_one_with_a_larger_batch(root, command, tmp_path):
    """In one step: further ones drive rounding apart, by an absolute value and rectifiers."""
    plain = "{'type': 'SGD', 'lr': 0.01, '_delete_': True}"
    opts = ["train_cfg.max_epochs=1", "model.generator.dropout=0"]
    opts += [f"optim_wrapper.{n}.optimizer={plain}" for n in ("generator", "discriminator")]
    one, two = tmp_path / "one", tmp_path / "two"
    opts += ["default_hooks.checkpoint.interval=1", "train_dataloader.dataset.images=[0,2]"]
    assert train_net.main(command(out=one, opts=[*opts, "train_dataloader.batch_size=2"])) == 0
    words = command("--num-processes", "2", out=two, opts=opts)
    done = subprocess.run(
        [sys.executable, root / "tools" / "train_net.py", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [e["step"] for e in entries(two) if "loss_G_L1" in e] == [1]
    a, b = (torch.load(o / "epoch_1.pth", weights_only=False)["state_dict"] for o in (one, two))
    torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def paired(root, **options):
    options = {"size": 64, **options}
    return DATASETS.build({"type": "PairedImages", "data_root": str(root), **options})


@pytest.fixture
def pairs(datasets):
    return datasets / "shapes" / "pairs" / "training"


def test_a_sample_is_the_same_wherever_it_is_loaded(pairs):
    data = paired(pairs, load_size=72)
    sampler = ExactSampler(data, seed=3)
    sampler.start(3, 5, 0)
    loaded = [
        [s["input"] for s in DataLoader(data, None, sampler=sampler, num_workers=n)] for n in (0, 2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*loaded, strict=True)) and len(loaded[0]) == 8
    draws = [(0, 3, 5), (0, 3, 6), (0, 4, 5)]
    assert len({tuple(data[draw]["input"].flatten().tolist()) for draw in draws}) == 3
    # Under another sampler torch's generator decides.
    torch.manual_seed(0)
    first = [data[0]["input"] for _ in range(4)]
    torch.manual_seed(0)
    assert all(torch.equal(x, data[0]["input"]) for x in first)
    assert not all(torch.equal(x, first[0]) for x in first)


def test_two_folders_and_a_range_of_pairs(pairs, datasets):
    photos, masks = "images/training", "annotations/training"
    prefix = {"input_path": masks, "target_path": photos}
    data = paired(datasets / "shapes", data_prefix=prefix, images=(2, 5))
    assert [sample["name"] for sample in data] == ["000002", "000003", "000004"]
    other = paired(pairs, images=(2, None))
    assert len(other) == 6
    assert torch.equal(data[0]["target"], metrics.read(datasets / "shapes" / photos / "000002.jpg"))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_an_epoch(world_size, monkeypatch):
    drawn = []
    for rank in range(world_size):
        monkeypatch.setattr(
            deterministic_resume, "get_dist_info", lambda rank=rank: (rank, world_size)
        )
        sampler = DATA_SAMPLERS.build({"type": "ExactSampler"}, default_args={"dataset": range(8)})
        sampler.start(1, 2, 0)
        whole = list(sampler)
        assert len(whole) == len(sampler) == -(-8 // world_size)
        sampler.start(1, 2, 2)
        assert list(sampler) == whole[2:]
        drawn += whole
    assert {draw[0] for draw in drawn} == set(range(8)) and {draw[1:] for draw in drawn} == {(1, 2)}
    sampler.start(1, 3, 0)
    assert [d[0] for d in sampler] != [d[0] for d in whole]


def test_in_order_without_shuffling():
    assert [d[0] for d in ExactSampler(range(4), shuffle=False)] == [0, 1, 2, 3]


@pytest.mark.parametrize("epochs", [1, 2, 7, 200])
def test_the_rate_is_constant_for_half_then_falls_to_zero(epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = PARAM_SCHEDULERS.build(
        {"type": "HalfLinearLR"}, default_args={"optimizer": optimizer, "end": epochs}
    )
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    half = epochs // 2
    assert rates[: half + 1] == (half + 1) * [0.4]
    falls = -np.diff(rates[half:])
    np.testing.assert_allclose(falls, 0.4 / (epochs - half), rtol=1e-6)
    assert rates[-1] == pytest.approx(0.4 / (epochs - half))
    # Resumed where the schedule has ended, the last rate stays.
    resumed = PARAM_SCHEDULERS.build(
        {"type": "HalfLinearLR"}, default_args={"optimizer": optimizer, "end": epochs}
    )
    for steps in (epochs, 3 * epochs):
        resumed.load_state_dict({**scheduler.state_dict(), "_global_step": steps})
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rates[-1])


def test_a_network_may_have_options_for_its_own_parameters():
    model = torch.nn.ModuleDict({name: torch.nn.BatchNorm2d(2) for name in ("generator", "other")})
    sgd = {"optimizer": {"type": "SGD", "lr": 0.1, "weight_decay": 0.5}}
    own = {**sgd, "paramwise_cfg": {"norm_decay_mult": 0.0}}
    build = OptimizerEach({"generator": own, "other": sgd}, {"norm_decay_mult": 0.1})
    model.generator, model.other = model["generator"], model["other"]
    decays = {n: w.optimizer.param_groups[0]["weight_decay"] for n, w in build(model).items()}
    assert decays == {"generator": 0.0, "other": pytest.approx(0.05)}


def refused(argv, capsys):
    """The one line that a mistake prints."""
    assert train_net.main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert ": error: " in error
    return error


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["model.objective=wgan"], "objective='wgan'; choose one of vanilla, lsgan"),
        (["model.generator.size=100"], "size=100 is no power of 2"),
        (["model.generator.norm_cfg.type=ILM"], "type 'ILM', which is not registered"),
        (["train_dataloader.dataset.size=60"], "60 x 60 pixels, but depth=6 takes multiples of 64"),
        (["train_dataloader.dataset.load_size=32"], "load_size=32 is below size=64"),
        (["train_dataloader.dataset.direction=up"], "direction is 'up'; choose one of right-to-"),
        (["train_dataloader.dataset.images=(8,9)"], "images=(8, 9) leaves none of the 8 pairs"),
        (
            ["train_dataloader.dataset.data_prefix={'input_path':'pairs','_delete_':True}"],
            "data_prefix has input_path; give pair_path alone, or input_path and target_path",
        ),
        (["train_dataloader.dataset.data_prefix.pair_path=none"], "shapes/none; set"),
        (["val_evaluator.lpips_weights=/none.pth"], "/none.pth: not a checkpoint of torchvision's"),
        (["train_dataloader.sampler.type=DefaultSampler"], "needs train_dataloader.sampler.type"),
    ],
)
def test_what_would_fail_later(command, tmp_path, capsys, opts, words):
    assert words in refused(command(out=tmp_path, opts=opts), capsys)


def test_resuming_with_epochs_of_another_length(command, trained, tmp_path, capsys):
    opts = ["train_cfg.max_epochs=3", "train_dataloader.batch_size=2"]
    shutil.copy(trained / "epoch_2.pth", tmp_path)
    error = refused(command("--resume", out=tmp_path, opts=opts), capsys)
    assert "at iteration 16 in epoch 3, but an epoch has 4 iterations now; resume with" in error


def test_without_lpips_weights_there_is_no_lpips():
    metric = METRICS.build({"type": "ImageTransfer", "metrics": ["lpips", "l1"]})
    black, grey = torch.zeros(3, 12, 12, dtype=torch.uint8), torch.full((3, 12, 12), 8)
    metric.process({}, [{"output": black, "target": grey}, {"output": grey, "target": grey}])
    assert metric.evaluate(2) == {"l1": 4.0}
    with pytest.raises(UserError, match="unknown metric psnr"):
        METRICS.build({"type": "ImageTransfer", "metrics": ["psnr"]})


@pytest.mark.long
def test_outputs_are_far_nearer_to_the_targets_than_their_mean(root, tmp_path):
    """On images that were held out: 400 steps on masks of the generated shapes."""
    from ilm_plugins.data.shapes import write_shapes

    shapes = write_shapes(tmp_path, num_training=200, num_validation=20, size=64)
    argv = ["--config-file", str(root / "configs" / "pix2pix" / "shapes_ilmin_in.py")]
    argv += ["--num-gpus", "0", f"work_dir={tmp_path / 'out'}", "train_cfg.max_epochs=2"]
    argv += [f"{name}.dataset.data_root={shapes}" for name in LOADERS]
    assert train_net.main(argv) == 0
    found = next(e for e in reversed(entries(tmp_path / "out")) if "l1" in e)
    held_out = paired(shapes / "pairs" / "validation")
    mean = metrics.mean_image(s["target"] for s in paired(shapes / "pairs" / "training"))
    constant = metrics.compare(((mean, s["target"]) for s in held_out), metrics.MEASURES)
    assert found["l1"] < 0.75 * constant["l1"] and found["ssim"] > 1.5 * constant["ssim"]


def test_more_epochs_than_at_first_follow_the_longer_schedule(command, trained, tmp_path):
    """Two epochs of 8 iterations were trained; of four the second half has the linear decay."""
    opts = ["train_cfg.max_epochs=4"]
    shutil.copy(trained / "epoch_2.pth", tmp_path)
    assert train_net.main(command("--resume", out=tmp_path, opts=opts)) == 0
    rates = [e["generator.lr"] for e in entries(tmp_path) if "generator.lr" in e]
    assert rates == pytest.approx([2e-4] * 8 + [1e-4] * 8)
