"""Every shipped mmpretrain config: what it builds, its recipe's numbers, and a training step."""

import logging
import math
import re
from fnmatch import fnmatch
from functools import cache
from types import SimpleNamespace

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

import torch
import yaml
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.models.utils import SELayer
from mmpretrain.structures import DataSample
from torch import nn

from ilm_plugins import NORMS, AssocNorm, ExemplarNorm, ILMGroupNorm
from ilm_plugins.cli import train_net as run_options
from ilm_plugins.frameworks import curves
from ilm_plugins.frameworks.openmmlab.models.aa_resnet import AugmentedConv2d
from ilm_plugins.frameworks.openmmlab.run_folder import LOADERS
from ilm_plugins.frameworks.openmmlab.train import load_config
from ilm_plugins.layers.mixture import MixtureNorm
from ilm_plugins.reproduction import miniature, registry
from mmengine_configs import build_model, load, norms, run, sizes, skeleton, step, training
from recipes import ROOT, configs, recipe

ALL = configs("mmpretrain")
CELLS = [cell for table in registry.tables().values() for cell in table.cells.values()]
ABLATIONS = [cell for cell in CELLS if cell.overrides]
every_config = pytest.mark.parametrize("config", ALL)

NAME = re.compile(
    r"(?P<recipe>ilm|assoc|en)/(?P<backbone>[a-z]+[^_]*)_"
    r"(?P<data>[^_]+)_(?P<norm>[a-z]+)\.py"
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
    "seresnet50": ("SEResNet", 53),
    "aaresnet50": ("AAResNet", 53),
    "resnet101 cifar": ("ResNet_CIFAR", 104),
    "shufflenetv2-x0.5": ("ShuffleNetV2", 56),
    "bn-inception": ("BNInception", 69),
    "resnet20 cifar": ("CifarResNet", 19),
    "resnet56 cifar": ("CifarResNet", 55),
    "resnet110 cifar": ("CifarResNet", 109),
}
#: Of each kind one, for a training step in the everyday suite.
KINDS = {
    "ilm/resnet101_cifar10_ilmgn.py",
    "assoc/resnet101_cifar100_assocnorm.py",
    "en/resnet50_imagenet_en.py",
    "en/aaresnet50_imagenet_bn.py",
    "en/shufflenetv2-x0.5_imagenet_en.py",
    "en/shufflenetv2-x0.5_imagenet_ssn.py",
    "en/bn-inception_webvision_sn.py",
    "en/resnet20_cifar10_en.py",
}
LONG_UNLESS_KIND = [c if c in KINDS else pytest.param(c, marks=pytest.mark.long) for c in ALL]


def parsed(config):
    return NAME.fullmatch(config).groupdict()


@cache
def loaded(config):
    return load("mmpretrain", config)


def built(dataset):
    """The data set of a config, whose files need not be there."""
    init_default_scope("mmpretrain")
    return DATASETS.build({**dataset.get("dataset", dataset), "lazy_init": True})


def only(values):
    (value,) = set(values)
    return value


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


@every_config
def test_a_variant_is_its_base_and_a_norm(config):
    lines = (ROOT / "configs" / "mmpretrain" / config).read_text().splitlines()
    if parsed(config)["norm"] == "ssn":
        assert lines.pop() == 'custom_hooks = [dict(type="RadiusHook")]'
    assert sum(not line.startswith("#") for line in lines) == 2
    assert lines[-1].startswith("model = dict(backbone=dict(norm_cfg=")


def convolutions(model):
    """Output channels of the convolutions before norms; an augmented one counts as a whole."""
    wholes = [m for m in model.modules() if isinstance(m, AugmentedConv2d | SELayer)]
    parts = {part for whole in wholes for part in whole.modules()}
    plain = {m for m in model.modules() if isinstance(m, nn.Conv2d)} - parts
    augmented = [m for m in wholes if isinstance(m, AugmentedConv2d)]
    return [m.out_channels for m in plain] + [
        m.conv.out_channels + m.join.out_channels for m in augmented
    ]


@every_config
def test_the_file_names_norm_is_behind_every_convolution(config):
    name, model = parsed(config), skeleton(loaded(config))
    layers = list(norms(model).values())
    widths_before = convolutions(model)
    backbone = f"{name['backbone']}{' cifar' if 'cifar' in name['data'] else ''}"
    kind, count = BACKBONES[backbone]
    assert type(model.backbone).__name__ == kind
    assert {type(layer) for layer in layers} == {CLASSES[name["norm"]]}
    assert len(layers) == len(widths_before) == count
    widths = [getattr(m, "num_channels", None) or m.num_features for m in layers]
    assert sorted(widths) == sorted(widths_before)
    if kind.endswith("ResNet") and kind != "CifarResNet":
        assert name["backbone"] == f"{kind.lower()}{model.backbone.depth}"
    # Instance norm's scale and shift are not its default.
    assert all(layer.weight is not None for layer in layers)


