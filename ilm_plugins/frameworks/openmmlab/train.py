"""Training and evaluation of MMEngine's configs by its Runner, on GPUs and on the CPU."""

import argparse
import time
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import BaseTTAModel, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ..command import building
from ..optimizers import keep_layouts
from ..output_folder import check_same_checkpoint
from .checkpoints import check_fits, latest, use_safe_checkpoints
from .checks import load_config
from .faults import StopAtNaN, explain_dataset_errors, explain_unknown_types, wrap_pipelines
from .mixed_precision import mixed
from .radius import RadiusHook


def main(args: argparse.Namespace, cfg: Config | None = None) -> None:
    """Train, or evaluate with ``--eval-only``, in this process.

    Writes logs, checkpoints and metrics to the config's ``work_dir``. Changes MMEngine in this
    process (:func:`.checkpoints.use_safe_checkpoints`), and joins a process group of gloo if a
    launcher started processes for the CPU.

    Args:
        args: the parsed command line of tools/train_net.py. ``resume`` continues from the last
            checkpoint of the output folder, or evaluates it with ``eval_only``; without one, the
            run starts from the beginning with ``load_from``.
        cfg: the config, which is changed in place: ``load_from`` and ``resume``; with
            ``--eval-only`` the entries for training and validation become None, and ``--tta``
            changes those for testing. If it is None, it is read from ``args.config_file``.

    Raises:
        UserError: the config, its data or its checkpoint is invalid. Other exceptions of the run
            pass unchanged.
    """
    use_safe_checkpoints()
    cfg = load_config(args) if cfg is None else cfg
    last = latest(cfg.work_dir) if args.resume else None
    cfg.load_from = last or cfg.get("load_from")
    # --eval-only just evaluates that checkpoint; without one, load_from starts the run.
    cfg.resume = last is not None and not args.eval_only
    if args.eval_only:
        if args.tta:
            augment_test(cfg)
        # Without these entries, the training set need not exist.
        training = "train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"
        for key in (*training, "val_dataloader", "val_cfg", "val_evaluator"):
            cfg[key] = None
    if cfg.launcher != "none" and args.num_gpus == 0:
        torch.distributed.init_process_group("gloo")
    with explain_unknown_types():
        runner = RUNNERS.build(cfg) if "runner_type" in cfg else PluginRunner.from_cfg(cfg)
    if args.resume:
        check_same_checkpoint(last, cfg.work_dir)
    runner.must_fit = last is not None
    runner.test() if args.eval_only else runner.train()


def augment_test(cfg: Config) -> None:
    """Change a config in place to use its test-time augmentation, like mmseg's tools/test.py."""
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = {**cfg.tta_model, "module": cfg.model}


class LogFirstIteration(Hook):
    """Logs the time of a training's first iteration; the logger's own first line may take minutes.

    Nothing is logged if the logger prints every iteration.
    """

    def before_train(self, runner: Runner) -> None:
        """Note the time of the start."""
        self.start = time.monotonic()

    def after_train_iter(self, runner: Runner, *_, **__) -> None:
        """Log one line after the first iteration."""
        interval = next((h.interval for h in runner.hooks if isinstance(h, LoggerHook)), 0)
        if self.start and interval != 1:
            seconds = time.monotonic() - self.start
            following = f"; losses follow every {interval} iterations" if interval else ""
            runner.logger.info(f"The first iteration is done, after {seconds:.1f} s{following}.")
        self.start = None


