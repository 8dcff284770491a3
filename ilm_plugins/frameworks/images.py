"""What test images have by their annotations or by a model, in one form for both frameworks."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Content:
    """What an image has by its annotation or by a model: a class for each pixel, or objects."""

    #: (H, W), numbers of classes; other numbers are no class.
    classes: Any = None
    #: (N, 4), corners x0, y0, x1, y1 in pixels.
    boxes: Any = None
    #: (N), numbers of classes.
    labels: Any = None
    #: (N), 0..1; None for annotated objects.
    scores: Any = None
    #: (N, H, W); None for objects that only have boxes.
    masks: Any = None


def spread(length: int, count: int) -> list[int]:
    """Return ``count`` places in a sequence, evenly spread without its ends, or all if fewer."""
    if length <= count:
        return [*range(length)]
    return [(i + 1) * (length - 1) // (count + 1) for i in range(count)]
