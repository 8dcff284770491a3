"""Every shipped mmpretrain config: what it builds, its recipe's numbers, and a training step."""

import io
import logging
import math
import re
from fnmatch import fnmatch
from functools import cache
from types import SimpleNamespace

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

import numpy as np
import torch
import yaml
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from PIL import Image
from torch import nn

from ilm_plugins import NORMS, AssocNorm, ExemplarNorm, ILMGroupNorm
from ilm_plugins.layers.mixture import MixtureNorm
from mmengine_configs import build_model, build_without_storage, load, norms, step, training
from recipes import ROOT, configs, recipe

ALL = configs("mmpretrain")
TESTS = [config for config in ALL if "-to-" in config]
every_config = pytest.mark.parametrize("config", ALL)

NAME = re.compile(
    r"(?P<recipe>ilm|assoc|en)/(?P<backbone>[a-z]+[^_]*)_"
    r"((?P<data>[^_]+)(_batch\d+|_8xb32)?_(?P<norm>[a-z]+)(_(?P<variant>.+))?"
    r"|(?P<tested>[a-z]+)_(?P<source>[a-z]+)-to-(?P<target>[a-z]+))\.py"
)
CLASSES = {key.lower(): layer for key, layer in NORMS.items()} | {
    "bn": nn.BatchNorm2d,
    "in": nn.InstanceNorm2d,
    "gn": nn.GroupNorm,
    "ln": nn.GroupNorm,  # with one group, which the recipe tells
}
#: Backbone -> its class, and its convolutions, each followed by a norm.
BACKBONES = {
    "resnet50": ("ResNet", 53),
    "resnet50 cifar": ("ResNet_CIFAR", 53),
    "resnet101 cifar": ("ResNet_CIFAR", 104),
    "shufflenetv2-x0.5": ("ShuffleNetV2", 56),
    "bn-inception": ("BNInception", 69),
    "resnet20 cifar": ("CifarResNet", 19),
    "resnet56 cifar": ("CifarResNet", 55),
    "resnet110 cifar": ("CifarResNet", 109),
}
#: Of each kind one, for a training step in the everyday suite.
KINDS = {
    "ilm/resnet50_cifar10_ilmgn.py",
    "ilm/resnet50_cifar100_in.py",
    "ilm/resnet50_imagenet_ln.py",
    "assoc/resnet50_cifar10_assocnorm.py",
    "en/resnet50_imagenet_en.py",
    "en/shufflenetv2-x0.5_imagenet_en.py",
    "en/bn-inception_webvision_sn.py",
    "en/resnet20_cifar10_en.py",
}
LONG_UNLESS_KIND = [c if c in KINDS else pytest.param(c, marks=pytest.mark.long) for c in ALL]


def parsed(config):
    words = NAME.fullmatch(config).groupdict()
    return words | {
        "norm": words["norm"] or words["tested"],
        "data": words["data"] or words["target"],
    }


