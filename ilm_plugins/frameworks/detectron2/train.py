"""Training and evaluation of detectron2's yaml configs and LazyConfigs, on GPUs and on the CPU."""

import argparse
import copy
import inspect
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
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
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from ... import checkpoints
from ...errors import UserError
from ...layers import NORMS
from ..command import WithoutTracebacks, building
from ..optimizers import keep_layouts
from .annotations import leave_out_boxes
from .checkpoints import Checkpointer
from .checks import LAZY_KEYS, load_config
from .faults import ImageErrors, add_iteration, explain_dataset_errors
from .radius import RadiusHook
from .ratios import RatiosHook

#: Metadata ``evaluator_type`` of a data set -> its evaluators.
EVALUATORS = {
    "coco": [COCOEvaluator],
    "coco_panoptic_seg": [SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator],
    "lvis": [LVISEvaluator],
    "pascal_voc": [PascalVOCDetectionEvaluator],
    "sem_seg": [SemSegEvaluator],
    "cityscapes_instance": [CityscapesInstanceEvaluator],
    "cityscapes_panoptic_seg": [
        COCOPanopticEvaluator,
        CityscapesSemSegEvaluator,
        CityscapesInstanceEvaluator,
    ],
    "cityscapes_sem_seg": [CityscapesSemSegEvaluator],
}


def main(args: argparse.Namespace, cfg: CfgNode | DictConfig | None = None):
    """Train, or evaluate with ``--eval-only``, in this process.

    First, with another ``--launcher`` than none, joins the process group; then, by detectron2's
    default_setup, sets up logging and the random seed, and writes the config to the output folder.
    An evaluation leaves the config of an earlier run there as it was.

    Args:
        args: the parsed command line of tools/train_net.py.
        cfg: the config; if None, it is read from ``args.config_file``.

    Returns:
        With ``--eval-only`` the metrics by task, or None for a LazyConfig without an evaluator.
        After a training None; but if a yaml config has TEST.EXPECTED_RESULTS, the last metrics on
        rank 0.

    Raises:
        UserError: the config, its data or its checkpoint is invalid, or an image cannot be used.
        FloatingPointError: the loss became NaN or infinite; the message has the iteration.
        SystemExit: metrics differ from TEST.EXPECTED_RESULTS.
    """
    if args.launcher != "none":
        join_group(args)
    cfg = load_config(args) if cfg is None else cfg
    with keeping_config(cfg) if args.eval_only else nullcontext():
        default_setup(cfg, args)
    logging.getLogger("detectron2.engine.train_loop").addFilter(WithoutTracebacks())
    if isinstance(cfg, DictConfig):
        return evaluate_lazy(cfg, args) if args.eval_only else train_lazy(cfg, args)
    if args.eval_only:
        model = with_layout(Trainer.build_model(cfg), args.channels_last)
        checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg, args.ratios_interval, args.channels_last)
    trainer.resume_or_load(resume=args.resume)
    with add_iteration(trainer):
        return trainer.train()


@contextmanager
def keeping_config(cfg: CfgNode | DictConfig) -> Iterator[None]:
    """On exit, restore the config in the output folder, if it was there before.

    It is config.yaml, and config.yaml.pkl for a LazyConfig that yaml cannot hold.
    """
    folder = Path(cfg.train.output_dir if isinstance(cfg, DictConfig) else cfg.OUTPUT_DIR)
    paths = folder.glob("config.yaml*") if comm.is_main_process() else ()
    before = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, contents in before.items():
            with checkpoints.replacing(path) as file:
                file.write(contents)