@RUNNERS.register_module(force=True)
class PluginRunner(Runner):
    """MMEngine's Runner, which also runs on several CPU processes and whose errors name causes."""

    #: Whether a loaded checkpoint must match the model and, in training, its optimizer.
    must_fit = False

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.register_hook(StopAtNaN(), priority="VERY_HIGH")
        self.register_hook(LogFirstIteration())
        if not any(isinstance(hook, RadiusHook) for hook in self.hooks):
            self.register_hook(RadiusHook())

    def dump_config(self) -> None:
        """Write the config to the output folder, but not in an evaluation.

        The config of an evaluation has no entries for training, and would replace the training's.
        """
        if self.cfg.get("train_cfg") is not None:
            super().dump_config()

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Move the model to its device and, in a run of several processes, wrap it.

        In a single process, and on the CPU, SyncBN layers become BN, which is logged. If the config
        has ``channels_last = True``, the weights of 2d convolutions, and so the feature maps that
        they compute, are stored with channels last.

        Args:
            model_wrapper_cfg: config of the wrapper; None for DistributedDataParallel.
            model: the model, which is changed in place.

        Returns:
            The model, wrapped if there are several processes.
        """
        if self.cfg.get("channels_last"):
            model = model.to(memory_format=torch.channels_last)
        if self.distributed and get_device() == "cpu":
            self.logger.info("On the CPU, SyncBN layers of the model become plain BN layers.")
            model = revert_sync_batchnorm(model)
            self.cfg.sync_bn = None  # else MMEngine converts BN, too, to SyncBN
            default = {
                "broadcast_buffers": False,
                "find_unused_parameters": self.cfg.get("find_unused_parameters", False),
            }
            # Without the device ids that DistributedDataParallel refuses on the CPU.
            model_wrapper_cfg = {**(model_wrapper_cfg or default), "device_ids": None}
        return super().wrap_model(model_wrapper_cfg, model)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model; raise UserError for a mistake in the config."""
        with building("the config's model"), explain_unknown_types():
            return super().build_model(model)

    def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper | OptimWrapperDict:
        """Build the optimizer wrapper, for mixed precision if the config has ``amp = True``.

        Raises:
            UserError: a mistake in the config; see also :func:`.mixed_precision.mixed`.
        """
        if self.cfg.get("amp") and isinstance(optim_wrapper, dict):
            optim_wrapper = mixed(optim_wrapper)
        with building("the config's optimizer"), explain_unknown_types():
            built = super().build_optim_wrapper(optim_wrapper)
        for part in built.values() if isinstance(built, OptimWrapperDict) else (built,):
            keep_layouts(part.optimizer)
        return built

    def load_checkpoint(self, filename: str, *args, **options) -> dict:
        """Load a checkpoint into the model, as MMEngine does, and check that it fits.

        If :attr:`must_fit`, as when resuming, the optimizers' states are loaded, too.

        Args:
            filename: path or URL.
            args, options: further arguments of MMEngine's method.

        Returns:
            The contents of the checkpoint.

        Raises:
            CheckpointError: the file cannot be read, or has none of the model's tensors; or, if
                :attr:`must_fit`, the model or the optimizer differs from the checkpoint's.
        """
        checkpoint = super().load_checkpoint(filename, *args, **options)
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        check_fits(filename, model, checkpoint)
        return checkpoint

    def build_dataloader(self, dataloader: dict | DataLoader, *args, **options) -> DataLoader:
        """Build a loader whose errors name the broken file.

        A sample whose image cannot be used later raises RunError; see :class:`.faults.ImageErrors`.

        Args:
            dataloader: the loader's config; or a loader, whose data set is changed in place.
            args, options: further arguments of MMEngine's method.

        Raises:
            UserError: the annotations of a data set cannot be loaded, or are empty; or its type is
                unknown.
        """
        config = dataloader.get("dataset") if isinstance(dataloader, dict) else None
        with explain_dataset_errors(config):
            loader = Runner.build_dataloader(dataloader, *args, **options)
        wrap_pipelines(loader.dataset)
        return loader


def model_of(cfg: Config) -> nn.Module:
    """Build the model of a config, with random weights; errors of building it pass unchanged.

    MMEngine's default scope is set to the config's, and stays so.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    # Like the Runner, pass on a data_preprocessor that the config has outside of model.
    beside = {key: cfg[key] for key in ("data_preprocessor",) if key in cfg}
    return MODELS.build(cfg.model, default_args=beside)
