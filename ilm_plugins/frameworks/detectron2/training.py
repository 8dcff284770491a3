"""Train and evaluate detectron2's yaml configs and LazyConfigs, on GPUs and on the CPU.

An ``opened`` config is a Detectron2Config, whose file imports this one.
"""

import logging
import os
import weakref
from collections.abc import Iterable, Mapping, Sized
from dataclasses import replace
from typing import Any

import torch
from detectron2 import engine, evaluation
from detectron2.config import CfgNode, instantiate
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import distributed, nn

from ...errors import UserError
from ..checkpoints import base_rates
from ..config import OpenConfig, check_statistics
from ..length import Length
from ..run.options import ProcessOptions
from ..run.record import POINTS, RunRecord
from .checkpoints import Checkpointer
from .config_files import TRAIN
from .radius import RadiusHook


def run(opened: OpenConfig, record: RunRecord) -> None:
    """Train, or evaluate with ``eval_only``, in this process of a run."""
    options = record.options
    if options.world_size > 1:
        join_group(options)
    engine.default_setup(opened.config, options)
    if options.eval_only:
        evaluate(opened, record)
    else:
        opened.train(record)


def join_group(processes: ProcessOptions) -> None:
    """Join the run's process group, as detectron2's own launcher does."""
    if processes.num_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if processes.num_gpus else "gloo"
    distributed.init_process_group(backend, timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(processes.local_world_size)
    comm.synchronize()


def evaluate(opened: OpenConfig, record: RunRecord) -> None:
    """Evaluate the config's weights, or with --resume the last checkpoint."""
    folder, resume = record.folder, record.options.resume
    model = log_norms(opened, opened.build_model())
    weights = opened.settings[opened.keys["weights"]]
    checkpointer = Checkpointer(model, folder)
    if resume and not checkpointer.has_checkpoint():
        raise UserError(f"--resume: {folder} has no checkpoint; give the output folder of a run")
    if not resume and not weights:
        raise UserError("nothing to evaluate: give weights, or --resume")
    if not opened.has_test():
        key = opened.test_set[-1]
        raise UserError(f"nothing to evaluate on: the config has no {key}; give one")
    checkpointer.resume_or_load(weights, resume=resume)
    record.start()
    test = Evaluation(opened, model)
    results = test()
    record.finish(flatten_results_dict(results), test.images, weights)
    if comm.is_main_process() and isinstance(opened.config, CfgNode):
        evaluation.verify_results(opened.config, results)


def log_norms(opened: OpenConfig, model: nn.Module) -> nn.Module:
    """Log the norms of a new model, and return it; UserError if it lacks one of the config's."""
    logging.getLogger("detectron2").info(f"norms of the model: {opened.describe_norms(model)}")
    return model


class Trainer(engine.DefaultTrainer):
    """detectron2's DefaultTrainer for yaml configs, also in several processes on the CPU."""

    def __init__(self, opened: OpenConfig, record: RunRecord) -> None:
        # Not DefaultTrainer's: its DDP needs GPUs, and its checkpointer runs code in checkpoints.
        engine.TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(opened.config, comm.get_world_size())
        opened = replace(opened, config=cfg)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        with opened.explaining_norms():
            model = log_norms(opened, self.build_model(cfg))
        self.recording = RecordHook(opened, record, Evaluation(opened, model))
        wrapped = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = simple_trainer(opened, model, wrapped, self.build_train_loader(cfg))
        self.scheduler = self.build_lr_scheduler(cfg, self._trainer.optimizer)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[engine.HookBase]:
        hooks = super().build_hooks()
        # On rank 0, the last hook writes the logs, hence RecordHook goes before it.
        hooks.insert(-1, self.recording)
        return [RadiusHook(), *hooks]

    def test(self, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        return self.recording.evaluate()


def train_lazy(opened: OpenConfig, record: RunRecord) -> None:
    """Train the model of a LazyConfig, as detectron2's lazyconfig_train_net.py does."""
    cfg, resume, writes = opened.config, record.options.resume, comm.is_main_process()
    settings = cfg.train
    unread = [f"train.{k}" for k, value in settings.items() if k not in TRAIN and is_on(value)]
    if unread:
        logging.getLogger("detectron2").warning(
            f"{', '.join(unread)}: the command train does not read these keys; they have no effect"
        )
    plain = log_norms(opened, opened.build_model())
    model = create_ddp_model(plain, **settings.ddp)
    trainer = simple_trainer(opened, plain, model, instantiate(cfg.dataloader.train))
    recording = RecordHook(opened, record, Evaluation(opened, plain))
    checkpointer = Checkpointer(model, settings.output_dir, trainer=trainer)
    saving = engine.hooks.PeriodicCheckpointer(checkpointer, **settings.checkpointer)
    writers = engine.default_writers(settings.output_dir, settings.max_iter) if writes else []
    trainer.register_hooks(
        [
            RadiusHook(),
            engine.hooks.IterationTimer(),
            engine.hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            saving if writes else None,
            engine.hooks.EvalHook(settings.eval_period, recording.evaluate),
            recording,
            engine.hooks.PeriodicWriter(writers, settings.log_period) if writes else None,
        ]
    )
    checkpointer.resume_or_load(settings.init_checkpoint, resume=resume)
    resumed = resume and checkpointer.has_checkpoint()
    # A checkpoint has the number of the iteration that it was saved after.
    trainer.train(trainer.iter + 1 if resumed else 0, settings.max_iter)


def is_on(value: Any) -> bool:
    return bool(value.get("enabled", True) if isinstance(value, Mapping) else value)


def simple_trainer(
    opened: OpenConfig, model: nn.Module, wrapped: nn.Module, batches: Iterable[list[dict]]
) -> engine.SimpleTrainer:
    """Return a trainer of a model, wrapped for several processes, with the config's optimizer."""
    kind = engine.AMPTrainer if opened.uses_amp() else engine.SimpleTrainer
    return kind(wrapped, batches, opened.optimizer(model))


class RecordHook(engine.HookBase):
    """Write record.json: what is trained, POINTS points of the curve, and the final metrics."""

    # The hook that calls ``evaluate`` runs before this one.

    def __init__(self, opened: OpenConfig, record: RunRecord, evaluation: "Evaluation") -> None:
        self.record, self.evaluation, self.started = record, evaluation, False
        settings = opened.settings
        self.batch, seed = settings.get(opened.batch), settings.get(opened.keys["seed"])
        self.seed = None if seed is None or seed < 0 else seed

    def before_train(self) -> None:
        check_statistics(self.evaluation.model, comm.get_world_size())
        self.period = max(1, self.trainer.max_iter // POINTS)
        images = count_images(self.trainer.data_loader)
        length = Length("iterations", self.trainer.max_iter, self.batch, images)
        logging.getLogger("detectron2").info(f"length of the training: {length}")
        (rate, *_), resumes = base_rates([self.trainer.optimizer]), self.trainer.start_iter > 0
        self.record.start(length, seed=self.seed, resumes=resumes, rate=rate)
        self.started = True

    def evaluate(self) -> dict[str, Any]:
        """Return the results of an evaluation; none after an exception, or a second time."""
        # EvalHook evaluates after an exception, too, which a second one would hide.
        if not self.started or self.trainer.iter + 1 == self.trainer.max_iter:
            return {}
        return self.evaluation()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            self._point(done, self._metrics(done - self.period))

    def after_train(self) -> None:
        last = self.trainer.max_iter
        # detectron2 calls this after an exception, too; only a whole training counts to the end.
        if not self.started or self.trainer.iter < last:
            return
        # A kill between the last checkpoint and its point, which has no loss now.
        if self.record.lacks(last):
            self.record.point(last)
        if metrics := self._metrics(last):
            if self.trainer.start_iter < last:  # else a trained model is resumed
                self._point(last, metrics)
            self.record.finish(metrics, self.evaluation.images)

    def _point(self, done: int, metrics: dict[str, float]) -> None:
        if comm.is_main_process():
            loss = self.trainer.storage.history("total_loss").avg(self.period)
            # Names with a hyphen, such as AP-circle, are metrics of one class.
            means = {
                name: value for name, value in metrics.items() if "-" not in name.rpartition("/")[2]
            }
            self.record.point(done, total_loss=loss, **means)

    def _metrics(self, since: int) -> dict[str, float]:
        """The metrics of the evaluations in iteration ``since`` and later."""
        names = flatten_results_dict(self.evaluation.results)
        latest = self.trainer.storage.latest()
        return {n: latest[n][0] for n in names if n in latest and latest[n][1] >= since}


class Evaluation:
    """A callable that evaluates a model on a config's test sets; only rank 0 gets metrics."""

    def __init__(self, opened: OpenConfig, model: nn.Module) -> None:
        # Not wrapped for several processes, which may have different numbers of images.
        self.opened, self.model = opened, model
        self.results: dict[str, Any] = {}
        #: Number of the test images of the last evaluation.
        self.images: int | None = None

    def __call__(self) -> dict[str, Any]:
        results, counts = {}, []
        for name, loader, evaluator in self.opened.tests():
            number_annotations(evaluator)
            results[name] = evaluation.inference_on_dataset(self.model, loader, evaluator)
            counts.append(count_images(loader))
            if comm.is_main_process():
                logging.getLogger("detectron2").info(f"Evaluation of {name}:")
                evaluation.print_csv_format(results[name])
        self.images = sum(counts) if counts and None not in counts else None
        self.results = next(iter(results.values())) if len(results) == 1 else results
        return self.results


def number_annotations(evaluator: Any) -> None:
    """Number COCO's annotations from 1: pycocotools takes a match with id 0 for no match.

    One without ``iscrowd`` is no crowd, as in the training.
    """
    for part in getattr(evaluator, "_evaluators", [evaluator]):
        if isinstance(part, evaluation.COCOEvaluator):
            coco = part._coco_api
            coco.anns = dict(enumerate(coco.dataset.get("annotations", ()), 1))
            for number, annotation in coco.anns.items():
                annotation.update(id=number, iscrowd=annotation.get("iscrowd", 0))


def create_ddp_model(model: nn.Module, **options) -> nn.Module:
    """detectron2's create_ddp_model, without device ids if the model is on the CPU."""
    if next(model.parameters()).device.type == "cpu":
        options["device_ids"] = None
    return engine.defaults.create_ddp_model(model, **options)


def count_images(loader) -> int | None:
    """The number of images of a loader's dataset over all processes; None if unknown."""
    while hasattr(loader, "dataset"):
        loader = loader.dataset
    return len(loader) if isinstance(loader, Sized) else None