def join_group(args: argparse.Namespace) -> None:
    """Join the run's process group, as detectron2's launcher does: NCCL on GPUs, else gloo.

    The rank and the address are read from torch's environment variables (RANK, MASTER_ADDR and so
    on). On GPUs, LOCAL_RANK becomes the current device. Waits for all other processes.

    Args:
        args: ``num_gpus`` or, if it is 0, ``num_processes`` is the number of processes on this
            machine.
    """
    torch.distributed.init_process_group(
        "nccl" if args.num_gpus else "gloo", timeout=DEFAULT_TIMEOUT
    )
    comm.create_local_process_group(args.num_gpus or args.num_processes)
    if args.num_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    comm.synchronize()


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer, which also runs on several CPU processes and evaluates.

    Args:
        cfg: a yaml config.
        ratios_interval: iterations between two logs of EN's, SN's and SSN's ratios; None logs none.
        channels_last: whether the model's weights and feature maps have channels last.

    Raises:
        UserError: the model, the optimizer or a data set of the config cannot be built.
    """

    def __init__(
        self, cfg: CfgNode, ratios_interval: int | None = None, channels_last: bool = False
    ) -> None:
        self.ratios_interval = ratios_interval
        # The constructor has no arguments for these.
        ours = {
            "create_ddp_model": partial(create_ddp_model, channels_last=channels_last),
            "DetectionCheckpointer": Checkpointer,
            "AMPTrainer": Float16Trainer if cfg.MODEL.DEVICE != "cpu" else Bfloat16Trainer,
        }
        theirs = {name: getattr(defaults, name) for name in ours}
        try:
            vars(defaults).update(ours)
            super().__init__(cfg)
        finally:
            vars(defaults).update(theirs)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Build the model; raise UserError with the setting of an unknown norm."""
        with building("the config's model"), explain_unknown_norms(cfg):
            return super().build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer; raise UserError for a mistake in the config."""
        return optimizer_of(cfg, model)

    def build_hooks(self) -> list[HookBase]:
        """Return our hooks, then detectron2's, whose last one writes logs."""
        folder = FolderHook(self.cfg.OUTPUT_DIR)
        return our_hooks(self.ratios_interval) + super().build_hooks() + [folder]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Build a loader whose errors name the broken file."""
        with building("the augmentation of images"):
            mapper = ImageErrors(DatasetMapper(cfg, True))
        with explain_dataset_errors(cfg.DATASETS.TRAIN):
            parts = build_detection_train_loader.from_config(cfg, mapper=mapper)
            parts["dataset"] = leave_out_boxes(parts["dataset"], cfg.DATASETS.TRAIN)
            return build_detection_train_loader(**parts)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Build a loader whose errors name the broken file."""
        mapper = ImageErrors(DatasetMapper(cfg, False))
        with explain_dataset_errors([dataset_name]):
            return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str):
        """Build the evaluator of a data set, by the ``evaluator_type`` in its metadata.

        Those that write results write them to OUTPUT_DIR/inference.

        Returns:
            One evaluator, or a DatasetEvaluators of several.

        Raises:
            AttributeError, KeyError: the metadata has no such type, or one not in ``EVALUATORS``.
        """
        evaluators = []
        for build in EVALUATORS[MetadataCatalog.get(dataset_name).evaluator_type]:
            writes = "output_dir" in inspect.signature(build).parameters
            folder = {"output_dir": f"{cfg.OUTPUT_DIR}/inference"} if writes else {}
            evaluators.append(build(dataset_name, **folder))
        return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def our_hooks(ratios_interval: int | None) -> list[HookBase]:
    """Return the hook for SSN's radius and, if an interval is given, that for ratios."""
    return [RadiusHook(), *([RatiosHook(ratios_interval)] if ratios_interval else [])]


class FolderHook(HookBase):
    """Raise FileNotFoundError after an iteration in which the output folder was removed."""

    def __init__(self, folder: str) -> None:
        self.file = Path(folder, "metrics.json")

    def after_step(self) -> None:
        if comm.is_main_process():
            self.file.stat()


_create_ddp_model = defaults.create_ddp_model


