"""Training and evaluation of detectron2's yaml configs and LazyConfigs, on GPUs and on the CPU."""

import argparse
import copy
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2 import modeling, solver
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data import (
    DatasetCatalog,
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
    launch,
)
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
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf

from ... import checkpoints
from ...errors import UserError
from ...layers import NORMS
from ..stopping import end_with_parent
from ..training import (
    WithoutTracebacks,
    building,
    check_output,
    leave_group,
    occupied,
    overriding,
    reading_config,
    told,
)
from .checkpoints import Checkpointer, check_state
from .config_files import read_config
from .datasets import SPLITS as GENERATED
from .faults import NamesImage, NamesIteration, names_datasets
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
LAZY_ENTRIES = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
#: Metadata that names files or folders of a data set.
PATHS = (
    "json_file",
    "image_root",
    "dirname",
    "image_dir",
    "gt_dir",
    "sem_seg_root",
    "panoptic_root",
)
WITHOUT_OUTPUT = {
    PascalVOCDetectionEvaluator,
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
}


def run(args: argparse.Namespace) -> None:
    """Start the processes that the command line asks for; see :mod:`..training` for ``args``.

    With ``--num-gpus 0`` GPUs are hidden from this process and its children from then on.

    Raises:
        UserError: the config, a data set or a checkpoint is not what it should be; before any
            process is started.
    """
    if args.num_gpus == 0:
        # detectron2 picks NCCL wherever it sees a GPU; the processes inherit this.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    cfg = load_config(args)
    output, output_key = check(cfg, args)
    processes = args.num_gpus or args.num_processes
    alone = processes * args.num_machines == 1
    with occupied(output, output_key, args):
        launch(
            and_leave,
            processes,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            # A LazyConfig may register data sets, which works once a process.
            args=(main, args, cfg if alone else None),
        )


def load_config(args: argparse.Namespace) -> CfgNode | DictConfig:
    """The config of ``args.config_file`` with the overrides of ``args.opts``.

    Raises:
        UserError: it cannot be read, or an override does not fit it.
    """
    path, words = args.config_file, args.opts
    if path.endswith(".py"):
        with reading_config(path):
            cfg = LazyConfig.load(path)
        for word in words:
            with overriding(path, word, "KEY=VALUE"):
                cfg = LazyConfig.apply_overrides(cfg, [word])
        if args.num_gpus == 0 and "train" in cfg:
            cfg.train.device = "cpu"
        return cfg
    cfg = read_config(path)
    if len(words) % 2:
        raise UserError(f"override {words[-1]} has no value; give overrides as KEY VALUE")
    for key, value in zip(words[::2], words[1::2], strict=True):
        with overriding(path, f"{key} {value}", "KEY VALUE"):
            cfg.merge_from_list([key, value])
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def check(cfg: CfgNode | DictConfig, args: argparse.Namespace) -> tuple[str, str]:
    """Find before it starts what would make a run fail later.

    Returns:
        The output folder and the setting that leads to it.

    Raises:
        UserError: a data set, a checkpoint, the output folder or the batch size is not what it
            should be; the message names the path that was tried and the setting that leads to it.
    """
    processes = args.num_machines * (args.num_gpus or args.num_processes)
    if isinstance(cfg, CfgNode):
        cfg = DefaultTrainer.auto_scale_workers(cfg, processes)
        train, test = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
        if args.eval_only and not test:
            raise UserError("nothing to evaluate: DATASETS.TEST is empty; name a data set in it")
        amp, amp_key = cfg.SOLVER.AMP.ENABLED, "SOLVER.AMP.ENABLED"
        weights, weights_key = cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS"
        output, output_key = cfg.OUTPUT_DIR, "OUTPUT_DIR"
        batch, batch_key = cfg.SOLVER.IMS_PER_BATCH, "SOLVER.IMS_PER_BATCH"
        for name in test:
            check_evaluator(name)
    else:
        missing = [key for key in LAZY_ENTRIES if key not in cfg]
        if missing:
            raise UserError(
                f"{args.config_file} does not define {', '.join(missing)}; a LazyConfig for "
                f"training has {', '.join(LAZY_ENTRIES)}"
            )
        train, test = (
            OmegaConf.select(cfg, f"dataloader.{part}.dataset.names") for part in ("train", "test")
        )
        if args.eval_only and "evaluator" not in cfg.dataloader:
            raise UserError("nothing to evaluate: dataloader.evaluator is missing; define it")
        amp, amp_key = cfg.train.amp.enabled, "train.amp.enabled"
        weights, weights_key = cfg.train.init_checkpoint, "train.init_checkpoint"
        output, output_key = cfg.train.output_dir, "train.output_dir"
        batch_key = "dataloader.train.total_batch_size"
        batch = OmegaConf.select(cfg, batch_key) or 0
    for names in (test,) if args.eval_only else (train, test):
        for name in (names,) if isinstance(names, str) else (names or ()):
            check_dataset(name)
    if not args.eval_only and batch % processes:
        raise UserError(
            f"{batch_key} {batch} cannot be shared by {processes} processes; "
            f"set it to a multiple of {processes}"
        )
    if amp and args.num_gpus == 0 and not args.eval_only:
        raise UserError(
            f"{amp_key} True with --num-gpus 0: detectron2's mixed precision needs a GPU; "
            "set it to False"
        )
    check_output(output, output_key)
    last = os.path.join(output, "last_checkpoint")
    if args.resume and os.path.isfile(last):
        name = checkpoints.named(last)
        if not name:
            raise UserError(f"{last!r} is empty; {checkpoints.NAME_ONE}")
        check_resumes(cfg, args, os.path.join(output, name), weights_key)
    else:
        check_weights(weights, weights_key, required=args.eval_only)
    return output, output_key


