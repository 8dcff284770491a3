"""tools/train_net.py on detectron2 configs: training, evaluation, resuming, and mistakes."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import SimpleTrainer
from detectron2.model_zoo import get_config_file

from faults import ALONE, error_line
from feature_maps import OPTIONS, convolutions
from ilm_plugins.cli import train_net
from ilm_plugins.frameworks.detectron2 import train
from ilm_plugins.frameworks.detectron2.checks import check, load_config
from ilm_plugins.frameworks.detectron2.train import EVALUATORS, Float16Trainer, Trainer
from runs import LAZY, NO_TEST, SHAPES
from runs import detectron2_command as command

#: Images and regions for mixed precision, which is slow on processors that don't compute bfloat16.
FEW_PIXELS = ["INPUT.MIN_SIZE_TRAIN", "(32,)", "INPUT.MAX_SIZE_TRAIN", "32"]
FEW_PIXELS += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"]
FEW_PIXELS_LAZY = (
    "dataloader.train.mapper.augmentations.0.short_edge_length=32",
    "model.roi_heads.batch_size_per_image=4",
)


def iterations(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory):
    """The output folder of four iterations, evaluated at their end."""
    out = tmp_path_factory.mktemp("trained")
    assert train_net.main(command(out=out, opts=["SOLVER.MAX_ITER", "4"])) == 0
    return out


@pytest.fixture
def refused(capfd):
    """The function (arguments) -> the line in which train_net refuses them."""
    return lambda *argv: error_line(argv, capfd, status=2)


@pytest.fixture
def lazy(tmp_path):
    """The arguments of a LazyConfig's run, but for its folder and overrides."""
    (tmp_path / "lazy.py").write_text(LAZY)
    return ["--config-file", str(tmp_path / "lazy.py"), "--num-gpus", "0"]


def test_training_leaves_a_checkpoint_a_config_and_metrics(trained):
    state = torch.load(trained / "model_final.pth", weights_only=True)
    encode = "roi_heads.box_head.conv1.norm.encode.weight"
    assert state["model"][encode].shape == (2, 4) and state["iteration"] == 3
    assert "NORM: ILMGN" in (trained / "config.yaml").read_text()
    lines = map(json.loads, (trained / "metrics.json").read_text().splitlines())
    assert {"total_loss", "bbox/AP", "segm/AP"} <= {name for line in lines for name in line}


def test_evaluation_from_a_checkpoint_prints_the_coco_table(trained, tmp_path, capfd):
    # The weights may carry options of detectron2's.
    weights = f"{trained / 'model_final.pth'}?matching_heuristics=True"
    argv = command("--eval-only", out=tmp_path, opts=["MODEL.WEIGHTS", weights])
    assert train_net.main(argv) == 0
    printed = capfd.readouterr().out
    assert printed.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 2
    assert (tmp_path / "inference" / "coco_instances_results.json").exists()


@pytest.mark.wide
def test_evaluation_of_the_last_checkpoint(trained, tmp_path):
    opts, found = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"], []
    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth")]
    for options, more in ((["--resume"], []), ([], weights)):
        out = shutil.copytree(trained, tmp_path / str(len(found)))
        argv = command("--eval-only", *options, out=out, opts=[*opts, *more])
        assert train_net.main(argv) == 0
        # The training's config stays, which the evaluation's differs from.
        assert (out / "config.yaml").read_bytes() == (trained / "config.yaml").read_bytes()
        found.append(json.loads((out / "inference/coco_instances_results.json").read_text()))
    assert len(found[0]) > 10 and found[0] == found[1]


def test_evaluators_get_a_folder_if_they_write_results(monkeypatch):
    """As COCO's do, and Pascal VOC's do not."""

    def writes(name, output_dir):
        return name, output_dir

    monkeypatch.setitem(EVALUATORS, "own", [writes])
    monkeypatch.setitem(EVALUATORS, "other", [lambda name: name])
    cfg = SimpleNamespace(OUTPUT_DIR="out")
    try:
        for kind, expected in (("own", ("of own", "out/inference")), ("other", "of other")):
            MetadataCatalog.get(f"of {kind}").evaluator_type = kind
            assert Trainer.build_evaluator(cfg, f"of {kind}") == expected
    finally:
        for kind in ("own", "other"):
            MetadataCatalog.pop(f"of {kind}", None)


