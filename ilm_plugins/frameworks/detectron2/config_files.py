"""Read detectron2's configs, yaml and LazyConfigs."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.data import DatasetCatalog
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from yaml.constructor import ConstructorError

from ...errors import UserError
from ...trust import code_is_allowed
from ..config_files import check_overrides, reading

#: Keys of a LazyConfig's ``train`` that a training reads; detectron2's default_setup reads the last
#: two, which may be missing.
TRAIN = (
    *("output_dir", "init_checkpoint", "max_iter", "amp", "ddp", "checkpointer", "eval_period"),
    *("log_period", "device", "seed", "cudnn_benchmark"),
)
#: Dataset that a LazyConfig registered -> the function that loads it.
OF_CONFIGS: dict[str, Callable] = {}


def load_config(
    path: str, overrides: Sequence[str] = (), device: str | None = None, amp: bool = False
) -> CfgNode | DictConfig:
    """Read a config with overrides; a yaml runs code only within ``loading(unsafe=True)``."""
    if path.endswith(".py"):
        with reading(path), registering_again():
            cfg = LazyConfig.load(path)
        check_overrides(overrides, OmegaConf.to_container(cfg, resolve=False))
        with explaining_overrides(overrides, "KEY=VALUE"):
            cfg = LazyConfig.apply_overrides(cfg, list(overrides))
        if device is not None:
            OmegaConf.update(cfg, "train.device", device)
        if amp:
            OmegaConf.update(cfg, "train.amp.enabled", True)
        return cfg
    cfg = get_cfg()
    with reading(path):
        try:
            cfg.merge_from_file(path, allow_unsafe=code_is_allowed())
        except ConstructorError as error:
            raise UserError(
                f"{path}: {error.problem} {error.problem_mark}: it may run code; read the file, "
                "and if you trust it, give --unsafe"
            ) from error
    with explaining_overrides(overrides, "KEY VALUE"):
        cfg.merge_from_list(list(overrides))
    if device is not None:
        cfg.MODEL.DEVICE = device
    cfg.SOLVER.AMP.ENABLED |= amp
    return cfg


@contextmanager
def registering_again() -> Iterator[None]:
    """Let a LazyConfig register the datasets that an earlier reading registered."""
    for name in OF_CONFIGS:
        DatasetCatalog.pop(name, None)
    others = {*DatasetCatalog}
    try:
        yield
    finally:
        OF_CONFIGS.update({n: DatasetCatalog[n] for n in DatasetCatalog if n not in others})
        DatasetCatalog.update(OF_CONFIGS)  # also those of another config


@contextmanager
def explaining_overrides(overrides: Sequence[str], form: str) -> Iterator[None]:
    """Replace the errors of wrong overrides by a UserError."""
    try:
        yield
    except (AssertionError, HydraException, KeyError, ValueError) as error:
        reason = str(next(iter(error.args), error)).partition("\n")[0]
        raise UserError(
            f"overrides {shlex.join(overrides)}: {reason}; give {form}, with a key of the config"
        ) from error