# ILM Norm paper, Tables 1 and 2: error on CIFAR-10; top-1 and top-5 error on CIFAR-100.
ILM_1_2 = {
    "bn": (6.43, 26.28, 9.37),
    "gn": (7.02, 26.94, 7.02),
    "in": (7.0, 26.08, 7.6),
    "ln": (9.98, 41.61, 15.26),
    "ilmgn": (5.88, 23.31, 6.47),
    "ilmin": (6.5, 23.97, 6.71),
    "ilmln": (7.35, 25.43, 6.88),
}
ILM_3 = {"bn": 23.85, "in": 28.4, "ln": 25.3, "gn": 24.06, "ilmgn": 23.57}
BATCHES = (32, 16, 8, 4, 2)
ILM_4 = {
    "ilmgn": (6.36, 6.64, 6.7, 7.05, 7.11),
    "gn": (7.14, 7.24, 7.22, 7.31, 7.29),
    "bn": (6.48, 7.39, 9.78, 11.15, 13.79),
}
ILM_7 = {"sigmoid-sigmoid": 8.04, "tanh-tanh": 8.63}
STARS = ("relu", "leaky_relu", "relu6", "identity")  # of ILM Norm's Table 7
ASSOC_3 = (6.49, 6.64, 6.7, 7.05, 7.11)
ASSOC_5 = {"none": ("a(WE)", 7.04), "inside": ("a(WE+B)", 6.46), "times": ("a(WE)*B", 6.49)}
# EN paper, Tables 2 and 3: top-1, top-5.
EN_2_3 = {
    "shufflenetv2-x0.5_imagenet": {"bn": (60.3, 81.9), "sn": (61.2, 82.9), "en": (62.2, 83.3)},
    "resnet50_imagenet": {
        "bn": (76.4, 93.0),
        "gn": (76.0, 92.8),
        "sn": (76.9, 93.2),
        "en": (78.1, 93.6),
    },
    "bn-inception_webvision": {"bn": (70.7, 88.0), "sn": (71.3, 88.5), "en": (71.6, 88.6)},
    "resnet50_webvision": {"bn": (72.5, 89.1), "sn": (72.8, 89.2), "en": (73.5, 89.4)},
}
EN_4 = {
    "imagenet-to-webvision": {"bn": (67.9, 85.8), "sn": (68.0, 86.3), "en": (68.4, 86.8)},
    "webvision-to-imagenet": {"bn": (64.4, 84.3), "sn": (61.1, 81.0), "en": (64.7, 84.6)},
}
EN_5 = {
    "resnet20_cifar10": {"bn": 91.54, "sn": 91.81, "en": 92.41},
    "resnet56_cifar10": {"bn": 93.15, "sn": 93.41, "en": 93.73},
    "resnet110_cifar10": {"bn": 93.88, "sn": 94.01, "en": 94.22},
    "resnet20_cifar100": {"bn": 67.87, "sn": 67.74, "en": 68.78},
    "resnet56_cifar100": {"bn": 70.83, "sn": 70.7, "en": 72.01},
    "resnet110_cifar100": {"bn": 72.41, "sn": 72.53, "en": 73.32},
}
EN_7 = {1: 77.1, 10: 77.5, 20: 77.8, 100: 78.0}
EN_8 = {2: 77.7, 4: 77.9, 16: 77.9, 64: 77.7}
EN_9 = {
    "mlp": (76.7, 92.9),
    "no-conv": (77.6, 92.9),
    "relu": (77.7, 93.4),
    "single-affine": (77.6, 93.3),
}


def rows():
    """config -> words of the comment at its head, for every row of the papers' tables."""
    found = {}
    for norm, (error, top_1, top_5) in ILM_1_2.items():
        found[f"ilm/resnet101_cifar10_{norm}"] = f"ILM paper, Table 1, .*: error {error} "
        two = f"ILM paper, Table 2, .*: top-1 error {top_1}, top-5 {top_5} "
        found[f"ilm/resnet101_cifar100_{norm}"] = two
        for number, data in ((1, "cifar10"), (2, "cifar100")):
            text = f"Table {number} gives the figures of ResNet-101"
            found[f"ilm/resnet50_{data}_{norm}"] = text
    for norm, error in ILM_3.items():
        text = f"ILM paper, Table 3, .*: top-1 error {error} "
        found[f"ilm/resnet50_imagenet_{norm}"] = text
    for norm, errors in ILM_4.items():
        for batch, error in zip(BATCHES, errors, strict=True):
            text = f"ILM paper, Table 4, .*, batch {batch}: error {error} "
            found[f"ilm/resnet101_cifar10_batch{batch}_{norm}"] = text
    for pair, error in ILM_7.items():
        found[f"ilm/resnet101_cifar10_ilmgn_{pair}"] = f"ILM paper, Table 7, .*: error {error} "
    for star in STARS:
        for pair in (f"tanh-{star}", f"{star}-sigmoid", f"{star}-{star}"):
            text = "ILM paper, Table 7, .*: did not converge"
            found[f"ilm/resnet101_cifar10_ilmgn_{pair}"] = text
    found["ilm/resnet101_cifar10_ilmgn_keys-in"] = "ILM paper, Figure 4"

    found["assoc/resnet101_cifar10_assocnorm"] = "Table 1: error 6.19 .*; in Table 5, .* 6.11"
    found["assoc/resnet101_cifar100_assocnorm"] = "Table 2: top-1 error 23.31, top-5 5.71 "
    for data in ("cifar10", "cifar100"):
        found[f"assoc/resnet50_{data}_assocnorm"] = "the figures of ResNet-101"
    for batch, error in zip(BATCHES, ASSOC_3, strict=True):
        text = f"AssocNorm paper, Table 3, batch {batch}: error {error} "
        found[f"assoc/resnet101_cifar10_batch{batch}_assocnorm"] = text
    for word, (form, error) in ASSOC_5.items():
        text = f"AssocNorm paper, Table 5, {re.escape(form)}: error {error} "
        found[f"assoc/resnet101_cifar10_assocnorm_combine-{word}"] = text
    found["assoc/resnet101_cifar10_assocnorm_keys-in"] = "AssocNorm paper, Figure 5"

    for name, norms_ in EN_2_3.items():
        number = 2 if name.endswith("imagenet") else 3
        for norm, (top_1, top_5) in norms_.items():
            text = f"EN paper, Table {number}, .*, {norm.upper()}: top-1 {top_1}, top-5 {top_5} "
            found[f"en/{name}_{norm}"] = text
    for pair, norms_ in EN_4.items():
        for norm, (top_1, top_5) in norms_.items():
            text = f"EN paper, Table 4, .*, {norm.upper()}: top-1 {top_1}, top-5 {top_5} "
            found[f"en/resnet50_{norm}_{pair}"] = text
    for name, norms_ in EN_5.items():
        for norm, top_1 in norms_.items():
            found[f"en/{name}_{norm}"] = f"EN paper, Table 5, .*, {norm.upper()}: top-1 {top_1} "
    for norm in ("bn", "gn", "sn", "en"):
        found[f"en/resnet50_imagenet_8xb32_{norm}"] = "Table 6, .*; no ImageNet figure"
    for expansion, top_1 in EN_7.items():
        text = f"EN paper, Table 7, pi = {expansion}: top-1 {top_1} "
        found[f"en/resnet50_imagenet_en_expansion{expansion}"] = text
    for reduction, top_1 in EN_8.items():
        text = f"EN paper, Table 8, r = {reduction}: top-1 {top_1} "
        found[f"en/resnet50_imagenet_en_reduction{reduction}"] = text
    for word, (top_1, top_5) in EN_9.items():
        text = f"EN paper, Table 9, .*: top-1 {top_1}, top-5 {top_5} "
        found[f"en/resnet50_imagenet_en_{word}"] = text
    return {f"{name}.py": text for name, text in found.items()}


