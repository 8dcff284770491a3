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
    images = []
    try:
        with np.load(path, allow_pickle=False) as archive:
            jpeg, offsets, labels, classes = (archive[key] for key in KEYS)
        if offsets[0] != 0 or offsets[-1] != jpeg.size:
            raise ValueError(f"offsets run from {offsets[0]} to {offsets[-1]} of {jpeg.size}")
        labels = labels.astype(np.int64, casting="same_kind")
        for (start, end), label in zip(pairwise(offsets), labels, strict=True):
            if not 0 <= label < len(classes):
                raise ValueError(f"label {label} for {len(classes)} classes")
            with Image.open(io.BytesIO(jpeg[start:end].tobytes())) as image:
                images.append(np.asarray(image.convert("RGB")))
    except Exception as error:  # a broken archive can raise anything
        raise UserError(
            f"{path}: expected an .npz with {', '.join(KEYS)}: {error}, after {len(images)} images"
        ) from error
    return images, labels.tolist(), tuple(classes.tolist())
