"""Training and evaluation of MMEngine's configs by its Runner, on GPUs and on the CPU."""

import argparse
import ast
import copy
import inspect
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.model import BaseTTAModel, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import (
    DATASETS,
    MODELS,
    RUNNERS,
    Registry,
    init_default_scope,
)
from mmengine.runner import Runner
from torch import nn
from torch.multiprocessing import spawn
from torch.utils.data import DataLoader

from ... import checkpoints
from ...errors import UserError
from ...layers import NORMS
from .. import installed
from ..stopping import end_with_parent
from ..training import (
    building,
    check_output,
    leave_group,
    occupied,
    overriding,
    reading_config,
    told,
)
from .checkpoints import check_fits, guard, latest
from .faults import StopAtNaN, name_images, names_dataset
from .norms import TORCH_NORMS

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
#: Entries of a config beside those that its Runner takes.
ENTRIES = {
    "auto_scale_lr",
    "compile",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "runner_type",
    "sync_bn",
    "tta_model",
    "tta_pipeline",
}


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for, in as many processes; see :mod:`..training` for ``args``.

    Raises:
        UserError: the config, a data set or a checkpoint is not what it should be; before any
            process is started.
    """
    if args.num_gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    cfg = load_config(args)
    check(cfg, args)
    with occupied(cfg.work_dir, "work_dir", args):
        start(cfg, args)


def start(cfg: Config, args: argparse.Namespace) -> None:
    """Start the processes that the command line asks for, or be the only one.

    Raises:
        UserError: --dist-url is none.
    """
    processes = args.num_gpus or args.num_processes
    world_size = processes * args.num_machines
    if args.launcher != "none" or world_size == 1:
        main(cfg, args)
        return
    address = args.dist_url if args.num_machines > 1 else f"tcp://127.0.0.1:{_free_port()}"
    if not re.fullmatch(r"tcp://.+:\d+", address):
        raise UserError(f"--dist-url {address}: give tcp://HOST:PORT with the first machine's host")
    first = args.machine_rank * processes
    settled = {
        f"{name}.verify": False
        for loader in LOADERS
        for name, part in _dicts(cfg.get(loader), loader)
        if part.get("verify") is False
    }
    spawn(_process, (first, world_size, address, args, settled), nprocs=processes)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _process(
    local_rank: int, first: int, world_size: int, address: str, args, settled: dict[str, Any]
) -> None:
    """What one of several processes does: as if torchrun had started it.

    A config may register what is in it, and is loaded by each; ``settled`` are settings of it that
    :func:`check` has changed.
    """
    end_with_parent()
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    os.environ |= {
        "RANK": str(first + local_rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
    if args.num_gpus == 0:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.num_processes))
    with told():
        cfg = load_config(args)
        cfg.merge_from_dict(settled)
        cfg.launcher = "pytorch"
        main(cfg, args)


def load_config(args: argparse.Namespace) -> Config:
    """The config of ``args.config_file`` with the overrides of ``args.opts``.

    Raises:
        UserError: it cannot be read, an override is not of the form KEY=VALUE or overrides what
            neither the config has nor MMEngine knows, or the package of its scope is missing.
    """
    with reading_config(args.config_file):
        cfg = Config.fromfile(args.config_file)
    known = {*cfg, *inspect.signature(Runner).parameters, *ENTRIES}
    for word in args.opts:
        with overriding(args.config_file, word, "KEY=VALUE"):
            key, value = _override(word)
            if key.split(".")[0] not in known:
                raise KeyError(f"there is no {key.split('.')[0]}")
            cfg.merge_from_dict({key: value})
    scope = cfg.get("default_scope") or "mmengine"
    for package in ("mmengine", scope) if scope == "mmengine" else ("mmcv", scope):
        if not installed(package):
            raise UserError(
                f"{args.config_file} is a config of {scope}, and {package} is not installed; "
                "run 'make install-openmmlab'"
            )
    cfg.launcher = args.launcher
    cfg.resume = args.resume
    if args.ratios_interval:
        _log_ratios(cfg, args.ratios_interval)
    if cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(args.config_file).stem)
    return cfg


def _log_ratios(cfg: Config, interval: int) -> None:
    """What ``--ratios-interval`` asks for; in TensorBoard where that is installed."""
    hook = {"type": "RatiosHook", "interval": interval}
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), hook]
    cfg.visualizer = cfg.get("visualizer") or {"type": "Visualizer"}
    backends = cfg.visualizer.get("vis_backends") or [{"type": "LocalVisBackend"}]
    board = "TensorboardVisBackend"
    if installed("tensorboard") and not any(board in str(b["type"]) for b in backends):
        backends = [*backends, {"type": board}]
    cfg.visualizer.vis_backends = backends


def _override(word: str) -> tuple[str, Any]:
    key, sign, value = word.partition("=")
    if not sign:
        raise ValueError(f"{word!r} has no '='")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        if "(" in value:
            raise ValueError(
                f"{key}={value} is no literal of Python; write {{'type': ...}} for dict(type=...)"
            ) from None
        # What is no literal of Python may be one of MMEngine's lists: a,b or [a,b].
        words = argparse.ArgumentParser(exit_on_error=False)
        words.add_argument("--override", nargs=1, action=DictAction)
        return key, words.parse_args(["--override", word]).override[key]


def check(cfg: Config, args: argparse.Namespace) -> None:
    """Find before it starts what would make a run fail later.

    Raises:
        UserError: a norm, a data set, a checkpoint or the output folder is not what it should be;
            the message names what was found and the setting that leads to it.
    """
    missing = [key for key in ("model", *_loops(args)) if cfg.get(key) is None]
    if missing:
        raise UserError(
            f"{args.config_file} does not define {', '.join(missing)}; an MMEngine config for "
            f"{'evaluation' if args.eval_only else 'training'} does"
        )
    if args.tta and not (cfg.get("tta_model") and cfg.get("tta_pipeline")):
        raise UserError(
            f"--tta: {args.config_file} does not define tta_model and tta_pipeline; define them, "
            "or leave --tta out"
        )
    for name, wrapper in _dicts(cfg.get("optim_wrapper"), "optim_wrapper"):
        if wrapper.get("type") == "AmpOptimWrapper" and args.num_gpus == 0:
            raise UserError(
                f"{name}.type AmpOptimWrapper with --num-gpus 0: MMEngine's mixed precision "
                f"needs a GPU; set {name}.type=OptimWrapper"
            )
    init_default_scope(cfg.get("default_scope") or "mmengine")
    for name, norm_cfg in _dicts(cfg.model, "model"):
        if name.endswith("norm_cfg"):
            check_norm(name, norm_cfg)
    for name, backend in _dicts(cfg.get("visualizer"), "visualizer"):
        writers = installed("tensorboard") or installed("tensorboardX")
        if backend.get("type") == "TensorboardVisBackend" and not writers:
            raise UserError(
                f"{name} is a TensorboardVisBackend, and tensorboard is not installed; "
                "pip install tensorboard, or set visualizer.vis_backends"
            )
    loaders = LOADERS[2:] if args.eval_only else LOADERS[:2]
    for loader in loaders:
        if cfg.get(loader) is not None:
            check_dataset(f"{loader}.dataset", cfg[loader].dataset)
    check_output(cfg.work_dir, "work_dir")
    guard()
    check_weights(cfg, args)


def _loops(args: argparse.Namespace) -> tuple[str, ...]:
    if args.eval_only:
        return "test_dataloader", "test_cfg", "test_evaluator"
    return "train_dataloader", "train_cfg", "optim_wrapper"


def _dicts(value, name: str) -> Iterator[tuple[str, dict]]:
    """All dicts within a part of a config, each with the name of the setting."""
    if isinstance(value, dict):
        yield name, value
        for key, inner in value.items():
            yield from _dicts(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _dicts(inner, f"{name}.{i}")


def check_norm(setting: str, norm_cfg: dict) -> None:
    """Raise UserError unless a norm's type is registered."""
    kind = norm_cfg.get("type")
    if str(kind) not in TORCH_NORMS and not _known(MODELS, kind):
        raise UserError(
            f"{setting} has type {kind!r}, which is not registered; set one of "
            f"{', '.join(NORMS)}, BN, SyncBN, GN, IN, LN, or name the package that registers "
            "it in custom_imports"
        )


