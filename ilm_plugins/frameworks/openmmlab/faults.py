"""Errors of an MMEngine run that name the broken file or the iteration."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.dataset import Compose
from mmengine.dist import all_reduce
from mmengine.hooks import CheckpointHook, Hook
from torch import Tensor

from ...errors import RunError, UserError
from ..command import describe_path


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
            f"data set {inner.get('type')} cannot be loaded from {describe_path(path)}: {why}; "
            "mend the file, or set another ann_file"
        ) from error


class NamesImage(Compose):
    """The transforms of a data set; their errors name the image and the map of labels.

    Args:
        transforms: those of the data set.
    """

    def __init__(self, transforms: list) -> None:
        super().__init__([])
        # They are built.
        self.transforms = transforms

    def __call__(self, data: dict) -> dict | None:
        # Transforms add to it what they have read.
        names = [data[key] for key in ("img_path", "seg_map_path") if data.get(key)]
        try:
            return super().__call__(data)
        except Exception as error:  # decoders and transforms raise what they like
            raise RunError(
                f"image {' with '.join(map(str, names))} cannot be used: {type(error).__name__}: "
                f"{error}; mend or remove it"
            ) from error


def name_images(dataset) -> None:
    """Replace the transforms of a data set, and of data sets within it, by NamesImage."""
    for inner in (getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())):
        if inner is not None:
            name_images(inner)
    transforms = getattr(getattr(dataset, "pipeline", None), "transforms", None)
    if isinstance(transforms, list):
        dataset.pipeline = NamesImage(transforms)


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
