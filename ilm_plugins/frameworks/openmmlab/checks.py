"""Read an MMEngine config, and check its norms, data and output folder before the run."""

import argparse
import ast
import inspect
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner

from ...errors import FRAMEWORKS, UserError, missing
from ...layers import NORMS
from .. import installed
from ..command import overriding, reading_config
from ..output_folder import check_output
from .checkpoints import latest, nested_dicts
from .norms import TORCH_NORMS

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
#: Entries of a config that are read after its file, but are no parameters of MMEngine's Runner.
ENTRIES = {
    "activation_checkpointing",
    "amp",
    "auto_scale_lr",
    "channels_last",
    "compile",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "init_weights_for_test_or_val",
    "model_wrapper_cfg",
    "runner_type",
    "strategy",
    "sync_bn",
    "tta_model",
    "tta_pipeline",
}


def load_config(args: argparse.Namespace) -> Config:
    """Read the config ``args.config_file``, and apply ``args.opts`` and other options.

    Sets in the config ``launcher``, ``amp`` and ``channels_last`` if they are given as options, the
    hook of ``--ratios-interval``, and, if it has none, ``work_dir``: ``work_dirs/NAME`` for a
    config NAME.py. Reading runs the config's code and imports its
    ``custom_imports``. Data and model are not checked.

    Args:
        args: the parsed command line of tools/train_net.py, which is not changed.

    Raises:
        UserError: the config cannot be read; an override is not KEY=VALUE, or nothing would read
            it, as of variables of the config's file; or the package of OpenMMLab that is the
            config's default_scope, or mmcv for it, is not installed.
    """
    with reading_config(args.config_file):
        cfg = Config.fromfile(args.config_file)
    entries = {*inspect.signature(Runner).parameters, *ENTRIES}
    for word in args.opts:
        with overriding(args.config_file, word, "KEY=VALUE"):
            key, value = _parse_override(word)
            name = key.split(".")[0]
            if name not in entries and name in cfg:
                raise KeyError(
                    f"{name} is a variable of the config's file; override the entries that use it, "
                    "such as model, train_cfg or train_dataloader"
                )
            if name not in entries:
                raise KeyError(f"there is no {name}")
            loop, _, option = key.partition(".")
            if loop == "train_cfg" and option.startswith("max_") and isinstance(value, str):
                raise ValueError(f"{option} is a number of iterations or epochs")
            cfg.merge_from_dict({key: value})
    scope = cfg.get("default_scope") or "mmengine"
    for package in ("mmcv", scope) if scope in FRAMEWORKS and scope != "mmengine" else ():
        if not installed(package):
            raise missing(args.config_file, package)
    cfg.launcher = args.launcher
    for entry in ("amp", "channels_last"):
        if getattr(args, entry):
            cfg[entry] = True
    if args.ratios_interval:
        _log_ratios(cfg, args.ratios_interval)
    if cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(args.config_file).stem)
    return cfg


def _log_ratios(cfg: Config, interval: int) -> None:
    """Add to a config, in place, the hook of ``--ratios-interval``, and TensorBoard if installed.

    Args:
        cfg: the config; its other hooks and its visualizer's backends stay.
        interval: iterations from one logged batch to the next.
    """
    hook = {"type": "RatiosHook", "interval": interval}
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), hook]
    cfg.visualizer = cfg.get("visualizer") or {"type": "Visualizer"}
    backends = cfg.visualizer.get("vis_backends") or [{"type": "LocalVisBackend"}]
    board = "TensorboardVisBackend"
    if installed("tensorboard") and not any(board in str(b["type"]) for b in backends):
        backends = [*backends, {"type": board}]
    cfg.visualizer.vis_backends = backends


def _parse_override(word: str) -> tuple[str, Any]:
    """Parse an override KEY=VALUE to key and Python value.

    A value that is no literal of Python is parsed as by MMEngine's DictAction: as a list a,b or
    [a,b], which loses its spaces, as true or false in any case, else as a string. ``work_dir`` and
    ``load_from`` are strings or None, whatever is in them.

    Raises:
        ValueError: there is no "=", or a value that is no literal has a parenthesis. Errors of
            DictAction, of other types, pass unchanged.
    """
    key, sign, value = word.partition("=")
    if not sign:
        raise ValueError(f"{word!r} has no '='")
    is_path = key in ("work_dir", "load_from")
    try:
        literal = ast.literal_eval(value)
        return key, value if is_path and not isinstance(literal, str | None) else literal
    except (SyntaxError, ValueError):
        if is_path:
            return key, value
        if "(" in value:
            raise ValueError(
                f"{key}={value} is no literal of Python; write {{'type': ...}} for dict(type=...)"
            ) from None
        # It may be a list in MMEngine's syntax, a,b or [a,b].
        is_list = "," in value or value.startswith("[")
        parse = DictAction._parse_iterable if is_list else DictAction._parse_int_float_bool
        return key, parse(value)