def _known(registry: Registry, kind: Any) -> bool:
    """Whether a type is registered, if a config has it by name."""
    with registry.switch_scope_and_registry(None) as scoped:
        return not isinstance(kind, str) or scoped.get(kind) is not None


def check_dataset(setting: str, dataset: dict) -> None:
    """Raise UserError unless the files and folders that a data set's config names are there.

    A data set that downloads itself need not be, `shapes` is generated on this occasion, and one of
    image pairs is decoded.
    """
    inner = dataset.get("dataset"), *(dataset.get("datasets") or ())
    for part in (d for d in inner if d is not None):
        check_dataset(f"{setting}.dataset", part)
    kind = dataset["type"]
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    download = kind and inspect.signature(kind).parameters.get("download")
    if download and dataset.get("download", download.default):
        return
    root = dataset.get("data_root") or ""
    if hasattr(kind, "generate"):
        try:
            kind.generate(root)
        except (ImportError, OSError, ValueError) as error:
            raise UserError(
                f"data set of {setting} cannot be had: {error}; set {setting}.data_root"
            ) from error
    prefixes = dataset.get("data_prefix") or {}
    if isinstance(prefixes, str):
        prefixes = {"": prefixes}
    for path in (dataset.get("ann_file"), *prefixes.values(), ""):
        path = os.path.join(root, path) if path else root
        if path and "://" not in path and not os.path.exists(path):
            raise UserError(
                f"data set of {setting} is not there: tried {os.path.abspath(path)}; set "
                f"{setting}.data_root, which is {root!r}"
            )
    if getattr(kind, "checked_first", False):
        try:
            DATASETS.build(dataset)
        except UserError as error:
            raise UserError(f"{setting}: {error}") from error
        dataset["verify"] = False


