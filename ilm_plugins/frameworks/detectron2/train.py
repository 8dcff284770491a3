"""Training and evaluation of detectron2's yaml configs and LazyConfigs, on GPUs and on the CPU."""

import argparse
import copy
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2 import modeling, solver
from detectron2.config import CfgNode, instantiate
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    default_setup,
    default_writers,
    defaults,
    hooks,
)
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.evaluation import (
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from ...errors import UserError
from ...layers import NORMS
from ..command import WithoutTracebacks, building
from .checkpoints import Checkpointer
from .checks import LAZY_WEIGHTS, load_config
from .evaluators import EVALUATORS, WITHOUT_OUTPUT
from .faults import NamesImage, NamesIteration, names_datasets
from .ratios import RatiosHook


def main(args: argparse.Namespace, cfg: CfgNode | DictConfig | None = None):
    """Train or evaluate in this process, which reads the config itself unless it gets one."""
    if args.launcher != "none":
        join_group(args)
    cfg = load_config(args) if cfg is None else cfg
    default_setup(cfg, args)
    logging.getLogger("detectron2.engine.train_loop").addFilter(WithoutTracebacks())
    if isinstance(cfg, DictConfig):
        return evaluate_lazy(cfg, args) if args.eval_only else train_lazy(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg, args.ratios_interval)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def join_group(args: argparse.Namespace) -> None:
    """Join the process group of the run, by the steps of detectron2's own launcher."""
    torch.distributed.init_process_group(
        "nccl" if args.num_gpus else "gloo", timeout=DEFAULT_TIMEOUT
    )
    comm.create_local_process_group(args.num_gpus or args.num_processes)
    if args.num_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    comm.synchronize()


class Trainer(NamesIteration, DefaultTrainer):
    """detectron2's default trainer, which runs on several CPU processes too, and evaluates."""

    def __init__(self, cfg: CfgNode, ratios_interval: int | None = None) -> None:
        self.ratios_interval = ratios_interval
        # The constructor offers no other way to these two.
        theirs = defaults.create_ddp_model, defaults.DetectionCheckpointer
        defaults.create_ddp_model, defaults.DetectionCheckpointer = create_ddp_model, Checkpointer
        try:
            super().__init__(cfg)
        finally:
            defaults.create_ddp_model, defaults.DetectionCheckpointer = theirs

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Build the model; raise UserError with the setting of an unknown norm."""
        with building("the config's model"), naming_norms(cfg):
            return super().build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer; raise UserError for a mistake in the config."""
        return optimizer_of(cfg, model)

    def build_hooks(self) -> list[HookBase]:
        """Build the hooks; the last of them writes what the others log."""
        return ratios_hooks(self.ratios_interval) + super().build_hooks()

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Build a loader whose errors name the broken file."""
        with names_datasets(cfg.DATASETS.TRAIN):
            mapper = NamesImage(DatasetMapper(cfg, True))
            return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Build a loader whose errors name the broken file."""
        mapper = NamesImage(DatasetMapper(cfg, False))
        with names_datasets([dataset_name]):
            return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str):
        """The evaluators that a data set's metadata names; results go to OUTPUT_DIR/inference."""
        folder = f"{cfg.OUTPUT_DIR}/inference"
        evaluators = [
            build(dataset_name)
            if build in WITHOUT_OUTPUT
            else build(dataset_name, output_dir=folder)
            for build in EVALUATORS[MetadataCatalog.get(dataset_name).evaluator_type]
        ]
        return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def ratios_hooks(interval: int | None) -> list[HookBase]:
    """The hook for ``--ratios-interval``, or none."""
    return [RatiosHook(interval)] if interval else []


_create_ddp_model = defaults.create_ddp_model


def create_ddp_model(model: torch.nn.Module, **options) -> torch.nn.Module:
    """detectron2's, without the device ids that DistributedDataParallel refuses on the CPU."""
    if next(model.parameters()).device.type == "cpu":
        options["device_ids"] = None
    return _create_ddp_model(model, **options)


class LazyTrainer(NamesIteration, SimpleTrainer):
    """detectron2's trainer for LazyConfigs."""


class LazyAMPTrainer(NamesIteration, AMPTrainer):
    """detectron2's for mixed precision."""