def test_resuming_goes_on_where_training_stopped(datasets, tmp_path):
    def run(*options, until):
        # The gradient is clipped to nothing: what moves the weights is the momentum alone.
        clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE"]
        opts = ["SOLVER.MAX_ITER", str(until), *clip, "0.0" if "--resume" in options else "1e9"]
        opts += ["SOLVER.WEIGHT_DECAY", "0.0", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"]
        opts += ["SOLVER.STEPS", "()", *NO_TEST]
        assert train_net.main(command(*options, out=tmp_path, opts=opts)) == 0
        return torch.load(tmp_path / "model_final.pth", weights_only=True)

    first = run(until=2)
    second = run("--resume", until=3)
    assert iterations(tmp_path) == [1, 2]
    optimizer = first["trainer"]["_trainer"]["optimizer"]["state"]
    moved = {
        tuple(value.shape): second["model"][key] - value
        for key, value in first["model"].items()
        if key.endswith(("box_head.conv1.weight", "box_head.fc1.weight"))
    }
    assert len(moved) == 2
    for shape, step in moved.items():
        momenta = [s["momentum_buffer"] for s in optimizer.values()]
        # One of the buffers of this shape explains the whole step, by one learning rate.
        fits = []
        for momentum in (m for m in momenta if m.shape == shape and m.any()):
            rate = -(step * momentum).sum() / (0.9 * momentum.square().sum())
            fits.append((step + 0.9 * rate * momentum).abs().max() <= 1e-3 * step.abs().max())
        assert step.abs().max() > 0 and any(fits), shape


@pytest.mark.wide
def test_several_processes_evaluate_as_one_does(trained, tmp_path):
    opts = ["MODEL.WEIGHTS", str(trained / "model_final.pth")]
    opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    found = []
    for processes in ("1", "2"):
        out = tmp_path / processes
        argv = command("--num-processes", processes, "--eval-only", out=out, opts=opts)
        assert train_net.main(argv) == 0
        results = json.loads((out / "inference/coco_instances_results.json").read_text())
        found.append(sorted((r["image_id"], round(r["score"], 4)) for r in results))
    assert len(found[0]) > 10 and found[0] == found[1]


@pytest.mark.wide
def test_several_processes_over_gloo_from_the_command_line(root, datasets, tmp_path):
    opts = ["SOLVER.MAX_ITER", "2", *NO_TEST]
    argv = command("--num-processes", "2", out=tmp_path, opts=opts)
    tool = [sys.executable, root / "tools" / "train_net.py"]
    done = subprocess.run([*tool, *argv], env=ALONE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "World size: 2" in (tmp_path / "log.txt").read_text()
    assert "World size: 2" in (tmp_path / "log.txt.rank1").read_text()
    assert iterations(tmp_path) == [1]


@pytest.mark.wide
def test_the_model_zoos_gn_config_with_our_box_head_trains(datasets, tmp_path):
    config = get_config_file("Misc/mask_rcnn_R_50_FPN_3x_gn.yaml")
    opts = ["MODEL.ROI_BOX_HEAD.NORM", "ILMGN", "MODEL.ROI_HEADS.NUM_CLASSES", "4"]
    opts += ["DATASETS.TRAIN", "('shapes_train',)", *NO_TEST, "SOLVER.MAX_ITER", "1"]
    assert train_net.main(command(out=tmp_path, opts=opts, config=config)) == 0
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    ours = {key.rsplit(".", 2)[0] for key in state if key.endswith("encode.weight")}
    assert ours == {f"roi_heads.box_head.conv{i}.norm" for i in (1, 2, 3, 4)}


def test_lazy_config_trains_resumes_and_evaluates(datasets, lazy, tmp_path, capfd, monkeypatch):
    out = f"train.output_dir={tmp_path / 'out'}"
    assert train_net.main([*lazy, out]) == 0
    assert train_net.main([*lazy, "--resume", out, "train.max_iter=3"]) == 0
    state = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert state["iteration"] == 2
    # The evaluation at the end of each is an iteration after the last.
    assert iterations(tmp_path / "out") == [0, 1, 2, 2, 3]
    assert state["model"]["roi_heads.box_head.conv1.norm.encode.weight"].shape == (2, 4)
    capfd.readouterr()
    weights = f"train.init_checkpoint={tmp_path / 'out' / 'model_final.pth'}"
    # Of a config that yaml cannot hold; detectron2 would write the evaluation's over it.
    kept = tmp_path / "out" / "config.yaml.pkl"
    kept.write_bytes(b"the training's")
    norm = "lambda channels: ilm_plugins.ILMGroupNorm(channels, key_group_size=8)"
    head = f"model.roi_heads.box_head.conv_norm = {norm}"
    Path(lazy[1]).write_text(f"import ilm_plugins\n{LAZY}\n{head}\n")
    # Wrapped for several processes, the model would send buffers at each image, and processes may
    # have different numbers of images.
    monkeypatch.setattr(train, "create_ddp_model", lambda *_, **__: pytest.fail("it is wrapped"))
    assert train_net.main([*lazy, "--eval-only", out, weights]) == 0
    assert "copypaste: Task: bbox" in capfd.readouterr().out
    assert kept.read_bytes() == b"the training's"


@pytest.mark.parametrize("kind", ["yaml", "py"])
@pytest.mark.parametrize("options", [("--amp",), ("--channels-last",)], ids=" ".join)
def test_channels_last_and_mixed_precision(datasets, lazy, tmp_path, kind, options):
    if kind == "yaml":
        argv = command(*options, out=tmp_path, opts=["SOLVER.MAX_ITER", "1", *FEW_PIXELS])
    else:
        length = "train.max_iter=1", "train.eval_period=1", *FEW_PIXELS_LAZY
        argv = [*lazy, *options, f"train.output_dir={tmp_path}", *length]
    with convolutions() as found, convolutions(training=False) as evaluated:
        assert train_net.main(argv) == 0
    assert set(found) == {OPTIONS[options]}
    # An evaluation is in float32.
    assert set(evaluated) == {(OPTIONS[options][0], False)}
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    moments = state["trainer"]["_trainer" if kind == "yaml" else "optimizer"]
    moments = (moments["optimizer"] if kind == "yaml" else moments)["state"].values()
    tensors = [*state["model"].values(), *(m["momentum_buffer"] for m in moments)]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}


def test_a_config_may_set_mixed_precision_and_a_resumed_run_the_layout(datasets, tmp_path):
    opts = ["SOLVER.AMP.ENABLED", "True", *FEW_PIXELS, *NO_TEST, "SOLVER.MAX_ITER"]
    with convolutions() as found:
        assert train_net.main(command(out=tmp_path, opts=[*opts, "1"])) == 0
    assert set(found) == {(False, True)}
    assert (
        train_net.main(command("--resume", "--channels-last", out=tmp_path, opts=[*opts, "2"])) == 0
    )
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]["_trainer"]
    moments = (s["momentum_buffer"] for s in state["optimizer"]["state"].values())
    layouts = {m.is_contiguous() for m in moments if m.ndim == 4 and m.shape[2] > 1 < m.shape[1]}
    assert layouts == {False}


