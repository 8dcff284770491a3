"""Archives of small labelled images: the JPEG files of a split, concatenated, in one ``.npz``.

Arrays of ``ROOT/train.npz`` and ``ROOT/test.npz``::

    jpeg     (bytes,)  uint8    all files; image i is jpeg[offsets[i] : offsets[i + 1]]
    offsets  (n + 1,)  integer  from 0 to the length of jpeg
    labels   (n,)      integer  image i is of class classes[labels[i]]
    classes  (k,)      str      names of the classes
"""

import io
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError

KEYS = ("jpeg", "offsets", "labels", "classes")


def read_packed(path: str | os.PathLike) -> tuple[list[np.ndarray], list[int], tuple[str, ...]]:
    """Decode all images of an archive.

    Returns:
        The n images, (H, W, 3) RGB uint8 each; their n labels in 0..k - 1; the k names of classes.

    Raises:
        UserError: the file is missing, or the archive is invalid.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected an .npz with {', '.join(KEYS)}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            jpeg, offsets, labels, classes = (archive[key] for key in KEYS)
    except Exception as error:  # a broken archive can raise anything
        raise UserError(f"{path}: expected an .npz with {', '.join(KEYS)}: {error}") from error
    _check_arrays(path, jpeg, offsets, labels, classes)
    images = []
    for i, (start, end) in enumerate(pairwise(offsets)):
        try:
            with Image.open(io.BytesIO(jpeg[start:end].tobytes())) as image:
                images.append(np.asarray(image.convert("RGB")))
        except OSError as error:
            raise UserError(f"{path}: image {i} of {len(labels)} is no image file") from error
    return images, labels.tolist(), tuple(classes.tolist())


def _check_arrays(path: Path, jpeg, offsets, labels, classes) -> None:
    """Raise UserError unless the arrays are as the module's docstring says, with rising offsets.

    The images are not decoded; ``path`` is for the message.
    """
    n, k = labels.size, classes.size
    if any(array.ndim != 1 for array in (jpeg, offsets, labels, classes)) or jpeg.dtype != np.uint8:
        raise UserError(f"{path}: expected one-dimensional arrays, and jpeg in uint8")
    if {offsets.dtype.kind, labels.dtype.kind} - {"i", "u"}:
        raise UserError(f"{path}: expected integers for offsets and labels")
    bounded = offsets.size == n + 1 and offsets[0] == 0 and offsets[-1] == jpeg.size
    if not bounded or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise UserError(
            f"{path}: expected {n + 1} rising offsets from 0 to {jpeg.size} for {n} labels, "
            f"got {offsets.size}"
        )
    if n and not 0 <= labels.min() <= labels.max() < k:
        raise UserError(
            f"{path}: expected labels below {k}, the number of classes, "
            f"got {labels.min()} to {labels.max()}"
        )