@every_config
def test_the_file_names_data(config):
    name, cfg = parsed(config), loaded(config)
    for split in ("train", "val", "test"):
        loader = cfg[f"{split}_dataloader"]
        data = loader.dataset.get("dataset", loader.dataset)
        kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}.get(name["data"], "ImageNet")
        assert data.type == kind and data.data_root.strip("/") == f"data/{name['data']}"
        classes = built(loader.dataset).metainfo["classes"]
        assert len(classes) == cfg.data_preprocessor.num_classes == cfg.model.head.num_classes


def described(cfg):
    """A config in the words of its recipe."""
    model = skeleton(cfg)
    found = sizes(cfg) | of_model(model) | of_norms(norms(model).values()) | training(cfg, model)
    found["balanced"] = cfg.train_dataloader.dataset.type == "ClassBalancedDataset"
    metrics = [METRICS.build(cfg[k]) for k in ("val_evaluator", "test_evaluator")]
    return found | {"metrics": list(only(m.topk for m in metrics))}


@cache
def of_file(config):
    return described(loaded(config))


@every_config
def test_the_recipe_is_the_papers(config):
    found, expected = of_file(config), recipe("mmpretrain", config)
    assert len(expected) >= 15
    assert {name: found.get(name) for name in expected} == expected


#: Table -> what a cell of an ablation changes in the words of recipes, by the cell's name.
CHANGES = {
    "ilm-4": lambda name: {"batch": number(name), "images a GPU": number(name)},
    "ilm-7": lambda name: {"activations": name.strip("()").split(", ")},
    "ilm-fig4": lambda name: {"key group size": 1},
    # One for each channel, so that their number is not the same in all layers.
    "assoc-fig5": lambda name: {"key groups": None},
    "assoc-5": lambda name: {"combine": name},
    # "EN 4.4: 8 GPU with 32 images per GPU to pre-train"; the rate is that of He et al., 3.4.
    "en-6": lambda name: {"batch": 256, "learning rate": 0.1},
    "en-7": lambda name: {"expansion": number(name)},
    "en-8": lambda name: {"reduction": number(name)},
    "en-9": {
        # With 1/32 of the channels in its hidden layer, which is EN's reduction (Section 4.5).
        "2-layer MLP": {"ratio network": ["mlp", "tanh"]},
        "w/o convolution": {"ratio network": ["no_conv", "tanh"]},
        "ReLU": {"ratio network": ["conv", "relu"]},
        "single gamma, beta": {"single affine": True},
    }.get,
}
CHANGES["assoc-3"] = CHANGES["ilm-4"]


def number(name):
    """The one with which a cell's name ends: "r 16"."""
    return int(name.rsplit(" ", 1)[1])


def overridden(cell):
    words = ["--config-file", str(ROOT / cell.config), "--num-gpus", "0", *cell.overrides]
    return load_config(run_options.parser().parse_args(words))


every_ablation = pytest.mark.parametrize("cell", ABLATIONS, ids=lambda cell: cell.id)


@every_ablation
def test_an_ablation_changes_what_its_name_says_and_nothing_else(cell):
    before = of_file(cell.config.removeprefix("configs/mmpretrain/"))
    after = described(overridden(cell))
    changed = {k: after.get(k) for k in before | after if before.get(k) != after.get(k)}
    assert changed == CHANGES[cell.table](cell.name)


def test_assocnorms_keys_as_in_in_are_the_channels():
    layers = norms(skeleton(overridden(registry.find_cell("assoc-fig5 keys as in IN"))))
    assert all(m.num_key_groups == m.num_channels for m in layers.values())


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
    cfg = overridden(registry.find_cell(f"ilm-4 ILM+GN, batch {batch}"))
    assert cfg.optim_wrapper.optimizer.lr == 0.1 and not cfg.auto_scale_lr.get("enable")
    options = {"auto_scale_lr.base_batch_size": 256, "auto_scale_lr.enable": True}
    text = (ROOT / "configs/mmpretrain/ilm/_base_/schedule_cifar.py").read_text()
    assert noted("ilm-1", "auto_scale_lr") == [f"{name}={value}" for name, value in options.items()]
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
    # As the released code's train.py does it.
    assert wrapper.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * batch / 256)


