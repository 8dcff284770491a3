"""Training and evaluation of MMEngine's configs by its Runner, on GPUs and on the CPU."""

import math
import re
import warnings
from collections.abc import Iterator
from numbers import Real
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook, ParamSchedulerHook
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, distributed, nn

from ... import checkpoints
from ...errors import UserError
from ..checkpoints import base_rates
from ..config import OpenConfig, check_statistics
from ..length import Length
from ..run.options import ProcessOptions, RunOptions
from ..run.processes import check_same_start
from ..run.record import POINTS, RunRecord
from .checkpoints import DropConfig, latest
from .datasets import unwrapped
from .norms import unwrapped_model
from .radius import RadiusHook, optimizers

#: Metrics of pycocotools, which are -1 where nothing was measured: no objects of a size, or an AP
#: by 100 detections that the evaluator's ``proposal_nums`` lacks.
OF_COCO = re.compile(r"_mAP|(^|[/_])AR(_[sml])?@")
#: Entries of a scheduler's state that change from step to step.
PROGRESS = {"base_values", "last_step", "_global_step", "_last_value"}
#: What to do about a loss that is NaN.
SLOWER = "try a smaller learning rate"


def run(opened: OpenConfig, record: RunRecord) -> None:
    """Train or evaluate a config, which is changed in place; UserError without a checkpoint."""
    cfg, options = opened.config, record.options
    if options.tta and not options.eval_only:
        raise UserError("--tta is for an evaluation; give --eval-only, too")
    last = choose_start(cfg, options)
    if options.tta:
        augment_test(cfg)
    choose_launcher(cfg, options)
    with opened.explaining_norms():
        runner = RUNNERS.build(cfg) if "runner_type" in cfg else PluginRunner.from_cfg(cfg)
    hooks = [DropConfig(), StopAtNaN(), RecordHook(opened, record)]
    if not any(isinstance(hook, RadiusHook) for hook in runner.hooks):
        hooks.append(RadiusHook())
    for hook in hooks:
        runner.register_hook(hook)
    check_same_start(last)
    if options.eval_only:
        runner.test()
    else:
        runner.train()


def choose_start(cfg: Config, options: RunOptions) -> str | None:
    """Set the config's ``load_from`` and ``resume``; return the last checkpoint if a run has it.

    A training resumes from the last checkpoint of its folder, else starts from ``load_from``; an
    evaluation only loads either. MMEngine's own ``resume = True`` resumes from ``load_from``.
    """
    resumes_given = bool(cfg.get("resume") and cfg.get("load_from"))
    resumes_last = options.resume or (cfg.get("resume") and not resumes_given)
    last = latest(cfg.work_dir) if resumes_last else None
    if options.eval_only and options.resume and not last:
        raise UserError(f"--resume: {cfg.work_dir} has no checkpoint; give a run's work_dir")
    cfg.load_from = last or cfg.get("load_from")
    if options.eval_only and not cfg.load_from:
        raise UserError("nothing to evaluate: give load_from=CHECKPOINT, or --resume")
    cfg.resume = (last is not None or resumes_given) and not options.eval_only
    return last