def create_ddp_model(
    model: torch.nn.Module, channels_last: bool = False, **options
) -> torch.nn.Module:
    """Call detectron2's create_ddp_model, without device ids if the model is on the CPU.

    With ``channels_last``, the model's weights are stored with channels last, in place, and so are
    the feature maps that 2d convolutions compute with them.
    """
    with_layout(model, channels_last)
    if next(model.parameters()).device.type == "cpu":
        options["device_ids"] = None
    return _create_ddp_model(model, **options)


def with_layout(model: torch.nn.Module, channels_last: bool) -> torch.nn.Module:
    """Return the model, whose 4-dimensional weights get channels last, in place, if asked."""
    return model.to(memory_format=torch.channels_last) if channels_last else model


class Float16Trainer(AMPTrainer):
    """detectron2's AMPTrainer, which also continues from a checkpoint of a run in float32.

    Such a checkpoint has no scale of the loss; the scale then starts at its initial value.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a trainer."""
        super().load_state_dict({"grad_scaler": self.grad_scaler.state_dict(), **state_dict})


class Bfloat16Trainer(SimpleTrainer):
    """detectron2's AMPTrainer for the CPU, which that class refuses.

    Forward passes in training run under torch's autocast to bfloat16; weights, their gradients and
    the optimizer stay in float32. bfloat16 has float32's range, so losses are not scaled.
    """

    def run_step(self) -> None:
        """Train on a batch; outside of this method the model is unchanged."""
        model, forward = self.model, self.model.forward
        own = "forward" in vars(model)
        model.forward = torch.autocast("cpu", torch.bfloat16)(forward)
        try:
            super().run_step()
        finally:
            if own:
                model.forward = forward
            else:
                del model.forward


class LazyCheckpointer(Checkpointer):
    """A Checkpointer whose messages name a LazyConfig's setting with the initial weights."""

    setting = LAZY_KEYS.weights


