"""What the detectors or segmenters of a comparison predict on a few test images, as pictures."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw

from ..checkpoints import load_weights
from ..errors import one_line
from ..frameworks.checkpoints import last_checkpoint
from ..frameworks.images import Content
from ..reports.style import OKABE_ITO, uri
from .compared_config import ComparedConfig

#: Number of images, their longer side in pixels, and the score from which objects are drawn.
COUNT, SIDE, SCORE = 6, 640, 0.5
#: What stands in place of a picture without objects; of an annotation without any.
NOTHING, NO_ANNOTATION = f"no object above {SCORE:g}", "no annotated object"


class Predictions(NamedTuple):
    """Columns of pictures of the same images: each norm's model, the annotation, and the photo."""

    #: Title of a column -> data URIs of its pictures, or why there is none; "" without a content.
    columns: dict[str, list[str]]
    #: Class -> its colour, "#rrggbb", of the classes that a picture has.
    classes: dict[str, str]
    #: Whether objects are drawn, not classes of pixels.
    has_objects: bool


def predictions(config: ComparedConfig, folders: Mapping[str, Path]) -> Predictions | str | None:
    """Return the pictures by norm -> folder of its run; None for models that predict no objects.

    In words why the pictures cannot be drawn.
    """
    try:
        return _draw(config, {norm: last_checkpoint(folder) for norm, folder in folders.items()})
    except Exception as error:  # such as too little memory; the report goes on
        return f"{type(error).__name__}: {one_line(error)}"


def _draw(config: ComparedConfig, paths: dict[str, Path]) -> Predictions | None:
    own = config.opened
    images = [*own.test_images(COUNT)] if paths else []
    photos = [photo for photo, _ in images]
    columns = {}
    for norm, path in paths.items() if images else ():
        # A machine that only submits the trainings may have no GPU.
        on_gpu = config.num_gpus and torch.cuda.is_available()
        opened = config.open(norm, "cuda" if on_gpu else "cpu")
        inference = opened.inference()
        load_weights(inference.model.eval(), path)
        columns[norm] = [opened.content(inference.forward([photo])[0]) for photo in photos]
    columns["annotation"] = [content for _, content in images]
    seen = {norm: contents for norm, contents in columns.items() if any(contents)}
    if not {*seen} & {*paths}:
        return None
    names = own.classes_of_test() or ()
    return draw(photos, seen, names)


def draw(
    photos: Sequence[np.ndarray],
    columns: dict[str, Sequence[Content | None]],
    names: Sequence[str] = (),
) -> Predictions:
    """Draw what each column's contents find on photos (H, W, 3), and behind them the photos.

    ``names`` are the classes'.
    """
    contents = [content for column in columns.values() for content in column if content]
    numbers = sorted({*(int(n) for content in contents for n in _numbers(content))})
    names = [*names, *(f"class {n}" for n in range(len(names), max(numbers, default=-1) + 1))]
    colours = np.full((len(names) + 1, 3), 255)  # the last, white, is of pixels without a class
    colours[numbers] = _colours([names[n] for n in numbers])
    small = [_resized(Image.fromarray(photo)) for photo in photos]
    drawn = {
        title: [
            _shot(photo, content, whole.shape[1::-1], colours)
            for photo, whole, content in zip(small, photos, column, strict=True)
        ]
        for title, column in columns.items()
    }
    drawn["photo"] = [_uri(photo) for photo in small]
    legend = {names[n]: "#{:02x}{:02x}{:02x}".format(*colours[n]) for n in numbers}
    return Predictions(drawn, legend, any(content.boxes is not None for content in contents))


def _numbers(content: Content) -> np.ndarray:
    """Return the numbers of the classes that are drawn; 255 is no class."""
    if content.classes is not None:
        return np.setdiff1d(content.classes, [255])
    return np.unique([content.labels[i] for i in _shown(content)])


def _shown(content: Content) -> list[int]:
    """Return the indices of the objects that are drawn."""
    scores = content.scores
    return [i for i in range(len(content.labels)) if scores is None or scores[i] >= SCORE]


def _shot(
    photo: Image.Image, content: Content | None, size: tuple[int, int], colours: np.ndarray
) -> str:
    """Return a picture as a data URI, or why there is none; "" without a content."""
    if content is None:
        return ""
    if content.classes is None and not _shown(content):
        return NO_ANNOTATION if content.scores is None else NOTHING
    return _uri(_picture(photo, content, size, colours))


def _picture(
    photo: Image.Image, content: Content, size: tuple[int, int], colours: np.ndarray
) -> Image.Image:
    """Draw classes in their colours, white for none, or objects over the photo.

    ``size`` is the width and height, in pixels, of the photo before it was resized.
    """
    if content.classes is not None:
        classes = np.minimum(content.classes, len(colours) - 1)
        drawn = colours[classes].astype(np.uint8)
        return Image.fromarray(drawn).resize(photo.size, Image.Resampling.NEAREST)
    photo, shown = photo.copy(), _shown(content)
    for i in shown if content.masks is not None else ():
        mask = Image.fromarray(np.uint8(content.masks[i] > 0) * 110)
        colour = tuple(map(int, colours[content.labels[i]]))
        photo.paste(colour, mask=mask.resize(photo.size, Image.Resampling.BILINEAR))
    painter = ImageDraw.Draw(photo)
    scale = np.tile(np.divide(photo.size, size), 2)
    for i in shown:
        colour = tuple(map(int, colours[content.labels[i]]))
        left, top, right, bottom = content.boxes[i] * scale
        painter.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=4)
    return photo


def _resized(photo: Image.Image) -> Image.Image:
    factor = SIDE / max(photo.size)
    return photo.resize([max(1, round(side * factor)) for side in photo.size])


def _colours(names: Sequence[str]) -> np.ndarray:
    """Return a colour, red, green and blue in 0..255, for each class; a background is grey."""
    known, hues = OKABE_ITO, len(names)
    if hues > len(known):
        known = mpl.colormaps["hsv"](np.linspace(0, 1, hues, endpoint=False))
    colours = np.round(255 * mpl.colors.to_rgba_array(known)[:hues, :3]).astype(int)
    colours[[name == "background" for name in names]] = 70
    return colours


def _uri(picture: Image.Image) -> str:
    """Return a picture as a data URI of an image in WebP."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=75)
    return uri(file.getvalue(), "webp")