def train_lazy(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Train a LazyConfig that has detectron2's usual entries: model, dataloader, optimizer,
    lr_multiplier, train."""
    with building("the config's model"):
        model = model_of(cfg).to(cfg.train.device)
    optimizer = optimizer_of(cfg, model)
    loader = lazy_loader(cfg, "train")
    model = create_ddp_model(model, **cfg.train.ddp)
    kind = LazyAMPTrainer if cfg.train.amp.enabled else LazyTrainer
    trainer = kind(model, loader, optimizer)
    checkpointer = Checkpointer(model, cfg.train.output_dir, trainer=trainer)
    checkpointer.setting = LAZY_WEIGHTS
    every_process = [
        *ratios_hooks(args.ratios_interval),
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
    ]
    evaluate = hooks.EvalHook(cfg.train.eval_period, lambda: evaluate_model(cfg, model))
    if comm.is_main_process():
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        saving = hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
        writing = hooks.PeriodicWriter(writers, period=cfg.train.log_period)
        trainer.register_hooks([*every_process, saving, evaluate, writing])
    else:
        trainer.register_hooks([*every_process, evaluate])
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    resumed = args.resume and checkpointer.has_checkpoint()
    # A checkpoint holds the iteration that had just finished.
    trainer.train(trainer.iter + 1 if resumed else 0, cfg.train.max_iter)


def lazy_loader(cfg: DictConfig, part: str):
    """Build the loader "train" or "test" of a LazyConfig; its errors name the broken file."""
    loader = cfg.dataloader[part]
    names = OmegaConf.select(loader, "dataset.names") or ()
    names = [names] if isinstance(names, str) else names
    parts = {}
    if "dataset" in loader:
        with names_datasets(names):
            parts["dataset"] = instantiate(loader.dataset)
    if "mapper" in loader:
        parts["mapper"] = NamesImage(instantiate(loader.mapper))
    return instantiate({**loader, **parts})


def evaluate_lazy(cfg: DictConfig, args: argparse.Namespace):
    """Evaluate a LazyConfig's ``train.init_checkpoint``, or with --resume its last checkpoint."""
    with building("the config's model"):
        model = model_of(cfg).to(cfg.train.device)
    model = create_ddp_model(model)
    checkpointer = Checkpointer(model, cfg.train.output_dir)
    checkpointer.setting = LAZY_WEIGHTS
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    return evaluate_model(cfg, model)


def evaluate_model(cfg: DictConfig, model: torch.nn.Module):
    """Run the evaluator of a LazyConfig, if it has one."""
    if "evaluator" not in cfg.dataloader:
        return None
    loader, evaluator = lazy_loader(cfg, "test"), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results


def build_model(args: argparse.Namespace) -> torch.nn.Module:
    """Build the model of a config, with random weights.

    Raises:
        UserError: the config cannot be read, or has no model.
    """
    cfg = load_config(args)
    if isinstance(cfg, DictConfig) and "model" not in cfg:
        raise UserError(f"{args.config_file} does not define model; a LazyConfig of a model does")
    return model_of(cfg)


def model_of(cfg: CfgNode | DictConfig) -> torch.nn.Module:
    """Build the model of a config, with random weights; an error names an unknown norm.

    That of a LazyConfig is on the CPU.
    """
    with naming_norms(cfg):
        return modeling.build_model(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.model)


def optimizer_of(cfg: CfgNode | DictConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a config, for its model.

    Raises:
        UserError: it cannot be built.
    """
    with building("the config's optimizer"):
        if isinstance(cfg, CfgNode):
            return solver.build_optimizer(cfg, model)
        lazy = copy.deepcopy(cfg.optimizer)
        lazy.params.model = model
        return instantiate(lazy)


@contextmanager
def naming_norms(cfg: CfgNode | DictConfig) -> Iterator[None]:
    """Raise UserError with the setting of a norm that detectron2's get_norm does not know."""
    try:
        yield
    except KeyError as error:
        settings = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
        for name, value in _norms(settings):
            if (value,) == error.args:
                raise UserError(
                    f"unknown norm {value!r} in {name}; known norms: "
                    f"{', '.join(NORMS)}, and detectron2's, such as GN, BN, SyncBN, FrozenBN"
                ) from None
        raise


def _norms(settings: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a config that name norms, with their values."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _norms(value, f"{prefix}{key}.")
        elif str(key).lower().endswith("norm"):
            yield f"{prefix}{key}", value
