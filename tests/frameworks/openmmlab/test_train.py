"""tools/train_net.py on MMEngine configs: training, evaluation, resuming, and mistakes."""

import importlib.util
import json
import re
import shutil
import sys

import pytest
import torch

pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.registry import init_default_scope

import fresh
from faults import error_line, start
from feature_maps import convolutions
from ilm_plugins import checkpoints
from ilm_plugins.cli import train_net
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.openmmlab import checks
from ilm_plugins.frameworks.openmmlab.checks import load_config
from runs import TORCHRUN
from runs import mmengine_command as command


def losses(out):
    """iteration -> loss, of all runs in a folder."""
    lines = (line for f in sorted(out.glob("*/vis_data/scalars.json")) for line in f.open())
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines) if "loss" in entry}


def iou(printed):
    return float(re.findall(r"mIoU: ([\d.]+)", printed)[-1])


def test_training_leaves_checkpoints_the_config_and_losses(trained):
    state = torch.load(trained / "iter_4.pth", weights_only=False)["state_dict"]
    assert state["decode_head.convs.0.gn.encode.weight"].shape == (2, 2)
    assert (trained / "iter_2.pth").exists() and "ILMGN" in (trained / "fcn.py").read_text()
    assert list(losses(trained)) == [1, 2, 3, 4]


def test_the_first_iteration_is_logged_where_the_logger_waits(config, trained, tmp_path):
    opts = ["train_cfg.max_iters=2", "default_hooks.logger.interval=50"]
    assert train_net.main(command(config, out=tmp_path, opts=opts)) == 0
    found = [next(out.glob("*/*.log")).read_text() for out in (tmp_path, trained)]
    line = r"The first iteration is done, after \d+\.\d s; losses follow every 50 iterations\."
    assert [len(re.findall(line, text)) for text in found] == [1, 0]
    assert "The first iteration" not in found[1]


def test_resuming_goes_on_where_training_stopped(config, trained, tmp_path):
    out = tmp_path / "out"
    opts = ["train_cfg.max_iters=2"]
    assert train_net.main(command(config, out=out, opts=opts)) == 0
    # Gradients are clipped to nothing: what moves the weights is the momentum alone.
    opts = ["optim_wrapper.clip_grad={'max_norm': 1e-30, '_delete_': True}"]
    assert train_net.main(command(config, "--resume", out=out, opts=opts)) == 0
    assert losses(out).keys() == {1, 2, 3, 4}
    first, last = (torch.load(out / f"iter_{i}.pth", weights_only=False) for i in (2, 4))
    assert last["meta"]["iter"] == 4
    group = first["optimizer"]["param_groups"][0]
    name, momentum = "backbone.conv1.weight", group["momentum"]
    buffer = first["optimizer"]["state"][0]["momentum_buffer"]
    assert buffer.any() and not group["weight_decay"]
    expected = -group["lr"] * (momentum + momentum**2) * buffer
    moved = last["state_dict"][name] - first["state_dict"][name]
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-7)


def test_resuming_before_there_is_a_checkpoint_starts_from_load_from(config, trained, tmp_path):
    """At the first iteration, of the weights alone; and continues from its own last one then."""
    out, weights = tmp_path / "out", f"load_from={trained / 'iter_4.pth'}"
    for length in (2, 3):
        opts = [weights, f"train_cfg.max_iters={length}"]
        assert train_net.main(command(config, "--resume", out=out, opts=opts)) == 0
        assert list(losses(out)) == list(range(1, length + 1))
    assert torch.load(out / "iter_3.pth", weights_only=False)["meta"]["iter"] == 3
    assert losses(out)[1] != losses(trained)[1]