def check_dataset(name: str) -> None:
    """Raise UserError unless a data set is registered and its files are there.

    `shapes` is generated on this occasion.
    """
    if name not in DatasetCatalog:
        raise UserError(
            f"data set {name!r} is not registered in detectron2; registered are "
            + ", ".join(n for n in DatasetCatalog if n.startswith(("coco_2017", "shapes")))
            + " and others"
        )
    if name in GENERATED:
        with names_datasets([name]):
            try:
                DatasetCatalog.get(name)
            except json.JSONDecodeError:
                raise
            except (ImportError, OSError, ValueError) as error:
                raise UserError(
                    f"data set {name!r} cannot be had: {error}; the environment variable "
                    "DETECTRON2_DATASETS sets the folder in which it is generated"
                ) from error
        return
    metadata = MetadataCatalog.get(name)
    for attribute in PATHS:
        path = os.fspath(metadata.get(attribute, ""))
        if path and "://" not in path and not os.path.exists(path):
            raise UserError(
                f"data set {name!r} is not there: tried {Path(path).absolute()}; set the "
                "environment variable DETECTRON2_DATASETS to the folder that holds it (now "
                f"{os.environ.get('DETECTRON2_DATASETS', 'unset, which means ./datasets')})"
            )


def check_evaluator(name: str) -> None:
    """Raise UserError unless a registered data set says how it is evaluated."""
    kind = MetadataCatalog.get(name).get("evaluator_type") if name in DatasetCatalog else "coco"
    if kind not in EVALUATORS:
        raise UserError(
            f"data set {name!r} has evaluator_type {kind!r}; set its metadata's evaluator_type to "
            f"one of {', '.join(EVALUATORS)}"
        )


