"""What a built MMEngine config comes to, in the words of ``recipes/*.yaml``."""

import copy
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, PARAM_SCHEDULERS, init_default_scope
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from torch import nn

from ilm_plugins import NORMS
from ilm_plugins.cli import train_net
from ilm_plugins.frameworks.openmmlab import run_folder
from ilm_plugins.frameworks.openmmlab.checkpoints import latest
from ilm_plugins.frameworks.openmmlab.train import model_of
from recipes import ROOT
from runs import mmengine_command

NORM_TYPES = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)

#: The last word of a config's name -> the class of norm that it claims.
CLAIMED = {"bn": nn.BatchNorm2d, "syncbn": SyncBatchNorm, "gn": nn.GroupNorm}
CLAIMED |= {key.lower(): layer for key, layer in NORMS.items()}


@cache
def _parsed(framework: str, config: str) -> Config:
    return Config.fromfile(ROOT / "configs" / framework / config)


def load(framework: str, config: str) -> Config:
    """A copy, which may be changed."""
    cfg = copy.deepcopy(_parsed(framework, config))
    cfg.work_dir = "unused"
    return cfg


def build_model(cfg: Config) -> nn.Module:
    init_default_scope(cfg.default_scope)
    return model_of(cfg)


_skeletons = {}
#: Functions of torch.nn.init, which take time on the meta device too.
_INITIALIZATIONS = ("uniform_", "kaiming_uniform_", "normal_", "ones_", "zeros_")


def skeleton(cfg: Config) -> nn.Module:
    """The model on the meta device, in a fraction of the time; one for all configs of the same."""
    key = f"{cfg.default_scope} {cfg.model}"
    if key not in _skeletons:
        # Backbones read their rates of stochastic depth from a tensor.
        linspace = partial(torch.linspace, device="cpu")
        kept = dict.fromkeys(_INITIALIZATIONS, lambda tensor, *_, **__: tensor)
        skipping = patch.multiple("torch.nn.init", **kept)
        with torch.device("meta"), patch("torch.linspace", linspace), skipping:
            _skeletons[key] = build_model(cfg)
    return _skeletons[key]


def claimed(config: str) -> type:
    """The class of norm that a config's file name claims."""
    return CLAIMED[config.removesuffix(".py").rsplit("_", 1)[1]]


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """The normalization layers by their names in the model."""
    return {n: m for n, m in model.named_modules() if isinstance(m, NORM_TYPES)}


def kinds(layers: dict[str, nn.Module]) -> Counter:
    return Counter(type(layer).__name__ for layer in layers.values())


def training(cfg: Config, model: nn.Module) -> dict:
    """Optimizer, schedule, length and batch of a config, from what is built of it."""
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optimizer = wrapper.optimizer
    schedulers = cfg.param_scheduler
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    built = [
        PARAM_SCHEDULERS.build(
            {k: v for k, v in s.items() if k != "convert_to_iter_based"},
            default_args={"optimizer": wrapper},
        )
        for s in schedulers
    ]
    found = {
        "optimizer": type(optimizer).__name__,
        "learning rate": _only(g["initial_lr"] for g in optimizer.param_groups),
        "weight decay": _only(g["weight_decay"] for g in optimizer.param_groups),
        "momentum": _only(g.get("momentum") for g in optimizer.param_groups),
        "batch": cfg.auto_scale_lr.base_batch_size,
        "images a GPU": cfg.train_dataloader.batch_size,
    }
    for unit in ("epochs", "iters"):
        if (length := cfg.train_cfg.get(f"max_{unit}")) is not None:
            found["epochs" if unit == "epochs" else "iterations"] = length
    for scheduler in built:
        name = type(scheduler).__name__
        if "MultiStep" in name:
            found["steps"] = sorted(scheduler.milestones.elements())
            found["factor"] = scheduler.gamma
        elif "Poly" in name:
            found |= {"power": scheduler.power, "last learning rate": scheduler.eta_min}
        elif "Linear" in name:
            found["warm-up until"] = scheduler.end
            found["warm-up iterations"] = round(1 / scheduler.start_factor)
            found["warm-up from"] = round(scheduler.start_factor, 4)
    return found