def test_evaluation_of_a_checkpoint_and_of_the_last_one(config, trained, tmp_path, capfd):
    out = shutil.copytree(trained, tmp_path / "out")
    weights = f"load_from={trained / 'iter_4.pth'}"
    no_images = "train_dataloader.dataset.data_root=/nowhere"  # an evaluation needs none
    found, of_training = [], (trained / "fcn.py").read_text()
    for options, opts in (([], [weights, no_images]), (["--resume"], []), (["--tta"], [weights])):
        argv = command(config, "--eval-only", *options, out=out, opts=opts)
        assert train_net.main(argv) == 0
        found.append(iou(capfd.readouterr().out))
    assert found[0] == found[1] > 0 and found[2] > 0
    assert (out / "fcn.py").read_text() == of_training


def test_an_evaluation_that_is_refused_leaves_no_folder(config, tmp_path, capsys):
    error_line(command(config, "--eval-only", out=tmp_path / "out"), capsys, 2)
    assert not (tmp_path / "out").exists()


def test_channels_last(config, tmp_path):
    with convolutions() as found:
        argv = command(config, "--channels-last", out=tmp_path, opts=["train_cfg.max_iters=1"])
        assert train_net.main(argv) == 0
    assert set(found) == {(True, False)}


@pytest.mark.parametrize("word", ["--amp", "amp=True"])
def test_mixed_precision_is_for_gpus(config, tmp_path, capsys, word):
    """mmcv's operators, such as RoIAlign, know no bfloat16 on the CPU."""
    argv = (
        [*command(config, out=tmp_path), word]
        if "=" in word
        else command(config, word, out=tmp_path)
    )
    assert "--amp is for GPUs; leave it out on the CPU" in error_line(argv, capsys, 2)


