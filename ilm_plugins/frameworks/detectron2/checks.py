"""Read a detectron2 config, and check its data, checkpoint and output folder before the run."""

import argparse
import json
import os
from pathlib import Path
from urllib.parse import urlparse

from detectron2.config import CfgNode, LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf

from ... import checkpoints
from ...errors import UserError
from ..command import overriding, reading_config
from ..output_folder import check_output
from .checkpoints import check_state
from .config_files import read_config
from .datasets import SPLITS as GENERATED
from .evaluators import EVALUATORS
from .faults import names_datasets

#: Key of a LazyConfig's setting with the initial weights.
LAZY_WEIGHTS = "train.init_checkpoint"
#: Entries that a LazyConfig for training must define.
LAZY_ENTRIES = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
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


def check(args: argparse.Namespace) -> tuple[CfgNode | DictConfig, str, str]:
    """Read the config of a command line, and check what would make the run fail later.

    Returns:
        The config, the output folder, and the config key that sets the folder.

    Raises:
        UserError: see :func:`load_config` and :func:`check_config`.
    """
    cfg = load_config(args)
    return cfg, *check_config(cfg, args)


def load_config(args: argparse.Namespace) -> CfgNode | DictConfig:
    """Read the config ``args.config_file``, and apply the overrides ``args.opts``.

    With ``--num-gpus 0`` the config's device becomes "cpu".

    Returns:
        A DictConfig for a LazyConfig in a .py file, a frozen CfgNode for a .yaml file.

    Raises:
        UserError: the config cannot be read, or an override has an unknown key or a bad value.
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


def check_config(cfg: CfgNode | DictConfig, args: argparse.Namespace) -> tuple[str, str]:
    """Check, before a run starts, its data sets, checkpoint, output folder and batch size.

    Also checks that mixed precision is not on without a GPU. Creates the output folder.

    Returns:
        The output folder, and the config key that sets it.

    Raises:
        UserError: one of these is missing or invalid; the message names the path that was tried
            and the config key that sets it.
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
        weights, weights_key = cfg.train.init_checkpoint, LAZY_WEIGHTS
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
        path = os.path.join(output, name)
        check_state(checkpoints.read(path), path)
    else:
        check_weights(weights, weights_key, required=args.eval_only)
    return output, output_key


def check_dataset(name: str) -> None:
    """Raise UserError unless a data set is registered in detectron2 and its files exist.

    The data set `shapes` is generated if it is missing.
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
    """Raise UserError unless the metadata of a data set names a known type of evaluator."""
    kind = MetadataCatalog.get(name).get("evaluator_type") if name in DatasetCatalog else "coco"
    if kind not in EVALUATORS:
        raise UserError(
            f"data set {name!r} has evaluator_type {kind!r}; set its metadata's evaluator_type to "
            f"one of {', '.join(EVALUATORS)}"
        )


def check_weights(weights: str, setting: str, required: bool) -> None:
    """Raise UserError unless a checkpoint exists and holds a state dict.

    Args:
        weights: path or URL of the checkpoint, or ""; a URL is downloaded into the cache.
        setting: the config key that names it, for the message.
        required: whether "" is an error.
    """
    if not weights:
        if required:
            raise UserError(
                f"nothing to evaluate: {setting} is empty, and there is no checkpoint to resume; "
                f"set {setting} to a checkpoint"
            )
        return
    try:
        # A query behind the path holds detectron2's options for loading.
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
