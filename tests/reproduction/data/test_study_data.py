"""The study's data: what it writes from clones of the data's repositories."""

import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image

BOX = "<xmin>1</xmin><ymin>3</ymin><xmax>4</xmax><ymax>5</ymax>"
VOC = f"""<annotation><size><width>8</width><height>6</height></size>
<object><name>Platelets</name><bndbox>{BOX}</bndbox></object></annotation>"""


def written(root, tmp_path, name):
    """The folder that the tool writes from the clone of a data set's repository."""
    command = [sys.executable, root / "reproduction" / "study_data.py", name, tmp_path / name]
    subprocess.run([*command, "--source", tmp_path / "clone"], check=True)
    return tmp_path / name


def test_boxes_of_bccd_become_cocos(root, tmp_path):
    bccd = tmp_path / "clone" / "BCCD"
    for folder in (bccd / "Annotations", bccd / "JPEGImages", bccd / "ImageSets" / "Main"):
        folder.mkdir(parents=True)
    (bccd / "Annotations" / "a.xml").write_text(VOC)
    for listed, names in (("trainval", "a\n"), ("test", "")):
        (bccd / "ImageSets" / "Main" / f"{listed}.txt").write_text(names)
    found = json.loads((written(root, tmp_path, "bccd") / "annotations/train.json").read_text())
    assert found["images"] == [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}]
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 2, 4, 3], "area": 12, "iscrowd": 0}
    assert found["annotations"] == [box]
    assert [category["id"] for category in found["categories"]] == [1, 2, 3]
    assert found["categories"][2]["name"] == "Platelets"


def test_camvid_is_written_at_half_its_size(root, tmp_path):
    """Class 11 has no label: 255."""
    camvid = tmp_path / "clone" / "CamVid"
    labels = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((120, 120), np.uint8))
    for folder in ("train", "trainannot"):
        (camvid / folder).mkdir(parents=True)
        Image.fromarray(labels).save(camvid / folder / "b.png")
    folder = written(root, tmp_path, "camvid")
    assert Image.open(folder / "images" / "train" / "b.jpg").size == (240, 180)
    mask = np.asarray(Image.open(folder / "annotations" / "train" / "b.png"))
    assert np.array_equal(mask, np.where(labels == 11, 255, labels)[1::2, 1::2])


def test_without_a_network_one_line_says_what_to_do(root, tmp_path):
    command = [sys.executable, root / "reproduction" / "study_data.py", "bccd", tmp_path / "bccd"]
    env = os.environ | {"GIT_ALLOW_PROTOCOL": "none"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    (line,) = done.stderr.splitlines()
    assert done.returncode
    assert line.startswith("cannot clone https://")
    assert "--source" in line
    assert not (tmp_path / "bccd").exists()


def test_a_source_without_images_is_refused(root, tmp_path):
    command = [
        sys.executable,
        root / "reproduction" / "study_data.py",
        "camvid",
        tmp_path / "camvid",
    ]
    done = subprocess.run([*command, "--source", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert "has no folder CamVid; give a clone of https://" in done.stderr
    assert not (tmp_path / "camvid").exists()