def check_weights(cfg: Config, args: argparse.Namespace) -> None:
    """Raise UserError unless the checkpoints that a run starts from are there, and can be read."""
    last = latest(cfg.work_dir) if args.resume else None
    if last:
        if "://" not in last:
            check_resumes(cfg, args, last)
        return
    load_from = cfg.get("load_from")
    if args.eval_only and not load_from:
        raise UserError(
            "nothing to evaluate: load_from is empty, and there is no checkpoint to resume; "
            "set load_from=CHECKPOINT"
        )
    sources = {"load_from": load_from} if load_from else {}
    if not load_from:
        sources |= {
            f"{name}.checkpoint": d.get("checkpoint")
            for name, d in _dicts(cfg.model, "model")
            if d.get("type") == "Pretrained"
        }
    for setting, path in sources.items():
        if path and "://" not in path and not os.path.isfile(os.path.expanduser(path)):
            start = "" if load_from else f", or {setting.rsplit('.', 1)[0]}=None to start anew"
            raise UserError(f"checkpoint {path!r} does not exist; set {setting} to a file{start}")
        if path and "://" not in path:
            checkpoints.check_state(checkpoints.read(path), path)


def check_resumes(cfg: Config, args: argparse.Namespace, path: str) -> None:
    """Raise CheckpointError unless a run can go on from a checkpoint; on the CPU."""
    contents = checkpoints.read(path)
    # Others keep their checkpoints in ways of their own.
    if "runner_type" in cfg:
        return
    checkpoints.check_state(contents, path, ["state_dict"])
    with building(f"the model of {args.config_file}"), naming_types():
        model = model_of(cfg)
    optimizers = []
    if "optimizer" in contents and not args.eval_only:
        state, wrapper = contents["optimizer"], None
        # What needs its process group, or cannot be built at all, is met by the run itself.
        with suppress(Exception):
            wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        if isinstance(wrapper, OptimWrapperDict):
            optimizers = [(state.get(name), part.optimizer) for name, part in wrapper.items()]
        elif wrapper is not None:
            optimizers = [(state, wrapper.optimizer)]
    state = contents.get("state_dict", contents)
    checkpoints.check_resumes(path, state, model, optimizers, "load_from")