def check_weights(weights: str, setting: str, required: bool) -> None:
    """Raise UserError unless a checkpoint is there; one with a URL is fetched into the cache."""
    if not weights:
        if required:
            raise UserError(
                f"nothing to evaluate: {setting} is empty, and there is no checkpoint to resume; "
                f"set {setting} to a checkpoint"
            )
        return
    try:
        # detectron2 takes options of loading as a query behind the path.
        path = urlparse(weights)._replace(query="").geturl()
        local = PathManager.get_local_path(path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {weights!r} cannot be fetched: {error}; set {setting}"
        ) from error
    if not os.path.isfile(local):
        raise UserError(
            f"checkpoint {weights!r} does not exist; set {setting} to a file, or to '' for none"
        )
    check_state(checkpoints.read(local), local)


def check_resumes(
    cfg: CfgNode | DictConfig, args: argparse.Namespace, path: str, setting: str
) -> None:
    """Raise CheckpointError unless a run can go on from a checkpoint; on the CPU.

    Args:
        cfg: the run's config.
        args: the command line.
        path: the checkpoint.
        setting: what a run's first weights are given by.
    """
    contents = checkpoints.read(path)
    check_state(contents, path)
    if isinstance(cfg, CfgNode):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
    with building(f"the model of {args.config_file}"):
        model = model_of(cfg)
    optimizers = []
    if "trainer" in contents and not args.eval_only:
        # DefaultTrainer's has the trainer proper within it.
        trainer = contents["trainer"].get("_trainer", contents["trainer"])
        # What needs its process group, or cannot be built at all, is met by the run itself.
        with suppress(UserError):
            optimizers.append((trainer.get("optimizer"), optimizer_of(cfg, model)))
    state = contents.get("model", contents)
    checkpoints.check_resumes(path, state, model, optimizers, setting)


def main(args: argparse.Namespace, cfg: CfgNode | DictConfig | None = None):
    """What every process does; it loads the config itself unless it is given one."""
    if args.num_gpus == 0 and args.num_processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.num_processes))
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


def and_leave(function, *args) -> None:
    """Call ``function``, then end this process's group, together with the other processes."""
    end_with_parent()
    with told():
        function(*args)
    if comm.get_world_size() > 1:
        comm.synchronize()
        leave_group()


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
        """detectron2's, which names the setting of a norm that is unknown."""
        with building("the config's model"), naming_norms(cfg):
            return super().build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """detectron2's, of which a mistake in the config is told."""
        return optimizer_of(cfg, model)

    def build_hooks(self) -> list[HookBase]:
        """detectron2's, of which the last writes what the others have found."""
        return ratios_hooks(self.ratios_interval) + super().build_hooks()

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """detectron2's, which names the file that is at fault."""
        with names_datasets(cfg.DATASETS.TRAIN):
            mapper = NamesImage(DatasetMapper(cfg, True))
            return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """detectron2's, which names the file that is at fault."""
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
    """What ``--ratios-interval`` asks for."""
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
    """The loader "train" or "test" of a LazyConfig, which names the file that is at fault."""
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
    """A config's model, untrained.

    Raises:
        UserError: the config cannot be read, or has no model.
    """
    cfg = load_config(args)
    if isinstance(cfg, DictConfig) and "model" not in cfg:
        raise UserError(f"{args.config_file} does not define model; a LazyConfig of a model does")
    return model_of(cfg)


def model_of(cfg: CfgNode | DictConfig) -> torch.nn.Module:
    """The model of a config, untrained, which names the setting of a norm that is unknown.

    That of a LazyConfig is on the CPU.
    """
    with naming_norms(cfg):
        return modeling.build_model(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.model)


def optimizer_of(cfg: CfgNode | DictConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a config, for its model.

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
                    f"{name} is {value!r}, and no norm is called so; set one of "
                    f"{', '.join(NORMS)}, or of detectron2's, such as GN, BN, SyncBN, FrozenBN"
                ) from None
        raise


def _norms(settings: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a config that name norms."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _norms(value, f"{prefix}{key}.")
        elif str(key).lower().endswith("norm"):
            yield f"{prefix}{key}", value
