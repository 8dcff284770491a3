"""Reading MMEngine's configs, also as bases, and models that run on images in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from helpers import processes
from helpers.close import assert_close
from ilm_plugins import ExemplarNorm
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.openmmlab import config_files, training
from ilm_plugins.frameworks.openmmlab.config import OpenMMEngineConfig
from ilm_plugins.frameworks.openmmlab.config_files import load_config
from ilm_plugins.frameworks.run.options import ProcessOptions, RunOptions
from ilm_plugins.frameworks.run.record import RunRecord

REPRODUCTION = Path(__file__).parents[3] / "reproduction" / "configs"
RESNET20 = str(REPRODUCTION / "mmpretrain/en/resnet20_cifar10.py")
DUSK = str(REPRODUCTION / "mmseg/camvid_daylight/dusk.py")
MASK_RCNN = "ilm_plugins://mmdet/shapes/mask-rcnn_r18_fpn_gn_shapes_ilmgn.py"
IMAGES = [np.random.default_rng(i).integers(256, size=(32, 32, 3), dtype=np.uint8) for i in (0, 1)]


def test_values_of_overrides_are_parsed_as_by_mmengines_tools(config):
    words = ["train_cfg.max_iters=7", "load_from=None", "model.data_preprocessor.size=(32,32)"]
    cfg = load_config(str(config), words)
    assert (cfg.train_cfg.max_iters, cfg.load_from) == (7, None)
    assert cfg.model.data_preprocessor["size"] == (32, 32)


def test_overrides_are_merged_as_by_mmengines_tools(config):
    options = "_delete_=True", "type=EN", "reduction=8"
    words = [f"model.backbone.norm_cfg.{option}" for option in options]
    cfg = load_config(str(config), words)
    assert cfg.model.backbone.norm_cfg == {"type": "EN", "reduction": 8}


@pytest.mark.parametrize(
    "evaluator, metric, unit",
    [
        ("dict(type='IoUMetric', iou_metrics=['mIoU'])", "mIoU", "percent"),
        ("dict(type='mmdet.CocoMetric', metric='bbox')", "coco/bbox_mAP", "fraction"),
        ("[dict(type='IoUMetric'), dict(type='mmdet.CocoMetric')]", "coco/bbox_mAP", "fraction"),
        ("[dict(type='mmdet.CocoMetric'), dict(type='IoUMetric')]", "mIoU", "percent"),
        ("dict(type='mmdet.CocoPanopticMetric')", "coco_panoptic/PQ", "percent"),
        ("dict(type='mmpretrain.Accuracy')", "accuracy/top1", "percent"),
        ("dict(type='Evaluator', metrics=[dict(type='IoUMetric')])", "mIoU", "percent"),
        ("dict(type='DepthMetric')", "rmse", None),
        ("dict(type='NoSuchMetric')", "mine", None),
    ],
)
def test_the_evaluator_tells_a_metrics_unit(config, evaluator, metric, unit):
    opened = open_config(str(config))
    opened.config.test_evaluator = eval(evaluator)
    assert opened.unit(metric) == unit


def test_the_default_folder_is_mmengines(config):
    assert load_config(str(config), []).work_dir == "work_dirs/fcn"


def test_mixed_precision_is_of_every_optimizer(config, root):
    cfg = load_config(str(config), amp=True)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert cfg.optim_wrapper.optimizer.type == "SGD"
    cfg = load_config(str(root / "configs/pix2pix/facades_in_in.py"), amp=True)
    kinds = [cfg.optim_wrapper[name].type for name in ("generator", "discriminator")]
    assert kinds == ["AmpOptimWrapper"] * 2


@pytest.mark.parametrize("given", [True, False], ids=["given", "default"])
def test_options_of_ddp_are_the_configs_on_the_cpu_too(monkeypatch, given):
    monkeypatch.setattr(training.distributed, "init_process_group", lambda backend: None)
    options = {"find_unused_parameters": True, "model_wrapper_cfg": {"broadcast_buffers": True}}
    cfg = Config(options if given else {})
    training.choose_launcher(cfg, ProcessOptions(num_processes=2))
    assert bool(cfg.model_wrapper_cfg.get("find_unused_parameters")) == given
    assert bool(cfg.model_wrapper_cfg.get("broadcast_buffers")) == given


def test_the_runner_is_the_configs():
    with pytest.raises(KeyError, match="NoRunner"):
        cfg = Config({"work_dir": "none", "runner_type": "NoRunner"})
        opened = OpenMMEngineConfig("", cfg, "cpu")
        opened.run(RunRecord("none", RunOptions(""), "openmmlab"))


def check_first_convolution(inference, convolution, mean, std, bgr):
    """Compare what a model's first convolution gets with the images, scaled here."""
    seen, outputs = [], []
    convolution.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    convolution.register_forward_hook(lambda _, inputs, y: outputs.append(y))
    inference.forward(IMAGES)
    assert not any(output.requires_grad for output in outputs)
    pixels = torch.tensor(np.stack(IMAGES)).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    expected = ((pixels.flip(1) if bgr else pixels) - mean) / std
    assert_close(torch.cat(seen)[:2, :, :32, :32], expected, 16)


