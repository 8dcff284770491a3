"""Single steps of a training in MMEngine: its batches, a model's outputs, an iteration."""

from collections.abc import Callable, Iterator
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from .openmmlab_config import build_model


def training_batches(cfg: Config, processes: int = 1) -> Iterator[Any]:
    """Yield batches of the training set, of the size that one process gets, without end."""
    init_default_scope(cfg.get("default_scope") or "mmengine")
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    while True:
        yield from loader


def outputs(model: nn.Module, batch: Any) -> Any:
    """Return a model's raw outputs, in evaluation mode."""
    return model(**model.data_preprocessor(batch, False), mode="tensor")


def training_step(cfg: Config, processes: int = 1) -> Callable[[], None]:
    """Return a function that trains a new model for one iteration, on the same batch each time."""
    model = build_model(cfg).to(get_device())
    model = (model if get_device() != "cpu" else revert_sync_batchnorm(model)).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = next(training_batches(cfg, processes))
    return lambda: model.train_step(batch, wrapper)