def test_the_released_codes_weight_decay_is_an_option():
    (word,) = noted("ilm-3", "optim_wrapper")
    cfg = overridden(registry.find_cell("ilm-3 GN"))
    assert cfg.optim_wrapper.optimizer.weight_decay == 5e-4
    key, _, value = word.partition("=")
    cfg.merge_from_dict({key: float(value)})
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-4


def test_webvisions_classes_keep_their_order():
    """Of a million images, and of classes about as large as the average of a thousand."""
    config = load("mmpretrain", "en/bn-inception_webvision_en.py").train_dataloader.dataset
    repeats = [math.ceil(math.sqrt(config.oversample_thr * 1e6 / n)) for n in (900, 1100, 4000)]
    assert repeats == [5, 4, 2]


def noted(table, begins):
    """The overrides in a table's note that begin so, as they are typed."""
    (words,) = re.findall(f"`({re.escape(begins)}[^`]*=[^`]*)`", registry.tables()[table].note)
    return words.split()


@pytest.mark.parametrize("norm", ["bn", "sn", "en"])
def test_shufflenets_optimizer_in_the_papers_words_is_an_option(norm):
    config = f"configs/mmpretrain/en/shufflenetv2-x0.5_imagenet_{norm}.py"
    words = noted("en-2", "optim_wrapper")
    schedule = (ROOT / "configs/mmpretrain/en/_base_/schedule_shufflenetv2.py").read_text()
    assert all(word in schedule for word in words)
    cfg = overridden(registry.Cell("en-2", norm, (), config, tuple(words)))
    optimizer = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper).optimizer
    assert type(optimizer) is torch.optim.Adam and optimizer.defaults["lr"] == 0.1


@pytest.mark.parametrize("cell", ["ilm-1 ILM+GN", "assoc-1 AssocNorm"])
def test_the_initialization_in_the_papers_words_is_an_option(cell):
    cell = registry.find_cell(cell)
    words = noted(cell.table, "model.backbone")
    cell = registry.Cell(cell.table, cell.name, (), cell.config, tuple(words))
    deviations = [
        [layer.encode.weight.std().item() for layer in norms(build_model(cfg)).values()]
        for cfg in (loaded(cell.config.removeprefix("configs/mmpretrain/")), overridden(cell))
    ]
    (default, normal) = (sum(found) / len(found) for found in deviations)
    assert normal == pytest.approx(1, abs=0.1) and default < 0.5


def test_the_mlps_activation_is_an_option():
    cell = registry.find_cell("en-9 2-layer MLP")
    words = (*cell.overrides, *noted("en-9", "model.backbone"))
    changed = registry.Cell(cell.table, cell.name, (), cell.config, words)
    assert described(overridden(changed))["ratio network"] == ["mlp", "relu"]


@pytest.mark.parametrize("config", LONG_UNLESS_KIND)
def test_it_takes_a_training_step(config):
    takes_a_step(loaded(config))


@pytest.mark.long
@every_ablation
def test_an_ablation_takes_a_training_step(cell):
    takes_a_step(overridden(cell))


def takes_a_step(cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    size = 32 if "CIFAR" in cfg.train_dataloader.dataset.type else 64
    classes = cfg.data_preprocessor.num_classes
    samples = [DataSample().set_gt_label(label) for label in (0, classes - 1)]
    images = [torch.randint(256, (3, size, size), dtype=torch.uint8) for _ in samples]
    batch = {"inputs": images, "data_samples": samples}
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses = step(model, batch)
    assert losses and all(map(math.isfinite, losses.values()))
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > len(before) / 2


@pytest.mark.long
def test_the_runner_trains_and_tests_on_packed_images(tmp_path):
    """Two epochs of EN's CIFAR recipe: the warm-up, a checkpoint, and its test."""
    miniature.write_packed(tmp_path, ("train", "test"), number=12)
    opts = ["default_hooks.logger.interval=1", "param_scheduler.1.milestones=[80,120]"]
    opts += [f"{name}.batch_size=4" for name in LOADERS]
    (found,) = run("mmpretrain/en/resnet20_cifar10_en.py", tmp_path, tmp_path / "work", *opts)
    assert 0 <= found["accuracy/top1"] <= 100
    (log,) = tmp_path.glob("work/*/vis_data/scalars.json")
    rates = [entry["lr"] for entry in curves.entries(log) if "lr" in entry]
    assert rates == pytest.approx([0.1 / 391, 0.05, 0.1, 0.1, 0.1, 0.1], rel=0.01)