def test_a_classifier_of_a_wrapped_dataset_gets_rgb():
    opened = open_config(RESNET20, ["test_dataloader.batch_size=7"])
    data = opened.config.test_dataloader
    data.dataset = {"type": "RepeatDataset", "times": 1, "dataset": data.dataset}
    found = opened.inference()
    assert found.name == "resnet20_cifar10"
    assert found.batch_size == 7
    assert found.preprocessing == "the config's test pipeline, PackInputs"
    mean, std = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)
    check_first_convolution(found, found.model.backbone.stem.conv, mean, std, bgr=False)


def test_the_pipeline_of_a_wrapped_dataset_is_augmented():
    cfg = open_config(RESNET20).config
    data = cfg.test_dataloader
    data.dataset = {"type": "RepeatDataset", "times": 1, "dataset": data.dataset}
    cfg.tta_pipeline, cfg.tta_model = [], {}
    training.augment_test(cfg)
    assert data.dataset.dataset.pipeline == []


def test_a_config_without_a_test_pipeline_is_told():
    with pytest.raises(UserError, match=r"no test_dataloader\.dataset\.pipeline"):
        open_config(RESNET20, ["test_dataloader=None"]).inference()


def test_a_segmenter_without_an_augmented_test_is_refused(root):
    cfg = open_config(str(root / "configs/mmseg/camvid/fcn_r18-d8.py")).config
    with pytest.raises(UserError, match="--tta needs tta_pipeline in the config; define it"):
        training.augment_test(cfg)


def test_a_test_set_of_several_parts_prepares_images():
    found = open_config(DUSK).inference()
    assert found.preprocessing == "the config's test pipeline, PackSegInputs"


def test_every_part_of_a_test_set_is_augmented():
    cfg = open_config(DUSK).config
    cfg.tta_pipeline = [{"type": "LoadImageFromFile"}]
    training.augment_test(cfg)
    parts = cfg.test_dataloader.dataset.datasets
    assert [part.pipeline for part in parts] == [cfg.tta_pipeline] * 2
    assert "pipeline" not in cfg.test_dataloader.dataset


def test_a_segmenter_of_files_in_bgr(config):
    mean, std = (1.0, 2.0, 3.0), (10.0, 20.0, 30.0)
    opts = [f"model.data_preprocessor.{k}={v}" for k, v in (("mean", mean), ("std", std))]
    found = open_config(str(config), opts).inference()
    assert "Load" not in found.preprocessing
    assert found.batch_size == 1
    check_first_convolution(found, found.model.eval().backbone.conv1, mean, std, bgr=True)


def test_an_unknown_norm_among_several_heads_is_named(config):
    opened = open_config(str(config))
    head = opened.config.model.decode_head
    opened.config.model.auxiliary_head = [head, {**head, "norm_cfg": {"type": "bn"}}]
    words = (
        r"^model\.auxiliary_head\.1\.norm_cfg\.type is 'bn', an unknown norm; near ones are BN\b"
    )
    with pytest.raises(UserError, match=words):
        opened.build_model()


def derived(base, folder):
    (folder / "mine.py").write_text(f"_base_ = {base!r}\nmodel = dict(test_cfg=dict(stride=1))\n")
    return Config.fromfile(folder / "mine.py")


def test_a_config_derives_from_one_of_ours(root, tmp_path):
    for package in ("mmseg", "mmdet"):
        pytest.importorskip(package, reason=f"needs {package}")
    name = "mmseg/shapes/fcn_r18-d8_shapes_en.py"
    path, cfg = str(root / "configs" / name), derived(f"ilm_plugins::{name}", tmp_path)
    assert cfg.to_dict() == derived(path, tmp_path).to_dict()
    # Its modules are those of mmseg: a scope of our own would not have them.
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert any(isinstance(module, ExemplarNorm) for module in model.modules())
    # Bases of other packages are what they were.
    cfg = derived("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py", tmp_path)
    assert cfg.model["_scope_"] == "mmdet"