ROWS = rows()


@cache
def loaded(config):
    return load("mmpretrain", config)


_models = {}


def skeleton(config):
    """The model without memory; one for all configs that state the same."""
    cfg = loaded(config)
    key = repr(cfg.model)
    if key not in _models:
        _models[key] = build_without_storage(cfg)
    return _models[key]


def head(config):
    """The comment at the beginning of a file, in one line."""
    lines = (ROOT / "configs" / "mmpretrain" / config).read_text().split("_base_ =")[0].splitlines()
    return " ".join(line.removeprefix("# ") for line in lines)


def built(dataset):
    """The data set of a config, whose files need not be there."""
    init_default_scope("mmpretrain")
    return DATASETS.build({**dataset.get("dataset", dataset), "lazy_init": True})


def pack(folder, colours):
    """Archives of images of one colour each, of as many classes as CIFAR-10 has."""
    files = []
    for colour in colours:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), tuple(colour)).save(file, "JPEG")
        files.append(file.getvalue())
    for split in ("train", "test"):
        np.savez(
            folder / f"{split}.npz",
            jpeg=np.frombuffer(b"".join(files), np.uint8),
            offsets=np.cumsum([0, *map(len, files)]),
            labels=np.arange(len(files)) % 10,
            classes=np.array(list("abcdefghij")),
        )


def only(values):
    (value,) = set(values)
    return value


def of_transforms(cfg):
    """Sizes of the images that a config trains and tests on, from the built pipelines."""
    found = {"test sizes": []}
    for transform in built(cfg.test_dataloader.dataset).pipeline.transforms:
        name = type(transform).__name__
        if name == "ResizeEdge":
            found["test sizes"].append(transform.scale)
        elif name == "CenterCrop":
            found["test sizes"].append(only(transform.crop_size))
    if cfg.train_dataloader is None:
        return found
    for transform in built(cfg.train_dataloader.dataset).pipeline.transforms:
        name = type(transform).__name__
        if name == "RandomFlip":
            found["flip"] = transform.prob
        elif name == "RandomResizedCrop":
            found["crop"] = only(transform.scale)
        elif name == "RandomCrop":
            found |= {"crop": only(transform.crop_size), "padding": transform.padding}
    found["balanced"] = cfg.train_dataloader.dataset.type == "ClassBalancedDataset"
    return found


def of_schedule(cfg, model):
    schedulers = cfg.param_scheduler
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    found = training(cfg, model)
    for scheduler in schedulers:
        if scheduler.type == "LinearLR":
            found["warm-up iterations"] = round(1 / scheduler.start_factor)
        elif scheduler.type == "PolyLR":
            found["last learning rate"] = scheduler.eta_min
    return found