def main(cfg: Config, args: argparse.Namespace) -> None:
    """What every process does."""
    guard()
    if args.resume:
        last = latest(cfg.work_dir)
        cfg.load_from = last or cfg.get("load_from")
        # With --eval-only it is evaluated, not gone on from; and what load_from names starts a run.
        cfg.resume = last is not None and not args.eval_only
    if args.eval_only:
        if args.tta:
            augment_test(cfg)
        # Then nothing of the training set need be there.
        training = "train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"
        for key in (*training, "val_dataloader", "val_cfg", "val_evaluator"):
            cfg[key] = None
    if cfg.launcher != "none" and args.num_gpus == 0:
        torch.distributed.init_process_group("gloo")
    runner = build_runner(cfg)
    runner.test() if args.eval_only else runner.train()
    del runner
    # Only here: with what has failed, a group may wait for what others will not do.
    leave_group()


def augment_test(cfg: Config) -> None:
    """Have a config test with its test-time augmentation, as mmseg's own tool has it."""
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = {**cfg.tta_model, "module": cfg.model}


def build_runner(cfg: Config) -> Runner:
    """The config's Runner.

    Raises:
        UserError: a type is not registered.
    """
    cfg = copy.deepcopy(cfg)
    with naming_types():
        return RUNNERS.build(cfg) if "runner_type" in cfg else PluginRunner.from_cfg(cfg)


@contextmanager
def naming_types() -> Iterator[None]:
    """Raise UserError with a type that is not registered."""
    try:
        yield
    except KeyError as error:
        message = str(error.args[0]) if error.args else ""
        if "registry" not in message:
            raise
        raise UserError(
            f"{message.split('. ')[0].strip()}; correct the type, or name the package that "
            "registers it in custom_imports"
        ) from error


@RUNNERS.register_module(force=True)
class PluginRunner(Runner):
    """MMEngine's Runner, on several CPU processes, too; what ends a run it tells in one line."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.register_hook(StopAtNaN(), priority="VERY_HIGH")

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if self.distributed and get_device() == "cpu":
            self.logger.info("On the CPU, SyncBN layers of the model become plain BN layers.")
            model = revert_sync_batchnorm(model)
            default = {
                "broadcast_buffers": False,
                "find_unused_parameters": self.cfg.get("find_unused_parameters", False),
            }
            # Without the device ids that DistributedDataParallel refuses on the CPU.
            model_wrapper_cfg = {**(model_wrapper_cfg or default), "device_ids": None}
        return super().wrap_model(model_wrapper_cfg, model)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """MMEngine's, of which a mistake in the config is told."""
        with building("the config's model"), naming_types():
            return super().build_model(model)

    def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper | OptimWrapperDict:
        """MMEngine's, of which a mistake in the config is told."""
        with building("the config's optimizer"), naming_types():
            return super().build_optim_wrapper(optim_wrapper)

    def load_checkpoint(self, filename: str, *args, **options) -> dict:
        """MMEngine's.

        Raises:
            CheckpointError: it cannot be read, or has none of the model's tensors.
        """
        checkpoint = super().load_checkpoint(filename, *args, **options)
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        check_fits(filename, model, checkpoint)
        return checkpoint

    def build_dataloader(self, dataloader: dict | DataLoader, *args, **options) -> DataLoader:
        """MMEngine's, which names the files that are at fault.

        Raises:
            UserError: a data set's files cannot be loaded, or hold nothing.
        """
        config = dataloader.get("dataset") if isinstance(dataloader, dict) else None
        with names_dataset(config):
            loader = Runner.build_dataloader(dataloader, *args, **options)
        name_images(loader.dataset)
        return loader


def build_model(args: argparse.Namespace) -> nn.Module:
    """A config's model, untrained.

    Raises:
        UserError: the config cannot be read, or has no model.
    """
    cfg = load_config(args)
    if cfg.get("model") is None:
        raise UserError(f"{args.config_file} does not define model; an MMEngine config does")
    init_default_scope(cfg.get("default_scope") or "mmengine")
    return model_of(cfg)


def model_of(cfg: Config) -> nn.Module:
    """The model of a config, untrained; in its scope."""
    # As the Runner does where a config states the preprocessing beside the model.
    beside = {key: cfg[key] for key in ("data_preprocessor",) if key in cfg}
    return MODELS.build(cfg.model, default_args=beside)