PURE_PYTHON = """
from mmengine.config import read_base

with read_base():
    from .base import *

from ilm_plugins import ExemplarNorm

model.update(norm_cfg=dict(type=ExemplarNorm, reduction=16))
"""


def test_a_pure_python_config_names_the_class(tmp_path):
    base = "from mmpretrain.models import ResNet\n"
    base += "model, default_scope = dict(type=ResNet, depth=18), 'mmpretrain'\n"
    (tmp_path / "base.py").write_text(base)
    (tmp_path / "mine.py").write_text(PURE_PYTHON)
    opened = open_config(str(tmp_path / "mine.py"), ["model.norm_cfg.reduction=8"])
    norms = [m for m in opened.build_model().modules() if isinstance(m, nn.GroupNorm)]
    assert {type(norm) for norm in norms} == {ExemplarNorm}
    assert {norm.reduction for norm in norms} == {8}


def test_a_class_in_a_pure_python_config_is_known_by_its_key(tmp_path):
    (tmp_path / "base.py").write_text("model = dict(type='ResNet')\n")
    (tmp_path / "mine.py").write_text(PURE_PYTHON)
    assert open_config(str(tmp_path / "mine.py")).norms() == {"model.norm_cfg": "EN"}


def test_a_class_that_no_part_of_a_pure_python_config_has_is_an_error(tmp_path):
    (tmp_path / "base.py").write_text("model = dict(type='ResNet')\n")
    (tmp_path / "mine.py").write_text(PURE_PYTHON.replace("model.update(norm_cfg=", "norm_cfg = ("))
    with pytest.raises(UserError, match=r"norm_cfg\.type is .*ExemplarNorm', but no part"):
        open_config(str(tmp_path / "mine.py"))


def test_a_pure_python_config_that_names_the_class_needs_no_other_import(tmp_path):
    """As in a framework's own tools, which do not import ilm_plugins."""
    (tmp_path / "base.py").write_text("model = dict()\n")
    (tmp_path / "mine.py").write_text(PURE_PYTHON)
    processes.run_program("mmengine_class_in_config.py", tmp_path / "mine.py")


@pytest.mark.parametrize("package", ["mmcv", "mmseg"])
def test_a_package_that_a_config_needs_is_named_if_it_is_missing(package, tmp_path, monkeypatch):
    path = tmp_path / "fcn.py"
    path.write_text('default_scope = "mmseg"')
    monkeypatch.setattr(config_files, "installed", lambda name: name != package)
    with pytest.raises(UserError, match=f"fcn.py needs {package}: .*pip install onedl-mm"):
        load_config(str(path))


def test_an_override_of_a_variable_names_the_keys_that_have_an_effect():
    words = (
        r"data_root is a variable .* give train_dataloader\.dataset\.data_root, val_dataloader\."
    )
    with pytest.raises(UserError, match=words):
        open_config("ilm_plugins://pix2pix/facades_in_in.py", ["data_root=elsewhere"])


def test_a_norm_cfg_that_no_part_of_the_model_uses_is_an_error(config, tmp_path):
    code = f"_base_ = {str(config)!r}\nnorm_cfg = dict(_delete_=True, type='EN')\n"
    (tmp_path / "unused.py").write_text(code)
    words = r"^norm_cfg\.type is 'EN', but no part .* as model\.backbone\.norm_cfg, or remove it"
    with pytest.raises(UserError, match=words):
        open_config(str(tmp_path / "unused.py"))
    (tmp_path / "used.py").write_text(f"{code}model = dict(backbone=dict(norm_cfg=norm_cfg))\n")
    assert open_config(str(tmp_path / "used.py")).norms()["model.backbone.norm_cfg"] == "EN"


def test_a_norm_cfg_of_a_base_may_have_no_part_left(config, tmp_path):
    parts = ", ".join(f"{name}=dict(norm_cfg=bn)" for name in ("backbone", "decode_head"))
    code = f"_base_ = {str(config)!r}\nbn = dict(_delete_=True, type='BN')\nmodel = dict({parts})\n"
    (tmp_path / "bn.py").write_text(code)
    assert {*open_config(str(tmp_path / "bn.py")).norms().values()} == {"BN"}
