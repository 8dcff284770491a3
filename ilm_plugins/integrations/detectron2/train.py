"""Training and evaluation of detectron2's yaml configs and LazyConfigs, on GPUs and on the CPU."""

import argparse
import functools
import os
from pathlib import Path
from unittest import mock

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
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
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..training import UserError
from .datasets import SPLITS as GENERATED

#: Metadata ``evaluator_type`` of a data set -> its evaluators.
EVALUATORS = {
    "coco": [COCOEvaluator],
    "coco_panoptic_seg": [SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator],
    "lvis": [LVISEvaluator],
    "pascal_voc": [PascalVOCDetectionEvaluator],
    "sem_seg": [SemSegEvaluator],
    "cityscapes_instance": [CityscapesInstanceEvaluator],
    "cityscapes_sem_seg": [CityscapesSemSegEvaluator],
}
WITHOUT_OUTPUT = {
    PascalVOCDetectionEvaluator,
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
}


def run(args: argparse.Namespace) -> None:
    """Start the processes that the command line asks for; see :mod:`..training` for ``args``.

    Raises:
        UserError: the config, a data set or a checkpoint is not what it should be; before any
            process is started.
    """
    if args.num_gpus == 0:
        # detectron2 picks NCCL wherever it sees a GPU; the processes inherit this.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    check(load_config(args), args)
    launch(
        main,
        args.num_gpus or args.num_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def load_config(args: argparse.Namespace) -> CfgNode | DictConfig:
    """The config of ``args.config_file`` with the overrides of ``args.opts``.

    Raises:
        UserError: it can not be read, or an override does not fit it.
    """
    try:
        if args.config_file.endswith(".py"):
            cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
            if args.num_gpus == 0:
                cfg.train.device = "cpu"
            return cfg
        cfg = get_cfg()
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
    except (AssertionError, KeyError, ValueError, OmegaConfBaseException) as error:
        message = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(
            f"{args.config_file} with overrides {args.opts}: {message}; give existing keys, as "
            "'KEY VALUE' pairs for .yaml and as 'KEY=VALUE' for .py"
        ) from error
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def check(cfg: CfgNode | DictConfig, args: argparse.Namespace) -> None:
    """Find what would fail later: data sets and weights that are not there.

    Raises:
        UserError: naming the path that was tried and the setting that leads to it.
    """
    if isinstance(cfg, CfgNode):
        names = list(cfg.DATASETS.TEST) + ([] if args.eval_only else list(cfg.DATASETS.TRAIN))
        weights, setting = cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS"
    else:
        keys = ["dataloader.test.dataset.names"]
        keys += [] if args.eval_only else ["dataloader.train.dataset.names"]
        found = [OmegaConf.select(cfg, key) or [] for key in keys]
        names = [n for value in found for n in ([value] if isinstance(value, str) else value)]
        weights, setting = cfg.train.init_checkpoint, "train.init_checkpoint"
    for name in names:
        check_dataset(name)
    if weights and "://" not in weights and not os.path.isfile(weights) and not args.resume:
        raise UserError(
            f"checkpoint {weights!r} does not exist; set {setting} to a file, or to '' for none"
        )


def check_dataset(name: str) -> None:
    """Raise UserError unless a data set is registered and its files are there."""
    if name not in DatasetCatalog:
        raise UserError(
            f"data set {name!r} is not registered in detectron2; registered are "
            + ", ".join(n for n in DatasetCatalog if n.startswith(("coco_2017", "shapes")))
            + " and others"
        )
    if name in GENERATED:
        return
    metadata = MetadataCatalog.get(name)
    for attribute in ("json_file", "image_root", "dirname", "sem_seg_root", "panoptic_root"):
        path = metadata.get(attribute)
        if path is not None and "://" not in path and not os.path.exists(path):
            raise UserError(
                f"data set {name!r} is not there: tried {Path(path).absolute()}; set the "
                "environment variable DETECTRON2_DATASETS to the folder that holds it (now "
                f"{os.environ.get('DETECTRON2_DATASETS', 'unset, which means ./datasets')})"
            )


def main(args: argparse.Namespace):
    """What every process does."""
    if args.num_gpus == 0 and args.num_processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.num_processes))
    cfg = load_config(args)
    default_setup(cfg, args)
    if isinstance(cfg, DictConfig):
        return evaluate_lazy(cfg, args) if args.eval_only else train_lazy(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


class Trainer(DefaultTrainer):
    """detectron2's default trainer, which runs on several CPU processes too, and evaluates."""

    def __init__(self, cfg: CfgNode) -> None:
        ddp = functools.partial(create_ddp_model, device=cfg.MODEL.DEVICE)
        with mock.patch.object(defaults, "create_ddp_model", ddp):
            super().__init__(cfg)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None):
        """The evaluators that a data set's metadata names; results go to OUTPUT_DIR/inference."""
        return build_evaluator(dataset_name, output_folder or f"{cfg.OUTPUT_DIR}/inference")


_create_ddp_model = defaults.create_ddp_model


def create_ddp_model(model: torch.nn.Module, device: str, **options):
    """detectron2's, without the device ids that DistributedDataParallel refuses on the CPU."""
    if device == "cpu":
        options["device_ids"] = None
    return _create_ddp_model(model, **options)


def build_evaluator(dataset_name: str, output_folder: str):
    """The evaluator or evaluators for a data set, by its metadata's ``evaluator_type``.

    Raises:
        UserError: the type is unknown or missing.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise UserError(
            f"data set {dataset_name!r} has evaluator_type {kind!r}; set its metadata's "
            f"evaluator_type to one of {', '.join(EVALUATORS)}"
        )
    evaluators = [
        cls(dataset_name) if cls in WITHOUT_OUTPUT else cls(dataset_name, output_dir=output_folder)
        for cls in EVALUATORS[kind]
    ]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def train_lazy(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Train a LazyConfig that has detectron2's usual entries: model, dataloader, optimizer,
    lr_multiplier, train."""
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, cfg.train.device, **cfg.train.ddp)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    every_process = [
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


def evaluate_lazy(cfg: DictConfig, args: argparse.Namespace):
    """Evaluate a LazyConfig's ``train.init_checkpoint``, or with --resume its last checkpoint."""
    model = create_ddp_model(instantiate(cfg.model).to(cfg.train.device), cfg.train.device)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir)
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    return evaluate_model(cfg, model)


def evaluate_model(cfg: DictConfig, model: torch.nn.Module):
    """Run the evaluator of a LazyConfig, if it has one."""
    if "evaluator" not in cfg.dataloader:
        return None
    loader, evaluator = (instantiate(cfg.dataloader[key]) for key in ("test", "evaluator"))
    results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results