def of_norms(layers):
    """Options that all norms of a model share."""
    found = {}
    for layer in layers:
        options = {}
        if isinstance(layer, MixtureNorm):
            options["normalizers"] = layer.normalizers
        elif isinstance(layer, nn.GroupNorm):
            options["groups"] = layer.num_groups
            options["group size"] = layer.num_channels // layer.num_groups
        if isinstance(layer, ILMGroupNorm):
            options["key group size"] = layer.num_channels // layer.num_key_groups
            options["activations"] = layer.activations
        elif isinstance(layer, AssocNorm):
            options["key groups"] = layer.num_key_groups
            options["combine"] = layer.combine
        elif isinstance(layer, ExemplarNorm):
            options |= {"reduction": layer.reduction, "expansion": layer.expansion}
            options["ratio network"] = (layer.ratio_net, layer.activation)
            options["single affine"] = layer.shared_affine
        for name, value in options.items():
            found.setdefault(name, set()).add(value)
    shared = {name: values.pop() for name, values in found.items() if len(values) == 1}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in shared.items()}


def of_model(model):
    backbone = model.backbone
    stem = getattr(backbone, "conv1", None) or backbone.stem
    found = {
        "classes": model.head.num_classes,
        "first scale": 0.0 if getattr(backbone, "zero_init_residual", False) else 1.0,
        "pooled stem": any(isinstance(m, nn.MaxPool2d) for m in backbone.modules()),
    }
    conv = next(m for m in stem.modules() if isinstance(m, nn.Conv2d))
    found["stem"] = [only(size) for size in (conv.kernel_size, conv.stride, conv.padding)]
    return found


def test_every_row_of_the_papers_tables_has_a_config_and_none_else():
    assert set(ALL) == set(ROWS)


@every_config
def test_each_states_the_papers_figures_or_that_there_are_none(config):
    assert re.search(ROWS[config], head(config))


@every_config
def test_a_variant_is_its_base_and_a_norm(config):
    lines = (ROOT / "configs" / "mmpretrain" / config).read_text().splitlines()
    assert sum(not line.startswith("#") for line in lines) == (7 if config in TESTS else 2)
    assert lines[-2 if config in TESTS else -1].startswith("model = dict(backbone=dict(norm_cfg=")


@every_config
def test_the_file_names_norm_is_behind_every_convolution(config):
    name, model = parsed(config), skeleton(config)
    layers = list(norms(model).values())
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    backbone = f"{name['backbone']}{' cifar' if 'cifar' in name['data'] else ''}"
    kind, count = BACKBONES[backbone]
    assert type(model.backbone).__name__ == kind
    assert {type(layer) for layer in layers} == {CLASSES[name["norm"]]}
    assert len(layers) == len(convolutions) == count
    widths = [getattr(m, "num_channels", None) or m.num_features for m in layers]
    assert sorted(widths) == sorted(m.out_channels for m in convolutions)
    if kind == "ResNet":
        assert model.backbone.depth == int(name["backbone"].removeprefix("resnet"))
    # Instance norm's scale and shift are not its default.
    assert all(layer.weight is not None for layer in layers)


@every_config
def test_the_file_names_data(config):
    name, cfg = parsed(config), loaded(config)
    for split in ("train", "val", "test"):
        loader = cfg[f"{split}_dataloader"]
        if config in TESTS and split != "test":
            assert loader is None
            continue
        data = loader.dataset.get("dataset", loader.dataset)
        kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}.get(name["data"], "ImageNet")
        assert data.type == kind and data.data_root.strip("/") == f"data/{name['data']}"
        classes = built(loader.dataset).metainfo["classes"]
        assert len(classes) == cfg.data_preprocessor.num_classes == cfg.model.head.num_classes


@every_config
def test_the_recipe_is_the_papers(config):
    cfg, model = loaded(config), skeleton(config)
    found = of_transforms(cfg) | of_model(model) | of_norms(norms(model).values())
    expected = recipe("mmpretrain", config)
    if config in TESTS:
        assert cfg.get("optim_wrapper") is None and cfg.get("train_cfg") is None
        assert cfg.load_from == "checkpoints/{backbone}_{source}_{norm}.pth".format(
            **parsed(config)
        )
        expected = {k: v for k, v in expected.items() if k not in ("crop", "flip")}
    else:
        found |= of_schedule(cfg, model)
        assert len(expected) >= 15
    metrics = [METRICS.build(cfg[k]) for k in ("val_evaluator", "test_evaluator") if cfg[k]]
    found["metrics"] = list(only(metric.topk for metric in metrics))
    if "ratio network" in found and "mlp" in found["ratio network"]:
        assert found["reduction"] == 32  # of its hidden layer
    if config.endswith("assocnorm_keys-in.py"):
        layers = norms(model).values()
        assert all(m.num_key_groups == m.num_channels for m in layers)
        del expected["key groups"]
    assert {name: found.get(name) for name in expected} == expected