def printed(process):
    """What a process that succeeds prints."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out + err


@pytest.mark.wide
def test_several_processes_over_gloo(config, tmp_path):
    sync_bn = "model.decode_head.norm_cfg={'type': 'SyncBN', '_delete_': True}"
    opts = ["train_cfg.max_iters=2", sync_bn, "sync_bn=torch"]
    process = start(command(config, "--num-processes", "2", out=tmp_path, opts=opts))
    assert "SyncBN layers of the model become plain BN layers" in printed(process)
    assert list(losses(tmp_path)) == [1, 2]


@pytest.mark.wide
def test_torchrun_starts_the_processes(config, tmp_path):
    argv = command(config, "--launcher", "pytorch", out=tmp_path, opts=["train_cfg.max_iters=2"])
    assert "Distributed launcher: pytorch" in printed(start(argv, run=TORCHRUN))
    assert list(losses(tmp_path)) == [1, 2]


@pytest.mark.parametrize(
    "options, words",
    [
        (["model.backbone.norm_cfg.type=ILMG"], ["model.backbone.norm_cfg has type 'ILMG'", "EN"]),
        (["model.type=Segmenter"], ["Segmenter is not in the mmseg::model", "custom_imports"]),
        (["model.backbone.norm_cfg.num_groups=5"], ["num_groups=5 does not divide"]),
        (["train_dataloader.dataset.data_root=/nowhere"], ["tried /nowhere", "data_root"]),
        (
            ["train_dataloader.dataset.data_prefix.img_path=images/none"],
            ["shapes/images/none", "train_dataloader.dataset.data_root"],
        ),
        (["learning_rate=3"], ["error: override learning_rate=3 does not fit", "KEY=VALUE"]),
        (
            ["train_cfg.max_iters=abc"],
            ["override train_cfg.max_iters=abc does not", "max_iters is a number of iterations"],
        ),
        (["train_cfg.max_iters", "3"], ["override train_cfg.max_iters does not", "KEY=VALUE"]),
        (["optim_wrapper.type=AmpOptimWrapper"], ["optimizer cannot be built", "only available"]),
        (
            ["norm_cfg.type=EN"],
            ["norm_cfg is a variable of the config's file; override"],
        ),
        (["resume=True"], ["sets resume=True; give --resume"]),
        (["--tta"], ["--tta is for an evaluation; give --eval-only"]),
        (["--eval-only"], ["nothing to evaluate: load_from is empty"]),
        (["--eval-only", "test_evaluator=None"], ["does not define test_evaluator"]),
        (["--eval-only", "--tta", "tta_model=None"], ["--tta", "define"]),
        (["load_from={out}/none.pth"], ["none.pth' does not exist; give a file"]),
        (["work_dir={out}/file/o"], ["cannot be written", "work_dir"]),
        (["--launcher", "pytorch"], ["RANK is not set", "torchrun"]),
        (["--launcher", "slurm", "--num-processes", "2"], ["decides the number of processes"]),
        (["--launcher", "slurm"], ["SLURM_PROCID is not set"]),
        (["--num-machines", "2"], ["needs --dist-url"]),
        (["--num-machines", "2", "--dist-url", "10.0.0.1"], ["give tcp://HOST:PORT"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_would_fail_later(config, tmp_path, capsys, options, words):
    (tmp_path / "file").write_text("")
    filled = [word.replace("{out}", str(tmp_path)) for word in options]
    flags = [word for word in filled if "=" not in word]
    if flags and not flags[0].startswith("--"):  # an override without its sign
        flags = []
    opts = [word for word in filled if word not in flags]
    work_dir = [] if any(o.startswith("work_dir") for o in opts) else [f"work_dir={tmp_path}"]
    argv = ["--config-file", config, "--num-gpus", "0", *flags, *work_dir, *opts]
    error = error_line(argv, capsys, 2)
    for word in words:
        assert word in error, error
    assert "with overrides" not in error


@pytest.mark.wide
def test_a_mistake_in_one_of_several_processes(config, tmp_path, capsys):
    opts = ["model.backbone.norm_cfg.num_groups=5"]
    error = error_line(command(config, "--num-processes", "2", out=tmp_path, opts=opts), capsys, 2)
    assert "num_groups=5 does not divide num_channels=16" in error


@pytest.mark.parametrize(
    "text, words",
    [
        ("_base_ = './nowhere.py'", "cannot be read"),
        (
            "default_scope = 'of my own'\ntrain_cfg = dict(type='A')",
            "does not define model, train_dataloader, optim_wrapper",
        ),
        ("model = dict(type='A')", "does not define train_dataloader, train_cfg, optim_wrapper"),
        ("custom_imports = dict(imports=['nowhere'])", "nowhere"),
    ],
)
def test_configs_that_are_none(tmp_path, capsys, text, words):
    (tmp_path / "mm.py").write_text(text)
    error = error_line(["--config-file", tmp_path / "mm.py", "--num-gpus", "0"], capsys, 2)
    assert words in error and "mm.py" in error


@pytest.mark.parametrize("key", ["activation_checkpointing", "train_cfg.max_iters", "strategy"])
def test_what_the_runner_reads_can_be_overridden(config, key):
    words = ["--config-file", str(config), "--num-gpus", "0", f"{key}=3"]
    cfg = load_config(train_net.parser().parse_args(words))
    assert cfg[key] == 3 if "." not in key else cfg.train_cfg.max_iters == 3


@pytest.mark.parametrize(
    "word, value",
    [
        ("work_dir=runs/exp 1", "runs/exp 1"),
        ("work_dir='runs/a,b'", "runs/a,b"),
        ("work_dir=runs/lr.1,wd1e-4", "runs/lr.1,wd1e-4"),
        ("work_dir=2026_11_05", "2026_11_05"),
        ("load_from=model(1).pth", "model(1).pth"),
        ("load_from=None", None),
        ("train_dataloader.dataset.data_root=/my images", "/my images"),
        ("train_dataloader.dataset.data_root=None", None),
        ("resume=TRUE", True),
        ("resume=a, b", ["a", "b"]),
        ("resume=[a,[1, b]]", ["a", [1, "b"]]),
    ],
)
def test_values_of_overrides(config, word, value):
    words = ["--config-file", str(config), "--num-gpus", "0", word]
    cfg = load_config(train_net.parser().parse_args(words))
    for key in word.partition("=")[0].split("."):
        cfg = cfg[key]
    assert cfg == value


def test_a_framework_that_is_not_installed(config, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = error_line(["--config-file", config, "--num-gpus", "0"], capsys, 2)
    assert "needs mmengine: pip install onedl-mmengine 'setuptools<82'" in error


def test_pix2pix_needs_no_mmcv(root, monkeypatch):
    monkeypatch.setattr(checks, "installed", lambda package: package == "mmengine")
    config = root / "configs" / "pix2pix" / "facades_ilmin_in.py"
    args = train_net.parser().parse_args(["--config-file", str(config)])
    assert load_config(args).default_scope == "mmengine"


def test_a_norm_of_another_packages_backbone():
    """mmpretrain alone registers LN2d."""
    backbone = {"type": "mmpretrain.ConvNeXt", "norm_cfg": {"type": "LN2d", "eps": 1e-6}}
    init_default_scope("mmseg")
    checks.check_norms({"backbone": backbone})
    for part in ("neck", "backbone_of_mmseg"):
        with pytest.raises(UserError, match=f"{part}.norm_cfg has type 'LN2d', which is not regis"):
            checks.check_norms({"backbone": backbone, part: {"norm_cfg": {"type": "LN2d"}}})


def test_ssns_radius_is_set_without_a_hook_in_the_config(config, tmp_path):
    norm = "model.backbone.norm_cfg={'type':'SSN'}"
    argv = command(config, out=tmp_path, opts=[norm, "train_cfg.max_iters=4"])
    assert train_net.main(argv) == 0
    saved = checkpoints.read(tmp_path / "iter_4.pth")["state_dict"]
    radii = [value for name, value in saved.items() if name.endswith(".radius")]
    assert radii and all(value == 3 / 4 for value in radii)


@pytest.mark.wide
def test_operators_that_are_not_compiled_are_named(root, tmp_path):
    config = root / "configs/mmdet/shapes/mask-rcnn_r18_fpn_gn_shapes_ilmgn.py"
    code = f"""