def schedule(cfg: Config) -> tuple[torch.optim.Optimizer, list]:
    """The optimizer of a model of one linear map, and its schedulers, which count iterations."""
    wrapper = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper)
    owner = {"optimizer": wrapper}
    built = [PARAM_SCHEDULERS.build(one, default_args=owner) for one in cfg.param_scheduler]
    return wrapper.optimizer, built


def rates(optimizer: torch.optim.Optimizer, schedulers: list, at: Sequence[int]) -> list[float]:
    """Learning rates at iterations, in rising order."""
    found = []
    for iteration in range(at[-1] + 1):
        if iteration in at:
            found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


def sizes(cfg: Config) -> dict:
    """Sizes of the training images and of the test, from the built pipelines."""
    init_default_scope(cfg.default_scope)
    found, train = {}, cfg.train_dataloader.dataset
    train = train.get("dataset", train)  # within one that balances classes
    for t in _transforms(train, train.pipeline):
        name = type(t).__name__
        if name == "RandomChoiceResize":
            found["training sizes"] = [list(scale) for scale in t.scales]
        elif name == "RandomResize":
            found["training sizes"] = [list(t.scale)]
            found["ratios"] = list(t.ratio_range)
        elif name == "Resize":
            found["training sizes"] = [list(t.scale)]
        elif name == "RandomCrop":
            found |= {"crop": list(t.crop_size), "padding": getattr(t, "padding", None)}
        elif name == "RandomResizedCrop":
            found["crop"] = list(t.scale)
        elif name == "RandomFlip":
            found["flip"] = t.prob
    test = cfg.test_dataloader.dataset
    found["test sizes"] = _test_sizes(_transforms(test, test.pipeline))
    if "tta_pipeline" in cfg:
        (augmentations,) = (
            t.subroutines
            for t in _transforms(test, cfg.tta_pipeline)
            if type(t).__name__ == "TestTimeAug"
        )
        found["multi-scale sizes"] = _unique(
            size for one in augmentations for size in _test_sizes(one.transforms)
        )
        found["multi-scale flips"] = _unique(
            bool(t.prob)
            for one in augmentations
            for t in one.transforms
            if type(t).__name__ == "RandomFlip"
        )
    return found


def _transforms(dataset: dict, pipeline: list) -> list:
    """The built transforms of a pipeline; the data themselves need not be there."""
    built = DATASETS.build({**dataset, "pipeline": pipeline, "lazy_init": True})
    return built.pipeline.transforms


def _test_sizes(transforms) -> list:
    found = []
    for t in transforms:
        match type(t).__name__:
            case "Resize":
                found.append(list(t.scale) if t.scale else t.scale_factor[0])
            case "ResizeEdge":
                found.append(t.scale)
            case "CenterCrop":
                found.append(list(t.crop_size))
    return found


def _unique(values) -> list:
    return list({str(value): value for value in values}.values())


def _only(values):
    """The value that all have, or all values."""
    found = sorted(set(values), key=str)
    return found[0] if len(found) == 1 else found


def step(model: nn.Module, batch: dict) -> dict[str, float]:
    """One training step by plain SGD on a data batch; its losses."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = model(**model.data_preprocessor(batch, training=True), mode="loss")
    total, log = model.parse_losses(losses)
    total.backward()
    optimizer.step()
    return {name: value.item() for name, value in log.items()}


def run(config, folder: Path, out: Path, *opts: str, iterations=2, tests=((),)) -> list[dict]:
    """Train a config, below configs/, on a folder's images; the metrics of each test then."""
    path = str(ROOT / "configs" / config)
    settings = [*run_folder.data_overrides(path, str(folder)), "randomness.seed=0"]
    for loader in run_folder.LOADERS:
        settings += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
    settings += opts
    length = run_folder.length_overrides(path, iterations)
    assert train_net.main(mmengine_command(path, out=out, opts=[*length, *settings])) == 0
    settings.append(f"load_from={latest(out)}")
    metrics = []
    for number, options in enumerate(tests):
        argv = mmengine_command(path, "--eval-only", *options, out=out / f"{number}", opts=settings)
        assert train_net.main(argv) == 0
        (file,) = out.glob(f"{number}/*/*.json")
        metrics.append(json.loads(file.read_text()))
    return metrics