def test_recipes_name_files_that_are_there():
    file = ROOT / "tests/configs/recipes/mmpretrain.yaml"
    for entry in yaml.safe_load(file.read_text()):
        for pattern in entry["files"]:
            assert any(fnmatch(config, pattern) for config in ALL), pattern


@pytest.mark.parametrize("config", ["ilm/resnet50_imagenet_bn.py", "en/resnet50_imagenet_en.py"])
def test_norms_start_as_identities(config):
    """ILM 4.1.1: B_omega and B_beta "are assigned as 1 and 0"; EN 4.1: gamma and beta the same."""
    model = build_model(loaded(config))
    model.init_weights()
    for layer in norms(model).values():
        assert (layer.weight == 1).all() and (layer.bias == 0).all()


@pytest.mark.parametrize("batch", [32, 16, 8, 4, 2])
def test_the_scaled_learning_rate_is_an_option(batch):
    cfg = load("mmpretrain", f"ilm/resnet101_cifar10_batch{batch}_ilmgn.py")
    assert cfg.optim_wrapper.optimizer.lr == 0.1 and not cfg.auto_scale_lr.get("enable")
    options = {"auto_scale_lr.base_batch_size": 64, "auto_scale_lr.enable": True}
    text = (ROOT / "configs/mmpretrain/ilm/_base_/schedule_cifar.py").read_text()
    assert all(f"{name}={value}" in text for name, value in options.items())
    cfg.merge_from_dict(options)
    model = nn.Linear(1, 1)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    runner = SimpleNamespace(
        _train_dataloader=cfg.train_dataloader,
        world_size=1,
        logger=logging.getLogger(),
        param_schedulers=None,
    )
    Runner.scale_lr(runner, wrapper, cfg.auto_scale_lr)
    assert wrapper.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * batch / 64)


@pytest.mark.parametrize("config", LONG_UNLESS_KIND)
def test_it_takes_a_training_step(config):
    torch.manual_seed(0)
    cfg = loaded(config)
    model = build_model(cfg)
    size = 32 if "cifar" in parsed(config)["data"] else 64
    classes = cfg.data_preprocessor.num_classes
    samples = [DataSample().set_gt_label(label) for label in (0, classes - 1)]
    images = [torch.randint(256, (3, size, size), dtype=torch.uint8) for _ in samples]
    batch = {"inputs": images, "data_samples": samples}
    if config in TESTS:
        (first, _) = model.eval().test_step(batch)
        assert first.pred_score.shape == (
            classes,
        ) and first.pred_score.sum().item() == pytest.approx(1)
        return
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses = step(model, batch)
    assert losses and all(map(math.isfinite, losses.values()))
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > len(before) / 2


@pytest.mark.long
def test_the_runner_trains_and_tests_on_packed_images(tmp_path):
    """Two epochs of EN's CIFAR recipe: the warm-up, a checkpoint, and its test."""
    colours = torch.randint(256, (12, 3)).tolist()
    pack(tmp_path, colours)
    cfg = load("mmpretrain", "en/resnet20_cifar10_en.py")
    for split in ("train", "val", "test"):
        data = {"type": "PackedImages", "data_root": str(tmp_path)}
        loader = {"batch_size": 4, "num_workers": 0, "persistent_workers": False, "dataset": data}
        cfg.merge_from_dict({f"{split}_dataloader": loader})
    cfg.train_cfg.max_epochs = 2
    cfg.work_dir = str(tmp_path / "work")
    runner = Runner.from_cfg(cfg)
    runner.train()
    rates = runner.message_hub.get_scalar("train/lr").data[0]
    assert list(rates) == pytest.approx([0.1 / 391, 0.05, 0.1, 0.1, 0.1, 0.1], rel=0.01)
    cfg.load_from = str(tmp_path / "work/epoch_2.pth")
    assert set(Runner.from_cfg(cfg).test()) == {"accuracy/top1"}
