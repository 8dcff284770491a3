"""pix2pix through tools/train_net.py: training, evaluation, exact resuming, and mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")
pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, DATASETS, METRICS, PARAM_SCHEDULERS
from PIL import Image
from torch.utils.data import DataLoader

import fresh
from ilm_plugins.cli import train_net
from ilm_plugins.frameworks.openmmlab import deterministic_resume
from ilm_plugins.frameworks.openmmlab.checkpoints import settings
from ilm_plugins.frameworks.openmmlab.deterministic_resume import ExactSampler
from ilm_plugins.layers import OptionError
from ilm_plugins.pix2pix import metrics, translate
from runs import LOADERS, pix2pix_command
from workers import Harmful


@pytest.fixture(scope="module")
def command(root, datasets):
    """What gives the arguments of a small run on the generated shapes, of 8 pairs."""
    return partial(pix2pix_command, root, datasets)


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """The output folder of two epochs."""
    out = tmp_path_factory.mktemp("trained")
    assert train_net.main(command(out=out)) == 0
    return out


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


def test_evaluation_prints_what_the_written_images_have(command, trained, datasets, capfd):
    assert train_net.main(command("--eval-only", "--resume", out=trained)) == 0
    printed = capfd.readouterr().out
    outputs, targets = (trained / "test" / kind for kind in ("output", "target"))
    assert len(list(outputs.iterdir())) == len(list(targets.iterdir())) == 4
    pair = pixels(next((datasets / "shapes" / "pairs" / "validation").glob("000002.*")))
    assert np.array_equal(pixels(targets / "000002.png"), pair[:, :64])
    assert np.array_equal(pixels(trained / "test" / "input" / "000002.png"), pair[:, 64:])
    files = sorted(p.name for p in outputs.iterdir())
    pairs = ((metrics.read(outputs / n), metrics.read(targets / n)) for n in files)
    for name, value in metrics.compare(pairs, metrics.MEASURES).items():
        if name != "images":
            assert float(re.findall(rf"{name}: ([\d.]+)", printed)[-1]) == pytest.approx(
                value, abs=1e-4
            )


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
def test_a_killed_run_resumes_to_the_same_weights(root, command, tmp_path):
    """Bit for bit, with the weights' average and the optimizers; loaded here or in workers."""
    (tmp_path / "kill.py").write_text(KILL)
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = {str(root / 'configs/pix2pix/shapes_ilmin_in.py')!r}\n"
        "custom_imports = dict(imports=['ilm_plugins', 'kill'])\n"
    )
    ema = "{'type': 'EMAHook', 'momentum': 0.1}"
    opts = [
        "train_cfg.max_epochs=3",
        "default_hooks.checkpoint.by_epoch=False",
        "default_hooks.checkpoint.interval=3",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert train_net.main(command(out=whole, opts=[*opts, f"custom_hooks=[{ema}]"])) == 0
        hooks = f"custom_hooks=[{ema}, {{'type': 'Kill'}}]"
        done = fresh.run(
            [
                sys.executable,
                root / "tools" / "train_net.py",
                *command(out=killed, opts=[*opts, hooks], config=config),
            ],
            env={**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"},
        )
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        # In the middle of the second epoch of eight.
        assert (killed / "last_checkpoint").read_text().endswith("iter_12.pth")
        opts += [f"custom_hooks=[{ema}]", "train_dataloader.num_workers=2"]
        assert train_net.main(command("--resume", out=killed, opts=opts)) == 0
    finally:
        torch.set_num_threads(threads)
    a, b = (torch.load(out / "iter_24.pth", weights_only=False) for out in (whole, killed))
    assert same(a["state_dict"], b["state_dict"]) > 50
    assert same(a["ema_state_dict"], b["ema_state_dict"]) > 50
    assert same(a["optimizer"], b["optimizer"]) > 100
    average = a["ema_state_dict"]["module.generator.down.0.1.weight"]
    assert not torch.equal(a["state_dict"]["generator.down.0.1.weight"], average)


def same(a, b):
    """Assert that nested states are equal, to the bit; how many tensors they have."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
        return 1
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return sum(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return sum(same(x, y) for x, y in zip(a, b, strict=True))
    assert a == b
    return 0


@pytest.mark.wide
def test_several_processes_train_as_one_with_a_larger_batch(root, command, tmp_path):
    """In one step: further ones drive rounding apart, by an absolute value and rectifiers."""
    plain = "{'type': 'SGD', 'lr': 0.01, '_delete_': True}"
    opts = ["train_cfg.max_epochs=1", "model.generator.dropout=0"]
    opts += [f"optim_wrapper.{n}.optimizer={plain}" for n in ("generator", "discriminator")]
    one, two = tmp_path / "one", tmp_path / "two"
    opts += ["default_hooks.checkpoint.interval=1", "train_dataloader.dataset.images=[0,2]"]
    assert train_net.main(command(out=one, opts=[*opts, "train_dataloader.batch_size=2"])) == 0
    done = subprocess.run(
        [
            sys.executable,
            root / "tools" / "train_net.py",
            *command("--num-processes", "2", out=two, opts=opts),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [e["step"] for e in entries(two) if "loss_G_L1" in e] == [1]
    a, b = (torch.load(o / "epoch_1.pth", weights_only=False)["state_dict"] for o in (one, two))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-5, atol=1e-6, msg=name)


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
    assert [d[0] for d in ExactSampler(range(4), shuffle=False)] == [
        0,
        1,
        2,
        3,
    ]


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


def test_files_that_cannot_be_used_are_named_before_training(command, pairs, tmp_path, capsys):
    for path in sorted(pairs.iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "000001.jpg").write_text("none")
    Image.new("RGB", (65, 64)).save(tmp_path / "000003.jpg")
    data = [f"train_dataloader.dataset.data_root={tmp_path}"]
    data += ["train_dataloader.dataset.data_prefix.pair_path="]
    for processes in ("1", "2"):
        out = tmp_path / "out"
        argv = command("--num-processes", processes, out=out, opts=data)
        error = refused(argv, capsys)
        assert "train_dataloader.dataset: 2 of 8 pairs cannot be used: " in error
        assert "000001.jpg is unreadable" in error and "000003.jpg has an odd width, 65" in error
        assert not list(out.glob("*/*.log"))


def test_without_lpips_weights_there_is_no_lpips():
    metric = METRICS.build({"type": "ImageTransfer", "metrics": ["lpips", "l1"]})
    black, grey = torch.zeros(3, 12, 12, dtype=torch.uint8), torch.full((3, 12, 12), 8)
    metric.process({}, [{"output": black, "target": grey}, {"output": grey, "target": grey}])
    assert metric.evaluate(2) == {"l1": 4.0}
    with pytest.raises(OptionError, match="ImageTransfer: unknown metric psnr"):
        METRICS.build({"type": "ImageTransfer", "metrics": ["psnr"]})


@pytest.fixture
def masks(tmp_path):
    """Three images of two sizes, one of which the depth allows."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for i, size in enumerate([(64, 64), (64, 64), (100, 70)]):
        Image.effect_noise(size, 80).convert("RGB").save(folder / f"{i}.png")
    return folder


def test_a_folder_is_translated_batched_and_padded(trained, masks, tmp_path, capsys):
    checkpoint = str(trained / "epoch_2.pth")
    outputs = [tmp_path / "one", tmp_path / "two"]
    for out, options in zip(outputs, ([], ["--batch-size", "2"]), strict=True):
        assert translate.main([checkpoint, str(masks), str(out), *options]) == 0
        assert "2: 100 x 70 padded to 128 x 128, and cropped back" in capsys.readouterr().out
    for name, size in (("0", (64, 64)), ("1", (64, 64)), ("2", (70, 100))):
        one, two = (pixels(out / f"{name}.png").astype(int) for out in outputs)
        assert one.shape == (*size, 3) and np.abs(one - two).max() <= 1
    model = translate.load_model(checkpoint)
    expected = model.generator(metrics.read(masks / "0.png")[None] / 127.5 - 1)[0]
    expected = ((expected + 1) * 127.5).round().permute(1, 2, 0).detach().numpy()
    assert np.array_equal(pixels(outputs[0] / "0.png"), expected)


def test_halves_of_pairs_are_translated_as_in_evaluation(
    root, command, trained, datasets, tmp_path
):
    folder = datasets / "shapes" / "pairs" / "validation"
    argv = [str(trained / "epoch_2.pth"), str(folder), str(tmp_path), "--half", "right"]
    tool = [sys.executable, str(root / "tools" / "translate.py")]
    done = subprocess.run([*tool, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    argv = command("--eval-only", "--resume", out=trained)
    assert train_net.main(argv) == 0
    for path in (trained / "test" / "output").iterdir():
        assert np.array_equal(pixels(path), pixels(tmp_path / path.name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint": "/none.pth"}, "checkpoint '/none.pth' does not exist"),
        ({"input": "/nowhere"}, "/nowhere: no such folder"),
        ({"output": "/dev/null/x"}, "output folder '/dev/null/x' cannot be written"),
        ({"batch_size": 0}, "--batch-size 0; give at least 1"),
        ({"device": "cuda:77"}, "--device cuda:77: "),
    ],
)
def test_mistakes_of_translating(trained, masks, tmp_path, capsys, change, words):
    given = {"checkpoint": trained / "epoch_2.pth", "input": masks, "output": tmp_path / "out"}
    args = SimpleNamespace(**{**given, "batch_size": 1, "device": "cpu", **change})
    argv = [args.checkpoint, args.input, args.output]
    argv += ["--batch-size", args.batch_size, "--device", args.device]
    assert translate.main([str(a) for a in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ": error: " in line and words in line


def test_originals_are_never_overwritten(trained, masks, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(masks)
    before = {path: path.read_bytes() for path in masks.iterdir()}
    for output in (masks, tmp_path / "link", tmp_path / "link" / ".." / "masks", "~/masks"):
        assert translate.main([str(trained / "epoch_2.pth"), str(masks), str(output)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"error: OUTPUT {str(output)!r} is INPUT; give another folder")
    assert {path: path.read_bytes() for path in masks.iterdir()} == before


def test_unreadable_images_are_named_before_translating(trained, masks, tmp_path, capsys):
    (masks / "1.png").write_text("none")
    argv = [str(trained / "epoch_2.pth"), str(masks), str(tmp_path / "out")]
    assert translate.main(argv) == 2
    assert "1 of 3 images cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


def test_a_checkpoint_runs_no_code(tmp_path, capsys):
    trap, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"state_dict": {}, "meta": Harmful(trap)}, path)
    argv = [str(path), str(tmp_path), str(tmp_path / "out")]
    assert translate.main(argv) == 2
    assert "holds os.makedirs, which may run code" in capsys.readouterr().err
    assert not trap.exists()
    assert translate.main([*argv, "--unsafe"]) == 2
    assert "is not a checkpoint of a Pix2Pix" in capsys.readouterr().err
    assert trap.exists()


def test_code_in_what_a_checkpoint_says_of_its_model_is_not_run(
    trained, masks, tmp_path, capsys, monkeypatch
):
    """Neither as Python nor as a type's name, nor by an import; nor where torch's variable asks."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.syspath_prepend(tmp_path)
    trap, path = tmp_path / "ran", tmp_path / "evil.pth"
    call = f"__import__('os').makedirs({str(trap)!r}, exist_ok=True)"
    (tmp_path / "evil.py").write_text(call)
    contents = torch.load(trained / "epoch_2.pth", weights_only=False)
    text = contents["meta"]["cfg"]
    argv = [str(path), str(masks), str(tmp_path / "out")]

    def save(text, **others):
        torch.save({**contents, "meta": {"cfg": text}, **others}, path)

    makes = f"dict(type='os.makedirs', name={str(trap)!r}, exist_ok=True)"
    for evil, words in (
        (f"{text}\n{call}\n", "is not a setting"),
        (f"{text}\nx = [{call}]\n", "has more than literals"),
        (f"{text}\nmodel = {makes}\n", "names 'os.makedirs'"),
        (f"{text}\nmodel = dict(type='Pix2Pix', generator={makes})\n", "names 'os.makedirs'"),
        (f"{text}\nmodel = dict(_scope_='evil')\n", "names None"),
    ):
        save(evil)
        assert translate.main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"'{path}'" in line and words in line and line.endswith("--unsafe")
    save(text, extra=Harmful(trap))
    assert translate.main(argv) == 2
    assert "holds os.makedirs, which may run code" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    save(f"{text}\ncustom_imports = dict(imports=['evil'])\n")
    assert translate.main(argv) == 0 and len(list((tmp_path / "out").iterdir())) == 3
    assert not trap.exists()
    assert translate.main([*argv, "--unsafe"]) == 0
    assert trap.exists()


def test_settings_are_what_mmengine_reads(root):
    """In all that its text of a config has, such as keys that are no names."""
    cfg = Config.fromfile(root / "configs" / "pix2pix" / "shapes_ilmin_in.py")
    cfg.paramwise_cfg = {"custom_keys": {"down.0": {"lr_mult": -0.5}}, "rest": [{"a.b": ()}, None]}
    expected = Config.fromstring(cfg.pretty_text, ".py").to_dict()
    assert settings(cfg.pretty_text) == expected and "dict({" in cfg.pretty_text


def test_more_epochs_than_at_first_follow_the_longer_schedule(command, trained, tmp_path):
    """Two epochs of 8 iterations were trained; of four the second half has the linear decay."""
    opts = ["train_cfg.max_epochs=4"]
    shutil.copy(trained / "epoch_2.pth", tmp_path)
    assert train_net.main(command("--resume", out=tmp_path, opts=opts)) == 0
    rates = [e["generator.lr"] for e in entries(tmp_path) if "generator.lr" in e]
    assert rates == pytest.approx([2e-4] * 8 + [1e-4] * 8)