def augment_test(cfg: Config) -> None:
    """Change a config in place to its test-time augmentation, as OpenMMLab's tools/test.py do."""
    if lacking := [name for name in ("tta_model", "tta_pipeline") if name not in cfg]:
        raise UserError(f"--tta needs {' and '.join(lacking)} in the config; define it")
    for dataset in unwrapped(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.tta_pipeline
    cfg.model = {**cfg.tta_model, "module": cfg.model}


def choose_launcher(cfg: Config, processes: ProcessOptions) -> None:
    """Set the config's launcher; on the CPU, join the processes and set the model's wrapper."""
    is_alone = processes.world_size == 1
    cfg.launcher = "none" if is_alone else "pytorch"
    if is_alone or processes.device != "cpu":
        return
    distributed.init_process_group("gloo")
    wrapper = {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "find_unused_parameters": cfg.get("find_unused_parameters", False),
        **(cfg.get("model_wrapper_cfg") or {}),
    }
    # torch refuses the device ids that the Runner would give.
    cfg.model_wrapper_cfg = {**wrapper, "device_ids": None}
    cfg.sync_bn = None


class PluginRunner(Runner):
    """MMEngine's Runner; reads ``channels_last`` from configs, refuses unfitting checkpoints."""

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model, channels last if configured; on the CPU, SyncBN becomes BN."""
        model = super().build_model(model)
        if self.cfg.get("channels_last"):
            model = model.to(memory_format=torch.channels_last)
        return revert_sync_batchnorm(model) if get_device() == "cpu" else model

    def load_checkpoint(self, filename: str, *args, **options) -> dict:
        """Load a checkpoint; raise CheckpointError if it has none of the model's tensors."""
        # MMEngine removes only "module.", not torch.compile's prefix.
        options = {"revise_keys": [(r"^(module\.|_orig_mod\.)+", "")], **options}
        checkpoint = super().load_checkpoint(filename, *args, **options)
        model = unwrapped_model(self.model)
        if "state_dict" not in checkpoint:
            checkpoints.find_state(checkpoint, filename)  # else its error names the entries
        state = checkpoints.unwrap_state(checkpoint.get("state_dict", checkpoint), model)
        checkpoints.check_fits(filename, model, checkpoints.find_absent(state, model))
        self.resumed_schedules = schedules(checkpoint.get("param_schedulers"))
        return checkpoint

    def resume(self, filename: str, *args, **options) -> None:
        """Resume from a checkpoint; the schedules are the config's, from their first step on."""
        # MMEngine restores the checkpoint's settings of a schedule: after its end, a longer
        # training would go on with a learning rate of 0.
        planned = schedules(self.param_schedulers)
        super().resume(filename, *args, **options)
        if self.resumed_schedules == planned or not planned:
            return
        for scheduler in each_scheduler(self.param_schedulers):
            name = scheduler.param_name
            for group in scheduler.optimizer.param_groups:
                group[name] = group.get(f"initial_{name}", group[name])
        self.param_schedulers = self.build_param_scheduler(self.cfg.param_scheduler)
        steps, of_epoch = ParamSchedulerHook(), self.epoch and self.iter // self.epoch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps before the optimizer's first one
            for done in range(1, self.iter + 1):
                steps.after_train_iter(self, 0)
                if of_epoch and done % of_epoch == 0:
                    steps.after_train_epoch(self)
        self.logger.info("the config's schedule, param_scheduler, replaces the checkpoint's")


def each_scheduler(given: list | dict[str, list] | None) -> Iterator[Any]:
    """Yield the schedulers of a Runner, or their states, which several optimizers have by name."""
    for schedulers in given.values() if isinstance(given, dict) else [given or []]:
        yield from schedulers


def schedules(given: list | dict[str, list] | None) -> list[dict[str, Any]]:
    """Return the settings of the schedulers of a Runner or a checkpoint, without their progress.

    The list is empty if a scheduler depends on the metrics of validations.
    """
    states = [s if isinstance(s, dict) else s.state_dict() for s in each_scheduler(given)]
    if any("num_bad_epochs" in state for state in states):
        return []
    return [{k: v for k, v in state.items() if k not in PROGRESS} for state in states]


class StopAtNaN(Hook):
    """Raises FloatingPointError if a loss becomes infinite or NaN, before a checkpoint is saved."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        # Other outputs, like the accuracy of no boxes, may be NaN.
        losses = [
            value.float().sum()
            for name, value in (outputs or {}).items()
            if "loss" in name and isinstance(value, Tensor)
        ]
        if losses and not torch.isfinite(sum(losses)):
            raise FloatingPointError(
                f"the loss became infinite or NaN at iteration {runner.iter}; {SLOWER}"
            )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        # The loss of another process may be NaN; the gradients carry it to all weights.
        if not all(torch.isfinite(value).all() for value in runner.model.parameters()):
            raise FloatingPointError(
                f"weights became infinite or NaN at iteration {runner.iter}; {SLOWER}"
            )


class RecordHook(Hook):
    """Writes ``record.json``: what is run, the curve of a training, the metrics of a test."""

    # After the hook that saves checkpoints: a run whose last one could not be written is not over.
    priority = "LOWEST"

    # A point has means of losses and accuracies, over an epoch or about 1 / POINTS of the
    # iterations, and a validation's metrics.

    def __init__(self, opened: OpenConfig, record: RunRecord) -> None:
        self.opened, self.record = opened, record

    def before_run(self, runner) -> None:
        norms = self.opened.describe_norms(unwrapped_model(runner.model))
        runner.logger.info(f"norms of the model: {norms}")

    def before_train(self, runner) -> None:
        check_statistics(unwrapped_model(runner.model).train(), runner.world_size)
        loop, loader = runner.train_loop, runner.train_dataloader
        self.by_epoch = isinstance(loop, EpochBasedTrainLoop)
        planned = loop.max_epochs if self.by_epoch else loop.max_iters
        self.interval = len(loader) if self.by_epoch else max(1, planned // POINTS)
        # A batch sampler of one's own may have none, and mmdet's of several datasets has a list.
        size = getattr(loader.batch_sampler, "batch_size", None)
        batch = size * runner.world_size if isinstance(size, int) else None
        unit = "epochs" if self.by_epoch else "iterations"
        length = Length(unit, planned, batch, len(loader.dataset))
        runner.logger.info(f"length of the training: {length}")
        rate, resumes = base_rates(optimizers(runner))[0], self.opened.config.resume
        self.record.start(length, seed=runner.seed, resumes=resumes, rate=rate)

    def before_test(self, runner) -> None:
        self.record.start(seed=runner.seed)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        due = self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)
        if not self.by_epoch and due:
            self.point(runner, runner.iter + 1)

    def after_train_epoch(self, runner) -> None:
        if self.by_epoch:
            self.point(runner, runner.epoch + 1)

    def after_train(self, runner) -> None:
        reached = runner.epoch if self.by_epoch else runner.iter
        # An early stop, or a kill between the last checkpoint and its point.
        if self.record.lacks(reached):
            self.point(runner, reached)
        if getattr(runner.train_loop, "stop_training", False):  # as EarlyStoppingHook sets it
            self.record.stopped_early()

    def after_val_epoch(self, runner, metrics=None) -> None:
        # This replaces the point of the same epoch or iteration.
        self.point(runner, runner.epoch if self.by_epoch else runner.iter, metrics)

    def after_test_epoch(self, runner, metrics=None) -> None:
        images, weights = len(runner.test_dataloader.dataset), self.opened.config.load_from
        self.record.finish(numbers(metrics, only_finite=False), images, weights)

    def point(self, runner, run: int, metrics: dict | None = None) -> None:
        means = {
            name.removeprefix("train/"): history.mean(self.interval)
            for name, history in runner.message_hub.log_scalars.items()
            if name.startswith("train/") and ("loss" in name or "/accuracy" in name)
        }
        # A metric may have the name of a loss.
        named = {f"val/{k}" if k in means else k: v for k, v in (metrics or {}).items()}
        self.record.point(run, **numbers({**means, **named}))


def numbers(values: dict | None, only_finite: bool = True) -> dict[str, float]:
    """Return the numbers of a dict, by default the finite ones, as floats of 6 decimals."""
    rounded = {}
    for name, value in (values or {}).items():
        # Unlike a confusion matrix.
        if isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1):
            number = float(value)
            if number == -1 and OF_COCO.search(name):
                number = math.nan  # it could not be measured
            if math.isfinite(number) or not only_finite:
                rounded[name] = round(number, 6)
    return rounded
