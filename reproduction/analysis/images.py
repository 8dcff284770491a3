"""Images to analyze: a folder, with or without class folders."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ilm_plugins.errors import UserError
from ilm_plugins.images import list_images, read_image


@dataclass(frozen=True)
class Images:
    """A sequence of images, (H, W, 3) RGB uint8, decoded when indexed."""

    names: Sequence[str]
    #: The class of each image, "" without class folders.
    classes: Sequence[str]
    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(read_image(self.files[index]))

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Yield all images in lists of ``size``; the last list may be shorter."""
        for start in range(0, len(self), size):
            yield [self[i] for i in range(start, min(start + size, len(self)))]


def open_images(
    path: str | os.PathLike, limit: int | None = None, classes: Sequence[str] = ()
) -> Images:
    """List the images of a folder of class folders, or of a flat folder, in the order of names.

    Only ``classes`` are kept, if given; of their images ``limit``, evenly spaced.
    """
    path = Path(path).expanduser()
    files = list_images(path, deep=True)
    loose = [p for p in files if p.parent == path]
    if 0 < len(loose) < len(files):
        raise UserError(
            f"{path} holds images, such as {loose[0].name}, and folders of images; give a folder "
            "of class folders, or one of images only"
        )
    class_of = {p: "" if loose else p.relative_to(path).parts[0] for p in files}
    known = sorted({*class_of.values()} - {""})
    for name in classes:
        if name not in known:
            near = difflib.get_close_matches(name, known, 4, 0) or ["none"]
            raise UserError(f"{path} has no class {name!r}; near ones are {', '.join(near)}")
    chosen = [p for p in files if not classes or class_of[p] in classes]
    if limit is not None and limit < len(chosen):
        chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
    names = [str(p.relative_to(path)) for p in chosen]
    return Images(names, [class_of[p] for p in chosen], chosen)
