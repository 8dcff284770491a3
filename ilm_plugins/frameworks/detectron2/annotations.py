"""Check the boxes and masks of a loaded detectron2 data set, once, before training."""

import logging
import math
from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask

from ...errors import UserError


def leave_out_boxes(entries: list[dict], names: Sequence[str]) -> list[dict]:
    """Empty the boxes that are not finite, and log how many boxes detectron2 will leave out.

    detectron2 leaves out empty boxes; a box is empty, too, if it is negative or outside the image.
    ``names`` are the data sets of the entries, which are changed in place and returned. A box or a
    mask that cannot be read raises UserError.
    """
    if not isinstance(entries, list):  # a torch data set, which yields entries of its own
        return entries
    files = ", ".join(str(MetadataCatalog.get(name).get("json_file", name)) for name in names)
    total = left_out = 0
    for entry in entries:
        for annotation in entry.get("annotations", ()):
            try:
                empty = _is_empty(annotation, entry)
            except (AssertionError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"annotation {str(annotation)[:300]} of {entry.get('file_name')!r} in {files} "
                    f"cannot be used: {type(error).__name__}: {error}; fix or remove it"
                ) from error
            if empty:
                annotation["bbox"] = [0.0] * len(annotation["bbox"])
            total, left_out = total + 1, left_out + empty
    if left_out:
        logging.getLogger("detectron2").warning(
            f"Left out {left_out} of {total} boxes of {files}: each is NaN, infinite, negative or "
            "outside its image"
        )
    return entries


def _is_empty(annotation: dict, entry: dict) -> bool:
    """Whether a box has no area in its image; raise an error if box or mask cannot be read."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict) and not annotation.get("iscrowd"):
        shape, size = mask.decode(segmentation).shape, (entry["height"], entry["width"])
        assert shape == size, f"the mask has {shape[0]} x {shape[1]} pixels, the image {size}"
    if annotation["bbox_mode"] not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return False
    x, y, right, bottom = annotation["bbox"]
    if annotation["bbox_mode"] == BoxMode.XYWH_ABS:
        right, bottom = x + right, y + bottom
    if not math.isfinite(x + y + right + bottom):
        return True
    width = min(right, entry.get("width", math.inf)) - max(x, 0)
    height = min(bottom, entry.get("height", math.inf)) - max(y, 0)
    return width <= 0 or height <= 0
