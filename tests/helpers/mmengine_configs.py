"""What a built MMEngine config comes to, in the words of ``recipes/*.yaml``."""

import copy
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, PARAM_SCHEDULERS, init_default_scope
from torch import nn

from ilm_plugins import AssocNorm, ExemplarNorm, ILMGroupNorm, ILMInstanceNorm
from ilm_plugins.frameworks.openmmlab.config import OpenMMEngineConfig
from ilm_plugins.layers.mixture import MixtureNorm

ROOT = Path(__file__).parents[2]
NORM_TYPES = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
#: Functions of torch.nn.init that fill a tensor.
INITIALIZATIONS = [name for name in vars(nn.init) if name.endswith("_") and name[0] != "_"]
#: Folders of configs whose norms are arguments; base files have none.
OTHERS = {"_base_", "camvid"}
_skeletons = {}


def configs(framework: str) -> list[str]:
    """The configs named by their norm, below configs/FRAMEWORK."""
    folder = ROOT / "configs" / framework
    found = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(str(path) for path in found if not OTHERS.intersection(path.parts))


@cache
def _parsed(path: str) -> Config:
    return Config.fromfile((ROOT if path.startswith("reproduction/") else ROOT / "configs") / path)


def load(path: str) -> Config:
    """A copy of a config below configs/, or in reproduction/, which may be changed."""
    return copy.deepcopy(_parsed(path))


def skeleton(cfg: Config) -> nn.Module:
    """The model with empty weights, in a fraction of the time; one for all configs of the same."""
    key = f"{cfg.default_scope} {cfg.model}"
    if key not in _skeletons:
        kept = dict.fromkeys(INITIALIZATIONS, lambda tensor, *_, **__: tensor)
        with patch.multiple("torch.nn.init", **kept):
            _skeletons[key] = OpenMMEngineConfig("", cfg, "cpu").build_model()
    return _skeletons[key]


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, NORM_TYPES)}


def described(cfg: Config) -> dict:
    model = skeleton(cfg)
    return {**training(cfg, model), **sizes(cfg), **of_norms(model), **of_model(cfg, model)}


