"""Read a detectron2 config, and check its data and output folder before the run."""

import argparse
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode, LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from omegaconf import DictConfig, OmegaConf

from ...errors import UserError
from ..command import overriding, reading_config
from ..output_folder import check_output
from .config_files import read_config
from .datasets import SPLITS as GENERATED
from .faults import explain_dataset_errors


class Keys(NamedTuple):
    """Keys of a config's settings: data sets, initial weights, output folder, batch size."""

    train: str
    test: str
    weights: str
    output: str
    batch: str


YAML_KEYS = Keys(
    "DATASETS.TRAIN", "DATASETS.TEST", "MODEL.WEIGHTS", "OUTPUT_DIR", "SOLVER.IMS_PER_BATCH"
)
LAZY_KEYS = Keys(
    "dataloader.train.dataset.names",
    "dataloader.test.dataset.names",
    "train.init_checkpoint",
    "train.output_dir",
    "dataloader.train.total_batch_size",
)
#: Entries that a LazyConfig for training must define.
LAZY_ENTRIES = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
#: Entries of ``train`` in a LazyConfig that are read, also of a config that does not define them.
TRAIN_ENTRIES = {
    "amp",
    "checkpointer",
    "cudnn_benchmark",
    "ddp",
    "device",
    "eval_period",
    "init_checkpoint",
    "log_period",
    "max_iter",
    "output_dir",
    "seed",
}
#: Metadata keys of a data set whose values are files or folders.
PATHS = (
    "json_file",
    "image_root",
    "dirname",
    "image_dir",
    "gt_dir",
    "sem_seg_root",
    "panoptic_root",
)


def load_config(args: argparse.Namespace) -> CfgNode | DictConfig:
    """Read the config ``args.config_file``, and apply the overrides ``args.opts``.

    With ``--num-gpus 0`` the config's device becomes "cpu"; ``--amp`` enables its mixed precision.
    A LazyConfig is a program, and is run.

    Args:
        args: the parsed command line of tools/train_net.py, of which ``amp``, ``config_file``,
            ``num_gpus`` and ``opts`` are used.

    Returns:
        A DictConfig for a LazyConfig in a .py file, a frozen CfgNode for a .yaml file.

    Raises:
        UserError: the config cannot be read, or an override has an unknown key, or an invalid or no
            value.
    """
    path, words = args.config_file, args.opts
    if path.endswith(".py"):
        with reading_config(path):
            cfg = LazyConfig.load(path)
        for word in words:
            with overriding(path, word, "KEY=VALUE"):
                _check_is_read(cfg, word)
                cfg = LazyConfig.apply_overrides(cfg, [word])
        if args.num_gpus == 0 and "train" in cfg:
            cfg.train.device = "cpu"
        if args.amp and "train" in cfg:
            OmegaConf.update(cfg, "train.amp.enabled", True)
        return cfg
    cfg = read_config(path)
    if len(words) % 2:
        raise UserError(f"override {words[-1]} has no value; give overrides as KEY VALUE")
    for key, value in zip(words[::2], words[1::2], strict=True):
        with overriding(path, f"{key} {value}", "KEY VALUE"):
            cfg.merge_from_list([key, value])
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.AMP.ENABLED |= args.amp
    cfg.freeze()
    return cfg


def _check_is_read(cfg: DictConfig, word: str) -> None:
    """Raise KeyError if an override of a LazyConfig adds an entry that nothing reads.

    Other new keys, such as one below ``model``, may be arguments of what the config constructs.
    """
    first, *rest = word.partition("=")[0].lstrip("+").split(".")
    if first not in cfg:
        raise KeyError(f"there is no {first}")
    if first == "train" and rest and rest[0] not in {*cfg.train, *TRAIN_ENTRIES}:
        raise KeyError(f"there is no train.{rest[0]}")


def check(args: argparse.Namespace) -> tuple[CfgNode | DictConfig, str, str]:
    """Read the config of a command line, and check its data sets, output folder and batch size.

    Creates the output folder, and the generated data set `shapes` if the config uses it.

    Args:
        args: arguments of tools/train_net.py. With ``--eval-only`` an evaluator and weights are
            required (with ``--resume`` a last checkpoint instead), a training set and a batch size
            are not.

    Returns:
        The config, the output folder, and the config key that sets the folder.

    Raises:
        UserError: one of these is missing or invalid; the message names what was found and the
            config key that sets it.
    """
    cfg = load_config(args)
    processes = args.num_machines * (args.num_gpus or args.num_processes)
    if isinstance(cfg, CfgNode):
        keys = YAML_KEYS
        settings = DefaultTrainer.auto_scale_workers(cfg, processes)
        evaluates, evaluator = bool(cfg.DATASETS.TEST), "DATASETS.TEST"
        if cfg.TEST.AUG.ENABLED:
            raise UserError(
                "TEST.AUG.ENABLED True: this command has no test-time augmentation; set it to "
                "False, or evaluate the weights with detectron2's tools/train_net.py"
            )
    else:
        missing = [key for key in LAZY_ENTRIES if key not in cfg]
        if missing:
            raise UserError(
                f"{args.config_file} does not define {', '.join(missing)}; a LazyConfig for "
                f"training has {', '.join(LAZY_ENTRIES)}"
            )
        keys, settings = LAZY_KEYS, cfg
        evaluates, evaluator = "evaluator" in cfg.dataloader, "dataloader.evaluator"
    train, test, weights, output, batch = (_setting(settings, key) for key in keys)
    if args.eval_only and not evaluates:
        raise UserError(f"nothing to evaluate: {evaluator} is empty; set it")
    for names in (test,) if args.eval_only else (train, test):
        for name in (names,) if isinstance(names, str) else (names or ()):
            check_dataset(name)
    if not args.eval_only and train is not None and not train:
        raise UserError(f"nothing to train on: {keys.train} is empty; set it")
    if not args.eval_only and batch is not None and (batch < 1 or batch % processes):
        raise UserError(
            f"{keys.batch} {batch} cannot be shared by {processes} processes; "
            f"set it to a multiple of {processes}"
        )
    resumes = args.resume and Path(output, "last_checkpoint").is_file()
    if args.eval_only and not (weights or resumes):
        raise UserError(
            f"nothing to evaluate: {keys.weights} is empty, and there is no checkpoint to resume; "
            f"set {keys.weights} to a checkpoint"
        )
    check_output(output, keys.output)
    return cfg, output, keys.output


def _setting(cfg: CfgNode | DictConfig, key: str) -> Any:
    """Return the value of a dotted key of a config; None if a LazyConfig does not have it."""
    if isinstance(cfg, DictConfig):
        return OmegaConf.select(cfg, key)
    return functools.reduce(getattr, key.split("."), cfg)


def check_dataset(name: str) -> None:
    """Raise UserError unless a data set is registered in detectron2 and its files exist.

    The data set `shapes` is generated if it is missing. Of the others, the files and folders in the
    metadata :data:`PATHS` are looked for; URLs are not checked.
    """
    if name not in DatasetCatalog:
        raise UserError(
            f"data set {name!r} is not registered in detectron2; registered are "
            + ", ".join(n for n in DatasetCatalog if n.startswith(("coco_2017", "shapes")))
            + " and others"
        )
    if name in GENERATED:
        with explain_dataset_errors([name]):
            DatasetCatalog.get(name)
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
