"""Make errors of an MMEngine run name the broken file or the iteration."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from torch import Tensor

from ...errors import PeerError, RunError, UserError
from ..command import describe_path


@contextmanager
def explain_dataset_errors(config: dict | None) -> Iterator[None]:
    """Within this context, errors of loading a data set become UserErrors that name its file.

    These are AssertionError, IndexError, KeyError, TypeError and ValueError; UserErrors pass
    unchanged.

    Args:
        config: the config of the data set. If it is not a dict, only the registry's KeyError for an
            unknown type is converted, see :func:`explain_unknown_types`.
    """
    try:
        with explain_unknown_types():
            yield
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        if not isinstance(config, dict) or isinstance(error, UserError):
            raise
        while isinstance(config.get("dataset"), dict):
            config = config["dataset"]
        path = os.path.join(config.get("data_root") or "", config.get("ann_file") or "")
        raise UserError(
            f"data set {config.get('type')} cannot be loaded from {describe_path(path)}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}; fix the config, or the "
            "file, which must not be empty"
        ) from error


@contextmanager
def explain_unknown_types() -> Iterator[None]:
    """Within this context, the registry's KeyError for an unknown type becomes a UserError.

    Other KeyErrors pass unchanged.
    """
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


class ImageErrors(Compose):
    """A data set's transforms, whose errors name the image and the segmentation map."""

    def __call__(self, data: dict) -> dict | None:
        """Apply the transforms to a sample, which they may change in place.

        Returns:
            The result of the last transform; None if one drops the sample.

        Raises:
            RunError: a transform fails, for whatever reason; the message names the files
                ``img_path`` and ``seg_map_path`` of the sample.
        """
        # Read the paths first, because transforms change the dict.
        names = [data[key] for key in ("img_path", "seg_map_path") if data.get(key)]
        try:
            return super().__call__(data)
        except Exception as error:  # decoders and transforms raise what they like
            raise RunError(
                f"image {' with '.join(map(str, names))} cannot be used: {type(error).__name__}: "
                f"{error}; fix or remove it"
            ) from error


def wrap_pipelines(dataset) -> None:
    """Have errors name the image: replace a data set's pipeline by an ImageErrors of its parts.

    The same is done to data sets within it, ``dataset`` and ``datasets``. One without a list of
    transforms at ``pipeline.transforms`` stays as it is.
    """
    for inner in (getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())):
        if inner is not None:
            wrap_pipelines(inner)
    transforms = getattr(getattr(dataset, "pipeline", None), "transforms", None)
    if isinstance(transforms, list):
        dataset.pipeline = ImageErrors(transforms)


class StopAtNaN(Hook):
    """Raises FloatingPointError if a loss becomes infinite or NaN, before a checkpoint is saved.

    Every process looks at its own losses. Gradients carry a NaN to the weights of all of them, so
    weights are looked at, too, before they are saved.
    """

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Raise FloatingPointError with the iteration if one of its losses is NaN or infinite.

        Args:
            runner: MMEngine's runner.
            batch_idx, data_batch: have no effect.
            outputs: name -> value of the iteration; those not named "...loss..." are ignored.
        """
        # MMEngine has "loss" in the names of losses; other outputs, like accuracies, may be NaN.
        losses = [
            value.detach().float().sum()
            for name, value in (outputs or {}).items()
            if "loss" in name and isinstance(value, Tensor)
        ]
        # MMEngine's RuntimeInfoHook reads the outputs of every iteration as well.
        if losses and not torch.isfinite(sum(losses)):
            raise FloatingPointError(f"the loss became infinite or NaN at iteration {runner.iter}")

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Raise an error if a parameter of the model is NaN or infinite.

        It is a PeerError if there are other processes, since the loss of one may be the cause.
        """
        if all(torch.isfinite(value).all() for value in runner.model.parameters()):
            return
        reason = f"weights became infinite or NaN at iteration {runner.iter}"
        if runner.distributed:
            raise PeerError(f"{reason}; lower the learning rate, or look at the data")
        raise FloatingPointError(reason)