def described_translation(cfg: Config) -> dict:
    """A config of pix2pix in the words of its recipe."""
    train, test = cfg.train_dataloader.dataset, cfg.test_dataloader.dataset
    model, schedule, epochs = skeleton(cfg), cfg.param_scheduler, cfg.train_cfg.max_epochs
    wrappers = build_optim_wrapper(model, cfg.optim_wrapper)
    (settings,) = {
        (type(w.optimizer).__name__, g["lr"], g["betas"], g["weight_decay"])
        for w in wrappers.values()
        for g in w.param_groups
    }
    plain = [
        sum(p.numel() for n, p in net.named_parameters() if "code" not in n) / 1e6
        for net in (model.generator, model.discriminator)
    ]
    dropped = [m for m in model.generator.up.modules() if isinstance(m, nn.Dropout)]
    ilm = [m for m in model.modules() if isinstance(m, ILMInstanceNorm)]
    # Constant, then linear to 0 after the last epoch.
    assert (schedule.type, schedule.start_factor, schedule.end_factor) == ("LinearLR", 1, 0)
    assert schedule.end == epochs + 1
    parts = {"training": train, "test": test}
    sizes = {n: train[n.replace(" ", "_")] for n in ("direction", "size", "load size", "flip")}
    return sizes | {
        **dict(zip(("optimizer", "learning rate", "betas", "weight decay"), settings, strict=True)),
        **{"batch": cfg.auto_scale_lr.base_batch_size, "epochs": epochs},
        **{"images a GPU": cfg.train_dataloader.batch_size, "decay from": schedule.begin},
        **{"lambda": model.lambda_l1, "dropout": dropped[0].p, "dropping layers": len(dropped)},
        "key group size": max([m.num_channels // m.encode.weight.shape[1] for m in ilm] or [1]),
        **{f"{name} images": one.images["facades"] for name, one in parts.items()},
        **{"generator": round(plain[0], 1), "discriminator": round(plain[1], 2)},
        "depth": len(model.generator.down),
    }


def training(cfg: Config, model: nn.Module) -> dict:
    """Optimizer, schedule, length and batch of a config, from what is built of it."""
    built, given = [], cfg.param_scheduler
    with patch("mmengine.optim.optimizer.default_constructor.print_log"):  # of every parameter
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for scheduler in [given] if isinstance(given, dict) else given:
        # Each counts in the config's own unit.
        options = {k: v for k, v in scheduler.items() if k != "convert_to_iter_based"}
        built.append(PARAM_SCHEDULERS.build(options, default_args={"optimizer": wrapper}))
    groups = wrapper.optimizer.param_groups
    found = {
        "optimizer": type(wrapper.optimizer).__name__,
        "learning rate": _only(group["initial_lr"] for group in groups),
        "weight decay": _only(group["weight_decay"] for group in groups),
        "momentum": _only(group.get("momentum") for group in groups),
        "batch": cfg.auto_scale_lr.base_batch_size,
        "images a GPU": cfg.train_dataloader.batch_size,
        "epochs": cfg.train_cfg.get("max_epochs"),
        "iterations": cfg.train_cfg.get("max_iters"),
    }
    for scheduler in built:
        name = type(scheduler).__name__
        if "MultiStep" in name:
            found |= {"steps": sorted(scheduler.milestones.elements()), "factor": scheduler.gamma}
        elif "Poly" in name:
            found |= {"power": scheduler.power, "last learning rate": scheduler.eta_min}
        elif "Linear" in name:
            found["warm-up until"] = scheduler.end
            found["warm-up iterations"] = round(1 / scheduler.start_factor)
            found["warm-up from"] = round(scheduler.start_factor, 4)
        elif "Cosine" in name:
            found |= {"cosine over": scheduler.T_max, "last learning rate": scheduler.eta_min}
    return found


def sizes(cfg: Config) -> dict:
    """Sizes of the training images and of the test, from the built pipelines."""
    init_default_scope(cfg.default_scope)
    train, test = cfg.train_dataloader.dataset, cfg.test_dataloader.dataset
    found = {"balanced": train.get("oversample_thr")}
    for t in transforms(train.get("dataset", train)):
        match type(t).__name__:
            case "RandomChoiceResize":
                found["training sizes"] = [list(scale) for scale in t.scales]
            case "RandomResize":
                found |= {"training sizes": [list(t.scale)], "ratios": list(t.ratio_range)}
            case "Resize":
                found["training sizes"] = [list(t.scale)]
            case "RandomCrop":
                found |= {"crop": list(t.crop_size), "padding": getattr(t, "padding", None)}
            case "RandomResizedCrop":
                found["crop"] = list(t.scale)
            case "RandomFlip":
                found["flip"] = t.prob
    found["test sizes"] = _test_sizes(transforms(test))
    if "tta_pipeline" in cfg:
        built = transforms({**test, "pipeline": cfg.tta_pipeline})
        (augmented,) = (t.subroutines for t in built if type(t).__name__ == "TestTimeAug")
        flips = [bool(t.prob) for one in augmented for t in one.transforms if hasattr(t, "prob")]
        multi_scale = [size for one in augmented for size in _test_sizes(one.transforms)]
        found["multi-scale sizes"] = list({str(size): size for size in multi_scale}.values())
        found["multi-scale flips"] = sorted(set(flips))
    return found


def transforms(dataset: dict) -> list:
    """The built pipeline of a dataset, whose files need not be there."""
    return DATASETS.build({**dataset, "lazy_init": True}).pipeline.transforms


def _test_sizes(built: list) -> list:
    found = []
    for t in built:
        match type(t).__name__:
            case "Resize":
                found.append(list(t.scale) if t.scale else t.scale_factor[0])
            case "ResizeEdge":
                found.append(t.scale)
            case "CenterCrop":
                found.append(list(t.crop_size))
    return found


def of_norms(model: nn.Module) -> dict:
    """Options that all norms of a kind in a model share."""
    found = {}
    for layer in norms(model).values():
        options = {"statistics momentum": getattr(layer, "momentum", None)}
        if isinstance(layer, MixtureNorm):
            options["normalizers"] = list(layer.normalizers)
        elif isinstance(layer, nn.GroupNorm):
            options["groups"] = layer.num_groups
            options["group size"] = layer.num_channels // layer.num_groups
        if isinstance(layer, ILMGroupNorm):
            options["key group size"] = layer.num_channels // layer.num_key_groups
            options["activations"] = list(layer.activations)
        elif isinstance(layer, AssocNorm):
            options |= {"key groups": layer.num_key_groups, "combine": layer.combine}
        elif isinstance(layer, ExemplarNorm):
            options |= {"reduction": layer.reduction, "expansion": layer.expansion}
            options["variant"] = type(layer).__name__.removesuffix("ExemplarNorm")
        for name, value in options.items():
            found.setdefault(name, []).append(value)
    return {name: v[0] for name, v in found.items() if all(value == v[0] for value in v)}


def of_model(cfg: Config, model: nn.Module) -> dict:
    """The network of a classifier or a segmenter in the words of its recipe."""
    backbone = model.backbone
    if cfg.default_scope == "mmpretrain":
        stem = getattr(backbone, "conv1", None) or backbone.stem
        conv = next(m for m in stem.modules() if isinstance(m, nn.Conv2d))
        return {
            "classes": model.head.num_classes,
            "depth": cfg.model.backbone.get("depth"),
            "first scale": 0.0 if getattr(backbone, "zero_init_residual", False) else 1.0,
            "pooled stem": any(isinstance(m, nn.MaxPool2d) for m in backbone.modules()),
            "stem": [conv.kernel_size[0], conv.stride[0], conv.padding[0]],
            "metrics": list(METRICS.build(cfg.test_evaluator).topk),
        }
    if cfg.default_scope != "mmseg":
        return {}
    decode, deep = model.decode_head, model.auxiliary_head
    stages = [getattr(backbone, name) for name in backbone.res_layers]
    return {
        "classes": model.num_classes,
        "depth": backbone.depth,
        # Dilations begin in a stage's second block.
        "dilations": [stage[1].conv2.dilation[0] for stage in stages],
        "output stride": 4 * torch.tensor(backbone.strides).prod().item(),
        "align corners": decode.align_corners,
        "deep supervision": [deep.in_index, deep.channels, deep.loss_decode.loss_weight],
        "head": [getattr(decode, "num_convs", None), decode.channels],
        "rates": list(getattr(decode, "dilations", ())),
    }


def _only(values):
    """The value that all have, or all values."""
    found = sorted(set(values), key=str)
    return found[0] if len(found) == 1 else found
