"""Single steps of a training in detectron2: its batches, a model's outputs, an iteration."""

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

from detectron2 import data
from detectron2.config import CfgNode, instantiate
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from .detectron2_config import build_model


def training_batches(cfg: CfgNode | DictConfig, processes: int = 1) -> Iterator[list[dict]]:
    """Yield batches of the training set, of the size that one of several processes gets."""
    if isinstance(cfg, CfgNode):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.IMS_PER_BATCH = max(1, cfg.SOLVER.IMS_PER_BATCH // processes)
        return iter(data.build_detection_train_loader(cfg))
    loader = cfg.dataloader.train
    size = {"total_batch_size": max(1, loader.total_batch_size // processes)}
    return iter(instantiate({**loader, **size}))


def outputs(model: nn.Module, batch: list[dict]) -> Any:
    """Return a model's predictions, in evaluation mode."""
    return model(batch)


def training_step(cfg: CfgNode | DictConfig, processes: int = 1) -> Callable[[], None]:
    """Return a function that trains a new model for one iteration, on the same batch each time."""
    lazy = isinstance(cfg, DictConfig)
    model = build_model(cfg).to(cfg.train.device if lazy else cfg.MODEL.DEVICE).train()
    if lazy:
        cfg = cfg.copy()
        cfg.optimizer.params.model = model
        optimizer, mixed = instantiate(cfg.optimizer), cfg.train.amp.enabled
    else:
        optimizer, mixed = DefaultTrainer.build_optimizer(cfg, model), cfg.SOLVER.AMP.ENABLED
    batch = next(training_batches(cfg, processes))
    kind = AMPTrainer if mixed else SimpleTrainer
    trainer = kind(model, repeat(batch), optimizer)
    storage = EventStorage()

    def step() -> None:
        with storage:
            trainer.run_step()
            storage.step()

    return step