import sys
sys.modules["mmcv._ext"] = None
from ilm_plugins.errors import UserError
from ilm_plugins.cli import train_net
options = "--config-file", {str(config)!r}, "--num-gpus", "0", "work_dir={tmp_path}/out"
sys.exit(train_net.main(options))
"""
    done = fresh.run([sys.executable, "-c", code])
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.splitlines()[-1].endswith(
        "mmcv is installed without its compiled operators, which this config needs; "
        "run 'make install-openmmlab' in a checkout of ilm_plugins"
    )


def test_a_data_set_that_downloads_itself_need_not_be_there(root, tmp_path, monkeypatch):
    pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
    config = root / "configs/mmpretrain/en/resnet20_cifar10_en.py"
    args = train_net.parser().parse_args(
        ["--config-file", str(config), "--num-gpus", "0", f"work_dir={tmp_path}"]
    )
    monkeypatch.chdir(tmp_path)
    checks.check(args)
    args.opts.append("train_dataloader.dataset.download=False")
    with pytest.raises(UserError, match="data/cifar10"):
        checks.check(args)


def test_where_images_are_looked_for(tmp_path, monkeypatch):
    from ilm_plugins.frameworks.openmmlab.checks import check_dataset

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    dataset, overrides = {"type": "BaseSegDataset", "data_root": "~/images"}, []
    check_dataset("data", dataset, overrides)
    assert dataset["data_root"] == str(tmp_path / "images")
    assert overrides == [f"data.data_root='{tmp_path}/images'"]  # for the other processes
    elsewhere = {"type": "BaseSegDataset", "data_root": "s3/bucket", "ann_file": "list.txt"}
    with pytest.raises(UserError, match=r"data set of data is not there: tried .*s3/bucket/list"):
        check_dataset("data", elsewhere, [])
    check_dataset("data", {**elsewhere, "backend_args": {"backend": "petrel"}}, [])
