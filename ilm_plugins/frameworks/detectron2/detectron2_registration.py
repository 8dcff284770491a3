"""Register COCO's jsons of a user in detectron2, and check the datasets that a config names."""

import os
from collections.abc import Mapping

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances

from ...errors import UserError, one_line

#: Number of a json's images that are looked for in its folder.
LOOKED_FOR = 100
#: Name of a dataset of ``--dataset`` -> the keys that each annotation of its json has.
KEYS: dict[str, set[str]] = {}


def register_coco(name: str, json_file: str, images: str) -> None:
    """Register a json of COCO instances; UserError if detectron2 cannot train or test on it."""
    if name not in DatasetCatalog:
        try:
            KEYS[name] = read_keys(name, json_file, images)
        except UserError:
            MetadataCatalog.pop(name, None)  # another json may have other classes
            raise
        register_coco_instances(name, {}, json_file, images)
        return
    metadata = MetadataCatalog.get(name)
    files = [os.path.abspath(metadata.get(one, "")) for one in ("json_file", "image_root")]
    if files != [json_file, images]:
        other = metadata.get("json_file", "code")
        raise UserError(
            f"--dataset {name}: this name is registered already, by {other}; give another name"
        )
    if name not in KEYS:
        KEYS[name] = read_keys(name, json_file, images)


def read_keys(name: str, json_file: str, images: str) -> set[str]:
    """Return the keys that each annotation of a json has."""
    if not os.path.isfile(json_file):
        raise UserError(f"--dataset {name}: there is no file {json_file!r}; give COCO's json")
    if not os.path.isdir(images):
        raise UserError(f"--dataset {name}: there is no folder {images!r}; give the images' folder")
    try:
        records = load_coco_json(json_file, images, name, ["area"])
        if not records:
            raise ValueError("it has no images")
        annotations = [annotation for record in records for annotation in record["annotations"]]
        if not annotations:
            raise ValueError("its images have no annotations")
        classes = MetadataCatalog.get(name).thing_classes
        if twice := {str(one) for one in classes if classes.count(one) > 1}:
            raise ValueError(f"several categories have the name or id of {min(twice)!r}")
        # A box that is not of four numbers is none.
        keys = [{k for k in a if k != "bbox" or len(a[k]) == 4} for a in annotations]
    except Exception as error:  # of pycocotools and detectron2, by whatever the json has
        raise UserError(
            f"--dataset {name}: {json_file!r} is no json of COCO instances, with images, "
            f"annotations and categories ({type(error).__name__}: {one_line(error)}); correct it"
        ) from error
    for record in records[:LOOKED_FOR]:
        if not os.path.isfile(record["file_name"]):
            raise UserError(
                f"--dataset {name}: image {record['file_name']!r} of {json_file!r} does not exist; "
                "give the folder to which its names of files are relative"
            )
    return set.intersection(*keys)


def check_dataset(name: str, setting: str, needed: Mapping[str, str]) -> list[str] | None:
    """Return the classes of a dataset if it comes from ``--dataset``.

    UserError if the dataset, which ``setting`` names, is not registered, or its annotations lack a
    key; ``needed`` is key -> what needs it, in words.
    """
    if name not in DatasetCatalog:
        raise UserError(
            f"dataset {name!r} of {setting} is not registered; give --dataset {name} JSON IMAGES, "
            "or --import FILE with a file that registers it"
        )
    if name not in KEYS:
        return None
    for key, what in needed.items():
        if key not in KEYS[name]:
            raise UserError(
                f"dataset {name!r} has annotations without {key!r}, which {what}; add it to its "
                "json"
            )
    return MetadataCatalog.get(name).thing_classes