@pytest.mark.wide
def test_on_real_images(root, real_coco, tmp_path):
    config = root / "configs/detectron2/mask_rcnn_R_50_FPN_batch2_ilmgn.yaml"
    opts = ["SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0", *NO_TEST]
    argv = command(out=tmp_path, opts=opts, config=config)
    tool = [sys.executable, root / "tools" / "train_net.py"]
    env = {**ALONE, "DETECTRON2_DATASETS": str(real_coco)}
    done = subprocess.run([*tool, *argv], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert iterations(tmp_path) == [0]


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("none.yaml", None, "does not exist"),
        ("c.json", "{}", "neither .yaml nor .py"),
        ("broken.py", "model = (", "cannot be read: SyntaxError"),
        ("base.yaml", "_BASE_: nowhere.yaml", "cannot be read"),
        ("number.yaml", "MODEL: 3", "cannot be read"),
        ("import.py", "from nowhere import x\nfrom detectron2.config import LazyCall", "nowhere"),
        ("model.py", "import detectron2\nmodel = 1", "does not define model, dataloader"),
    ],
)
def test_config_files_that_are_none(tmp_path, refused, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    line = refused("--config-file", tmp_path / name, "--num-gpus", "0")
    assert words in line and name in line


@pytest.mark.parametrize(
    "config, overrides, words",
    [
        (
            "yaml",
            ["SOLVER.MAX_ITER", "3", "MODEL.NORMS", "ILMGN"],
            ["error: override MODEL.NORMS ILMGN does not fit", "Non-existent", "KEY VALUE"],
        ),
        (
            "yaml",
            ["SOLVER.MAX_ITER", "3", "MODEL.WEIGHTS"],
            ["override MODEL.WEIGHTS has no value"],
        ),
        ("yaml", ["MODEL.WEIGHTS", "x", "--resume"], ["--resume comes after an override"]),
        (
            "py",
            ["train.eval_period=3", "train.max_iter=[3"],
            ["error: override train.max_iter=[3 does not fit", "KEY=VALUE"],
        ),
        ("py", ["trian.max_iter=3"], ["override trian.max_iter=3 does not fit", "no trian"]),
        ("py", ["train.max_itr=3"], ["override train.max_itr=3 does not", "no train.max_itr"]),
        ("py", ["train.model_ema.enabled=True"], ["there is no train.model_ema"]),
    ],
)
def test_overrides_that_do_not_fit(lazy, refused, config, overrides, words):
    path = SHAPES if config == "yaml" else lazy[1]
    line = refused("--config-file", path, "--num-gpus", "0", *overrides)
    assert all(word in line for word in words), line
    assert not any(word in line for word in ("SOLVER.MAX_ITER", "train.eval_period"))


@pytest.mark.parametrize(
    "options, overrides, words",
    [
        ([], ["DATASETS.TRAIN", "('coco_2017_train',)"], ["{data}/coco", "DETECTRON2_DATASETS"]),
        ([], ["DATASETS.TEST", "('nowhere',)"], ["'nowhere' is not registered"]),
        (["--eval-only"], [], ["nothing to evaluate: MODEL.WEIGHTS is empty"]),
        (["--eval-only"], NO_TEST, ["nothing to evaluate: DATASETS.TEST is empty"]),
        ([], ["TEST.AUG.ENABLED", "True"], ["this command has no test-time augmentation; set"]),
        ([], ["OUTPUT_DIR", "{data}/shapes/shapes.json/o"], ["cannot be written", "OUTPUT_DIR"]),
        (
            ["--num-processes", "2"],
            ["SOLVER.IMS_PER_BATCH", "3"],
            ["SOLVER.IMS_PER_BATCH 3 cannot be shared by 2 processes"],
        ),
        ([], ["SOLVER.IMS_PER_BATCH", "0"], ["SOLVER.IMS_PER_BATCH 0 cannot be shared by 1"]),
        ([], ["DATASETS.TRAIN", "()"], ["nothing to train on: DATASETS.TRAIN is empty; set it"]),
        (["--machine-rank", "1"], [], ["rank"]),
        (["--num-machines", "2"], [], ["needs --dist-url"]),
        (["--num-gpus", "99"], [], ["this machine has", "where 0 is the CPU"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_would_fail_later(datasets, tmp_path, refused, options, overrides, words):
    opts = [word.format(data=datasets) for word in overrides]
    line = refused(*command(*options, out=tmp_path, opts=opts))
    for word in words:
        assert word.format(data=datasets) in line, line


def test_an_evaluation_that_is_refused_leaves_no_folder(tmp_path, refused):
    refused(*command("--eval-only", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_mixed_precision_goes_on_from_a_run_in_float32(tmp_path):
    """On the CPU the scale of the loss is off, and its state is empty."""
    model = torch.nn.Linear(2, 2)
    trainers = [
        kind(model, [0], torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
        for kind in (SimpleTrainer, Float16Trainer)
    ]
    trainers[0].iter = 4
    trainers[1].load_state_dict(trainers[0].state_dict())
    assert trainers[1].iter == 4
    scaled = {**trainers[0].state_dict(), "grad_scaler": {"scale": 8.0}}
    loaded = []
    trainers[1].grad_scaler.load_state_dict = loaded.append
    trainers[1].load_state_dict(scaled)
    assert loaded == [{"scale": 8.0}]


def test_a_lazy_config_without_an_evaluator_has_nothing_to_evaluate(lazy, refused):
    with open(lazy[1], "a") as file:
        file.write("del dataloader.evaluator\n")
    assert "nothing to evaluate: dataloader.evaluator is empty" in refused(*lazy, "--eval-only")


def test_a_norm_that_is_misspelt(tmp_path, lazy, refused):
    norm = "ENN(reduction=8)"
    line = refused(*command(out=tmp_path, opts=["MODEL.FPN.NORM", norm]))
    assert f"unknown norm {norm!r} in MODEL.FPN.NORM; known norms: " in line
    line = refused(*lazy, f"train.output_dir={tmp_path}", f"model.backbone.norm={norm!r}")
    assert f"unknown norm {norm!r} in model.backbone.norm; known norms: " in line


def test_a_framework_that_is_not_installed(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refused(*command(out=tmp_path))
    assert "needs detectron2: install it, or run 'make install-detectron2'" in error


def test_the_batch_is_scaled_to_the_processes_before_it_is_checked(datasets, tmp_path):
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.IMS_PER_BATCH", "1"]
    argv = command("--num-processes", "2", out=tmp_path, opts=opts)
    check(train_net.parser().parse_args(argv))


def test_metadata_may_be_paths(datasets, tmp_path):
    name = "with_paths"
    meta = MetadataCatalog.get("shapes_val")
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, Path(meta.json_file), Path(meta.image_root))
    opts = ["DATASETS.TRAIN", f"('{name}',)", *NO_TEST]
    check(train_net.parser().parse_args(command(out=tmp_path, opts=opts)))


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.wide)])
def test_a_norm_that_does_not_fit_is_told_in_one_line(datasets, tmp_path, refused, processes):
    opts = ["MODEL.ROI_BOX_HEAD.NORM", "ILMGN(num_groups=24)"]
    line = refused(*command("--num-processes", processes, out=tmp_path, opts=opts))
    assert "num_groups=24 does not divide num_channels=64" in line


@pytest.mark.parametrize(
    "text, framework",
    [
        ("from detectron2.config import LazyCall as L\nmodel = L(dict)()\n", "detectron2"),
        ("from .common.models import model\ntrain = dict(max_iter=3)\n", "detectron2"),
        ("_base_ = ['a.py']\n", "openmmlab"),
        ("model = dict(type='MaskRCNN')\n", "openmmlab"),
        ("optimizer = {'type': 'SGD'}\n", "openmmlab"),
        ("custom_imports = dict(imports=['ilm_plugins'])\n", "openmmlab"),
        ("model: dict = dict(type='MaskRCNN')\n", "openmmlab"),
        ("hooks = [dict(type='EMAHook')]\n", "openmmlab"),
        ("from detectron2.config import LazyCall as L\nx = dict(type='a')\n", "detectron2"),
        ('"""ResNet, with weights\nfrom detectron2\'s zoo."""\n_base_ = []\n', "openmmlab"),
        (
            "from mmengine.config import read_base\nwith read_base():\n    from .a import *\n",
            "openmmlab",
        ),
    ],
)
def test_frameworks_are_told_apart_by_content(tmp_path, text, framework):
    (tmp_path / "config.py").write_text(text)
    assert train_net.framework_of(str(tmp_path / "config.py")) == framework


def test_num_gpus_0_means_the_cpu_whatever_the_config_says(root, tmp_path):
    config = root / "configs/detectron2/mask_rcnn_R_50_FPN_batch2_gn.yaml"
    args = train_net.parser().parse_args(["--config-file", str(config), "--num-gpus", "0"])
    assert load_config(args).MODEL.DEVICE == "cpu"