def check(args: argparse.Namespace) -> tuple[Config, str, str]:
    """Read the config of a command line, and check its norms, data sets and output folder.

    Creates the output folder, generates missing data sets `shapes`, and sets MMEngine's default
    scope. A data set of image pairs, once verified, gets ``verify=False`` in the config, and in
    ``args.opts`` for other processes.

    Args:
        args: the parsed command line of tools/train_net.py. With ``eval_only`` only the data of the
            test is checked, else that of training and validation.

    Returns:
        The config, the output folder, and the config key that sets the folder.

    Raises:
        UserError: the config cannot be read, see :func:`load_config`; or one of these is missing or
            invalid, and the message names what was found and the config key that sets it. With
            ``eval_only`` also without a checkpoint, with ``tta`` without the config's TTA.
    """
    cfg = load_config(args)
    purpose, required = "training", ("train_dataloader", "train_cfg", "optim_wrapper")
    loaders = LOADERS[:2]
    if args.eval_only:
        purpose, required = "evaluation", ("test_dataloader", "test_cfg", "test_evaluator")
        loaders = LOADERS[2:]
    missing = [key for key in ("model", *required) if cfg.get(key) is None]
    if missing:
        raise UserError(
            f"{args.config_file} does not define {', '.join(missing)}; an MMEngine config for "
            f"{purpose} does"
        )
    if cfg.get("resume") and not (args.resume or args.eval_only):
        raise UserError(
            f"{args.config_file} or an override sets resume={cfg.resume}; give --resume, which "
            "continues from the last checkpoint of work_dir, or set resume=False"
        )
    if args.tta and not args.eval_only:
        raise UserError("--tta is for an evaluation; give --eval-only, too, or leave it out")
    if args.tta and not (cfg.get("tta_model") and cfg.get("tta_pipeline")):
        raise UserError(
            f"--tta: {args.config_file} does not define tta_model and tta_pipeline; define them, "
            "or leave --tta out"
        )
    if cfg.get("amp") and args.num_gpus == 0:
        raise UserError("--amp is for GPUs; leave it out on the CPU")
    ignored = [entry for entry in ("amp", "channels_last") if cfg.get(entry)]
    if "runner_type" in cfg and ignored:
        raise UserError(
            f"{args.config_file} sets runner_type {cfg.runner_type}, which ignores "
            f"{' and '.join(ignored)}; leave one of them out"
        )
    init_default_scope(cfg.get("default_scope") or "mmengine")
    check_norms(cfg.model)
    for loader in loaders:
        if cfg.get(loader) is not None:
            check_dataset(f"{loader}.dataset", cfg[loader].dataset, args.opts)
    resumes = args.resume and latest(cfg.work_dir)
    if args.eval_only and not (resumes or cfg.get("load_from")):
        raise UserError(
            "nothing to evaluate: load_from is empty, and there is no checkpoint to resume; "
            "set load_from=CHECKPOINT"
        )
    check_output(cfg.work_dir, "work_dir")
    return cfg, cfg.work_dir, "work_dir"


def check_norms(model: dict) -> None:
    """Raise UserError unless the types of all ``norm_cfg`` in a model's config are registered.

    mmcv's own error does not say which type it has not found. Within a part of another package, as
    of the type "mmpretrain.ConvNeXt", types are also looked up in that package.

    Args:
        model: the config of a model. All dicts in it at keys ending in ``norm_cfg`` are checked if
            their type is a string; a missing type is no error here.
    """
    packages = {}
    with MODELS.switch_scope_and_registry(None) as registry:
        for name, part in nested_dicts(model, "model"):
            kind = part.get("type")
            if not isinstance(kind, str):
                continue
            if not name.endswith("norm_cfg"):
                packages |= {f"{name}.": f"{kind.split('.')[0]}."} if "." in kind else {}
                continue
            found = kind in TORCH_NORMS or registry.get(kind) is not None
            around = [package for outer, package in packages.items() if name.startswith(outer)]
            if not found and all(registry.get(package + kind) is None for package in around):
                raise UserError(
                    f"{name} has type {kind!r}, which is not registered; set one of "
                    f"{', '.join(NORMS)}, BN, SyncBN, GN, IN, LN, or name the package that "
                    "registers it in custom_imports"
                )


def check_dataset(setting: str, dataset: dict, overrides: list[str]) -> None:
    """Raise UserError unless the files and folders of a data set exist, and image pairs are valid.

    A data set that downloads its files is not checked, nor one whose files MMEngine's
    ``backend_args`` take from another storage. `shapes` is generated if it is missing. A ``~`` in
    ``data_root`` is expanded. For a data set of image pairs, all images are decoded once, and
    ``verify`` is set to False.

    Args:
        setting: the config key of the data set, for the message and for the override.
        dataset: the config of the data set, changed in place; data sets within it are checked, too.
        overrides: KEY=VALUE words with which other processes read the config; for image pairs
            "SETTING.verify=False" is appended.
    """
    inner = {f"datasets.{i}": part for i, part in enumerate(dataset.get("datasets") or ())}
    for name, part in {"dataset": dataset.get("dataset"), **inner}.items():
        if part is not None:
            check_dataset(f"{setting}.{name}", part, overrides)
    kind = dataset["type"]
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    download = kind and inspect.signature(kind).parameters.get("download")
    if download and dataset.get("download", download.default):
        return
    given = dataset.get("data_root") or ""
    root = os.path.expanduser(given)
    if root != given:
        dataset["data_root"] = root
        overrides.append(f"{setting}.data_root={root!r}")
    if hasattr(kind, "generate"):
        try:
            kind.generate(root)
        except (ImportError, OSError, ValueError) as error:
            raise UserError(
                f"data set of {setting} cannot be generated: {error}; set {setting}.data_root"
            ) from error
    prefixes = dataset.get("data_prefix") or {}
    if isinstance(prefixes, str):
        prefixes = {"": prefixes}
    is_local = not dataset.get("backend_args")
    for path in (dataset.get("ann_file"), *prefixes.values(), ""):
        path = os.path.join(root, path) if path else root
        if is_local and path and "://" not in path and not os.path.exists(path):
            raise UserError(
                f"data set of {setting} is not there: tried {os.path.abspath(path)}; set "
                f"{setting}.data_root, which is {root!r}"
            )
    if getattr(kind, "verify_before_start", False):
        try:
            DATASETS.build(dataset)
        except UserError as error:
            raise UserError(f"{setting}: {error}") from error
        dataset["verify"] = False
        overrides.append(f"{setting}.verify=False")
