"""Check the boxes and masks of a loaded detectron2 data set, once, before training."""

import logging
import math
from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask

from ...errors import UserError


def leave_out_boxes(entries: list[dict], names: Sequence[str]) -> list[dict]:
    """Empty the boxes of data sets that have no area, and count them in the log.

    UserError names a box or a mask that cannot be read.
    """
    if not isinstance(entries, list):  # a torch data set, which yields entries of its own
        return entries
    files = ", ".join(str(MetadataCatalog.get(name).get("json_file", name)) for name in names)
    pairs = [
        (entry, annotation) for entry in entries for annotation in entry.get("annotations", ())
    ]
    left_out = 0
    for entry, annotation in pairs:
        try:
            empty = _is_empty(annotation, entry)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"annotation {str(annotation)[:300]} of {entry.get('file_name')!r} in {files} "
                f"cannot be used: {type(error).__name__}: {error}; fix or remove it"
            ) from error
        if empty:
            annotation["bbox"] = [0.0] * 4
            left_out += 1
    if left_out:
        logging.getLogger("detectron2").warning(
            f"Left out {left_out} of {len(pairs)} boxes of {files}: each is NaN, infinite, empty "
            "or outside its image"
        )
    return entries


def _is_empty(annotation: dict, entry: dict) -> bool:
    """Whether a box has no area in its image; raise an error if box or mask cannot be read."""
    height, width = entry.get("height", math.inf), entry.get("width", math.inf)
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict) and not annotation.get("iscrowd"):
        assert mask.decode(segmentation).shape == (height, width), "mask and image differ in size"
    if annotation["bbox_mode"] not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return False
    x, y, right, bottom = annotation["bbox"]
    if annotation["bbox_mode"] == BoxMode.XYWH_ABS:
        right, bottom = x + right, y + bottom
    inside = min(right, width) > max(x, 0) and min(bottom, height) > max(y, 0)
    return not (inside and math.isfinite(x + y + right + bottom))
