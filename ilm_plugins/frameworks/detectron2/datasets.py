"""Register COCO's jsons of a user in detectron2, and check them and their images before a run."""

import json
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from math import isfinite
from operator import itemgetter
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from PIL import ExifTags, Image

from ...errors import UserError, one_line

POLYGONS = "segmentation of polygons"
#: Key of an annotation, a form behind it -> whether it is valid there; an error says no, too.
VALUES: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "bbox": lambda annotation: is_box(annotation["bbox"]),
    "area": lambda annotation: isfinite(annotation["area"]),
    "iscrowd": lambda annotation: annotation["iscrowd"] in (0, 1),
    "segmentation": lambda annotation: is_mask(annotation["segmentation"]),
    # A crowd is not trained.
    POLYGONS: lambda a: a["iscrowd"] == 1 or not isinstance(a["segmentation"], dict),
}


def is_box(box: Any) -> bool:
    return len(box) == 4 and isfinite(sum(box)) and min(box[2:]) >= 0


def is_mask(mask: Any) -> bool:
    """Whether detectron2 trains a mask, and pycocotools tests it, for which 4 numbers are a box."""
    if isinstance(mask, dict):
        return True
    areas = [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
    are_numbers = all(len(polygon) > 2 and isfinite(sum(polygon)) for polygon in mask)
    return are_numbers and len(mask[0]) > 4 and bool(areas)


def register_coco(name: str, json_file: str, images: str) -> None:
    """Register a json of COCO instances; UserError if the name is taken."""
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, json_file, images)
    metadata = MetadataCatalog.get(name)
    files = [os.path.abspath(metadata.get(key, "")) for key in ("json_file", "image_root")]
    if files != [json_file, images]:
        other = metadata.get("json_file", "code")
        raise UserError(
            f"--dataset {name}: this name is registered already, by {other}; give another name"
        )
    metadata.is_of_option = True


def check_dataset(name: str, setting: str, needed: Mapping[str, str]) -> list[str] | None:
    """Return the classes of a dataset if it comes from ``--dataset``.

    UserError if the dataset, which ``setting`` names, is not registered, or if its json or an image
    is invalid; ``needed`` is key of an annotation -> what needs it.
    """
    if name not in DatasetCatalog:
        raise UserError(
            f"dataset {name!r} of {setting} is not registered; give --dataset {name} JSON IMAGES, "
            "or --import FILE with a file that registers it"
        )
    metadata = MetadataCatalog.get(name)
    if not metadata.get("is_of_option"):
        return None
    classes, invalid = read_coco(name, metadata.json_file, metadata.image_root)
    for key, what in needed.items():
        if key in invalid:
            raise UserError(f"dataset {name!r}: {invalid[key]}, but {what}; correct its json")
    return classes


@cache
def read_coco(name: str, json_file: str, folder: str) -> tuple[list[str], dict[str, str]]:
    """Check a json and the headers of its images.

    Return its classes, and key -> the first annotation whose value is missing or invalid, in words.
    """
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
        images, annotations = content["images"], content["annotations"]
        check_unique("images", "id", images)
        classes = classes_of(content["categories"], annotations)
        invalid = invalid_values(annotations)
        del content, annotations
        entries = load_coco_json(json_file, folder)
        if all(a.get("iscrowd") for entry in entries for a in entry["annotations"]):
            raise ValueError("no image has annotations, other than of crowds (iscrowd 1)")
    except Exception as error:  # of pycocotools and detectron2, by whatever the json has
        raise UserError(
            f"--dataset {name}: {json_file!r} is no json of COCO instances, with images, "
            f"annotations and categories ({type(error).__name__}: {one_line(error)}); correct it"
        ) from error
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one process of each machine
        with ThreadPoolExecutor() as pool:
            faults = [*filter(None, pool.map(partial(fault_of_image, folder), images))]
        if faults:
            raise UserError(
                f"--dataset {name}: {len(faults)} of {len(images)} images do not fit the json, "
                f"first {faults[0]}; correct {json_file!r}, or give the folder of its file names"
            )
    return classes, invalid


def check_unique(what: str, key: str, entries: Iterable[Mapping[str, Any]]) -> None:
    for value, number in Counter(entry[key] for entry in entries).items():
        if number > 1:
            raise ValueError(f"several {what} have the {key} {value!r}")


def classes_of(categories: list[dict], annotations: list[dict]) -> list[str]:
    """Return the names of categories by id; of several with one name, one may have annotations."""
    check_unique("categories", "id", categories)
    used = {annotation["category_id"] for annotation in annotations}
    if unknown := used - {category["id"] for category in categories}:
        raise ValueError(f"no category has the category_id {min(unknown)!r} of annotations")
    check_unique(
        "categories", "name", [category for category in categories if category["id"] in used]
    )
    return [category["name"] for category in sorted(categories, key=itemgetter("id"))]


def invalid_values(annotations: list[dict]) -> dict[str, str]:
    """Return key -> the first annotation whose value is missing or invalid, in words."""
    invalid: dict[str, str] = {}
    for annotation in annotations:
        values = {"iscrowd": 0, **annotation}
        for key, is_valid in VALUES.items():
            try:
                if is_valid(values):
                    continue
            except (ArithmeticError, LookupError, TypeError):
                pass
            name = key.partition(" ")[0]
            value = reprlib.repr(values[name]) if name in values else "missing"
            invalid.setdefault(key, f"{name!r} of annotation {annotation['id']!r} is {value}")
    return invalid


def fault_of_image(folder: str, entry: Mapping[str, Any]) -> str | None:
    """Say what is wrong with an image of a json, by the image's header; None if nothing is."""
    path, size = os.path.join(folder, entry["file_name"]), (entry["width"], entry["height"])
    try:
        with Image.open(path) as image:
            sizes = [f"{width!r} x {height!r}" for width, height in (size_of(image), size)]
    except Exception as error:  # of Pillow, which has others for each format
        return one_line(error)
    told = f"{path!r}, which is {sizes[0]} (EXIF applied), but {sizes[1]} in the json"
    return told if sizes[0] != sizes[1] else None


def size_of(image: Image.Image) -> tuple[int, int]:
    """Return width and height as detectron2 turns an image by its EXIF tag, without decoding it."""
    with suppress(Exception):  # as detectron2, which ignores a damaged EXIF
        # Not image.getexif(), which decodes a PNG.
        if Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
            return image.size[::-1]
    return image.size