def train_lazy(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Train the model of a LazyConfig with the entries ``checks.LAZY_ENTRIES``.

    Writes checkpoints and logs to ``train.output_dir``, and evaluates every ``train.eval_period``
    iterations and at the end.

    Args:
        cfg: the config.
        args: ``resume`` continues from the last checkpoint, if there is one; ``ratios_interval``
            and ``channels_last`` as in :class:`Trainer`.

    Raises:
        UserError: the model, the optimizer or the data set cannot be built, or an image cannot be
            used.
        CheckpointError: the checkpoint cannot be loaded, or a resumed run has another model.
    """
    plain = model_of(cfg).to(cfg.train.device)
    optimizer = optimizer_of(cfg, plain)
    loader = lazy_loader(cfg, "train")
    model = create_ddp_model(plain, args.channels_last, **cfg.train.ddp)
    mixed = Bfloat16Trainer if cfg.train.device == "cpu" else Float16Trainer
    kind = mixed if cfg.train.amp.enabled else SimpleTrainer
    trainer = kind(model, loader, optimizer)
    checkpointer = LazyCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    writes = comm.is_main_process()
    writers = default_writers(cfg.train.output_dir, cfg.train.max_iter) if writes else []
    trainer.register_hooks(
        [
            *our_hooks(args.ratios_interval),
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if writes else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate_model(cfg, plain)),
            hooks.PeriodicWriter(writers, period=cfg.train.log_period) if writes else None,
            FolderHook(cfg.train.output_dir),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    resumed = args.resume and checkpointer.has_checkpoint()
    # A checkpoint has the number of the iteration that it was saved after.
    with add_iteration(trainer):
        trainer.train(trainer.iter + 1 if resumed else 0, cfg.train.max_iter)


def lazy_loader(cfg: DictConfig, part: str):
    """Build the loader "train" or "test" of a LazyConfig, ``dataloader.train`` or ``.test``.

    Iterating over it raises RunError with the file of an image that cannot be used.

    Raises:
        UserError: the data set cannot be loaded. Other errors of building the loader pass.
    """
    loader = cfg.dataloader[part]
    names = OmegaConf.select(loader, "dataset.names") or ()
    names = [names] if isinstance(names, str) else names
    parts = {}
    if "dataset" in loader:
        with explain_dataset_errors(names):
            parts["dataset"] = instantiate(loader.dataset)
            if part == "train":
                parts["dataset"] = leave_out_boxes(parts["dataset"], names)
    if "mapper" in loader:
        parts["mapper"] = ImageErrors(instantiate(loader.mapper))
    return instantiate({**loader, **parts})


def evaluate_lazy(cfg: DictConfig, args: argparse.Namespace):
    """Evaluate a LazyConfig's ``train.init_checkpoint``, or with --resume the last checkpoint.

    The last checkpoint is that of ``train.output_dir``; where there is none, ``init_checkpoint`` is
    evaluated, and with "" the model as it was initialized.

    Returns:
        The metrics, see :func:`evaluate_model`.

    Raises:
        CheckpointError: the checkpoint is missing, cannot be read or is of another model.
    """
    model = with_layout(model_of(cfg).to(cfg.train.device), args.channels_last)
    checkpointer = LazyCheckpointer(model, cfg.train.output_dir)
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    return evaluate_model(cfg, model)


def evaluate_model(cfg: DictConfig, model: torch.nn.Module):
    """Return the metrics of a LazyConfig's evaluator by task, also logged; None without evaluator.

    With detectron2's evaluators only rank 0 gets metrics; the other ranks get an empty dict.

    Args:
        cfg: the config, with the evaluator and the test loader under ``dataloader``.
        model: runs in evaluation mode; its mode is restored. It must not be wrapped for several
            processes: the wrapper sends buffers at each image, and processes may get different
            numbers of images.
    """
    if "evaluator" not in cfg.dataloader:
        return None
    loader, evaluator = lazy_loader(cfg, "test"), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results


def model_of(cfg: CfgNode | DictConfig) -> torch.nn.Module:
    """Build the model of a config, with random weights.

    The model of a LazyConfig is on the CPU, that of a yaml config on its MODEL.DEVICE.

    Raises:
        UserError: the model cannot be built; for an unknown norm, with the setting that names it.
    """
    with building("the config's model"), explain_unknown_norms(cfg):
        return modeling.build_model(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.model)


def optimizer_of(cfg: CfgNode | DictConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a config for the parameters of a model; the config is not changed.

    Raises:
        UserError: the optimizer cannot be built.
    """
    with building("the config's optimizer"):
        if isinstance(cfg, CfgNode):
            return keep_layouts(solver.build_optimizer(cfg, model))
        lazy = copy.deepcopy(cfg.optimizer)
        lazy.params.model = model
        return keep_layouts(instantiate(lazy))


@contextmanager
def explain_unknown_norms(cfg: CfgNode | DictConfig) -> Iterator[None]:
    """Within this context, get_norm's KeyError for an unknown norm becomes a UserError.

    It is one whose key is the value of a setting of the config with a name that ends with "norm";
    the message names the first such setting. Other KeyErrors pass unchanged.
    """
    try:
        yield
    except KeyError as error:
        settings = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
        for name, value in _norm_settings(settings):
            if (value,) == error.args:
                raise UserError(
                    f"unknown norm {value!r} in {name}; known norms: "
                    f"{', '.join(NORMS)}, and detectron2's, such as GN, BN, SyncBN, FrozenBN"
                ) from None
        raise


def _norm_settings(settings: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all settings whose keys end with "norm", in upper or lower case.

    Args:
        settings: nested mappings of a config. Mappings are searched, whatever their keys, and not
            yielded; lists are not searched.
        prefix: text before all keys, such as "MODEL.".
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _norm_settings(value, f"{prefix}{key}.")
        elif str(key).lower().endswith("norm"):
            yield f"{prefix}{key}", value
