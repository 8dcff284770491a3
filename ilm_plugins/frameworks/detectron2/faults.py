"""Make errors of a detectron2 run name the broken file or the iteration."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from detectron2.data import MetadataCatalog
from detectron2.engine import TrainerBase

from ...errors import RunError, UserError
from ..command import describe_path


@contextmanager
def add_iteration(trainer: TrainerBase) -> Iterator[None]:
    """Within this context, the FloatingPointError of a NaN loss gets the trainer's iteration."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"at iteration {trainer.iter}: {error}") from error


class ImageErrors:
    """Wraps a detectron2 mapper; its errors become RunErrors that name the image file.

    Args:
        mapper: converts an entry of a data set to an input of the model.
    """

    def __init__(self, mapper: Callable[[dict], dict]) -> None:
        self.mapper = mapper

    def __call__(self, entry: dict) -> dict:
        """Map an entry of a data set; raise RunError with its ``file_name`` if that fails."""
        try:
            return self.mapper(entry)
        except Exception as error:  # decoders and augmentations raise what they like
            raise RunError(
                f"image {entry.get('file_name')!r} cannot be used: {type(error).__name__}: "
                f"{error}; fix or remove it"
            ) from error


@contextmanager
def explain_dataset_errors(names: Sequence[str]) -> Iterator[None]:
    """Within this context, errors of loading data sets become UserErrors that name their files.

    These are AssertionError, ImportError, KeyError, OSError, TypeError and ValueError; others pass
    unchanged.

    Args:
        names: the data sets that are loaded, as registered in detectron2; the message has the
            ``json_file`` of their metadata.
    """
    try:
        yield
    except (AssertionError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
        files = (
            describe_path(os.fspath(MetadataCatalog.get(n).get("json_file", n))) for n in names
        )
        raise UserError(
            f"data set {', '.join(names)} cannot be loaded from {', '.join(files)}: "
            f"{type(error).__name__}: {error}; fix the config or the file, name another data set, "
            "or set the environment variable DETECTRON2_DATASETS to another folder"
        ) from error
