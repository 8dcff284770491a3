"""What may go wrong in a run of MMEngine's: which file, or which iteration, in one line."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from mmengine.dataset import Compose
from mmengine.dist import all_reduce
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ...errors import RunError, UserError
from ..training import annotated


@contextmanager
def names_dataset(config: dict | None) -> Iterator[None]:
    """Raise UserError with the annotations of a data set that cannot be loaded."""
    try:
        yield
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        # What is not registered, or not an option, is told elsewhere.
        if not isinstance(config, dict) or isinstance(error, UserError):
            raise
        if isinstance(error, KeyError) and "registry" in str(error):
            raise
        inner = config
        while isinstance(inner.get("dataset"), dict):
            inner = inner["dataset"]
        if isinstance(error, TypeError) and "keyword argument" in str(error):
            raise UserError(
                f"the loader of data set {inner.get('type')} cannot be built: "
                f"{' '.join(str(error).split())}; mend the config, or the overrides"
            ) from error
        path = os.path.join(inner.get("data_root") or "", inner.get("ann_file") or "")
        # How MMEngine says that there is nothing in it.
        nothing = "need at least one array" in str(error)
        why = "nothing is in it" if nothing else f"{type(error).__name__}: {error}"
        raise UserError(
            f"data set {inner.get('type')} cannot be loaded from {annotated(path)}: {why}; "
            "mend the file, or set another ann_file"
        ) from error


class Labels(NamedTuple):
    """What the labels of a segmenter's maps may be: below ``number``, or ``ignored``."""

    number: int
    ignored: int

    def check(self, data: dict | None) -> None:
        """Raise ValueError if a map of labels, (1, H, W), has others; no map is as good."""
        sample = data.get("data_samples") if isinstance(data, dict) else None
        labels = getattr(getattr(sample, "gt_sem_seg", None), "data", None)
        if not isinstance(labels, Tensor):
            return
        if labels.ndim != 3 or labels.shape[0] != 1:
            raise ValueError(
                f"its labels are of shape {(*labels.shape,)}, expected one channel, (1, H, W)"
            )
        others = labels[(labels >= self.number) & (labels != self.ignored)]
        if len(others):
            raise ValueError(
                f"it has label {others[0]}, expected 0 to {self.number - 1} of num_classes, or "
                f"{self.ignored}, which is ignored"
            )


def labels_of(model: nn.Module) -> Labels | None:
    """What labels mmseg's cross entropy takes in a model; None where there is none."""
    while is_model_wrapper(model):
        model = model.module
    head = getattr(model, "decode_head", None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    losses = getattr(head, "loss_decode", None)
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    # Others take what is no class's number as well.
    strict = any(type(loss).__name__ == "CrossEntropyLoss" for loss in losses)
    names = "num_classes", "out_channels", "ignore_index"
    classes, channels, ignored = (getattr(head, name, None) for name in names)
    if not strict or None in (classes, channels, ignored):
        return None
    # One channel tells two classes from each other.
    return Labels(2 if channels == 1 else classes, ignored)


class NamesImage(Compose):
    """A data set's transforms, which say whose image or annotation cannot be read or used.

    Args:
        transforms: those of the data set.
        labels: what labels may be.
    """

    def __init__(self, transforms: list, labels: Labels | None = None) -> None:
        super().__init__([])
        # They are built.
        self.transforms = transforms
        self.labels = labels

    def __call__(self, data: dict) -> dict | None:
        # Transforms add to it what they have read.
        names = [data[key] for key in ("img_path", "seg_map_path") if data.get(key)]
        try:
            packed = super().__call__(data)
            if self.labels:
                self.labels.check(packed)
            return packed
        except Exception as error:  # decoders and transforms raise what they like
            raise RunError(
                f"image {' with '.join(map(str, names))} cannot be used: {type(error).__name__}: "
                f"{error}; mend or remove it"
            ) from error


def name_images(dataset, labels: Labels | None = None) -> None:
    """Give a data set, and those that it is made of, transforms that name what is at fault."""
    for inner in (getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())):
        if inner is not None:
            name_images(inner, labels)
    transforms = getattr(getattr(dataset, "pipeline", None), "transforms", None)
    if isinstance(transforms, list):
        dataset.pipeline = NamesImage(transforms, labels)


class StopAtNaN(Hook):
    """Ends a training whose loss is infinite or NaN, before anything of it is saved.

    The losses are looked at on their device, and only now and then by the host, which would have to
    wait for them. Gradients carry a NaN from one process to the others, so that all of these end by
    any one's: they look together, and before MMEngine's CheckpointHook saves anything.

    Args:
        interval: iterations from one look of the host's to the next.
    """

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval
        #: The iteration that was the first, from 0, on the losses' device.
        self.first = torch.tensor(math.inf)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        # Beside losses, by MMEngine's convention of names, there may be accuracies of nothing.
        losses = [
            value.detach().float().sum()
            for name, value in (outputs or {}).items()
            if "loss" in name and isinstance(value, Tensor)
        ]
        if losses:
            finite = torch.isfinite(sum(losses))
            first = self.first.to(finite.device)
            self.first = torch.where(finite, first, first.clamp(max=runner.iter))
        last = runner.iter + 1 == runner.max_iters
        if last or self.every_n_train_iters(runner, self.interval) or self._saves(runner):
            self.look()

    def _saves(self, runner) -> bool:
        return any(
            hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
            for hook in runner.hooks
            if isinstance(hook, CheckpointHook) and not hook.by_epoch
        )

    def after_train_epoch(self, runner) -> None:
        self.look()

    def before_val_epoch(self, runner) -> None:
        # The best checkpoint is saved after it.
        self.look()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        # The first process alone is here, whoever saves.
        self._check()

    def look(self) -> None:
        """Raise FloatingPointError if there was such an iteration in any of the processes."""
        all_reduce(self.first, "min")
        self._check()

    def _check(self) -> None:
        if not torch.isinf(self.first):
            raise FloatingPointError(
                f"the loss became infinite or NaN at iteration {self.first:.0f}"
            )
