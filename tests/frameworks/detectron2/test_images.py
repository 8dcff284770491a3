"""Test images of detectron2's configs, and what models see in them."""

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from helpers.trainings import SHAPES
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.detectron2.images import content


@pytest.mark.usefixtures("datasets")
def test_test_images_come_with_their_objects():
    images = [*open_config(str(SHAPES)).test_images(2)]
    assert [photo.shape for photo, _ in images] == [(64, 64, 3)] * 2
    for _, found in images:
        assert len(found.boxes) == len(found.labels) == len(found.masks) > 0
        for (left, top, right, bottom), mask in zip(found.boxes, found.masks, strict=True):
            rows, columns = mask.nonzero()
            assert (columns.min(), rows.min()) == pytest.approx((left, top), abs=1.5)
            assert (columns.max() + 1, rows.max() + 1) == pytest.approx((right, bottom), abs=1.5)


def test_classes_of_pixels_come_from_a_file(tmp_path, request):
    Image.new("RGB", (6, 4)).save(tmp_path / "photo.png")
    Image.new("L", (6, 4), 3).save(tmp_path / "classes.png")
    entry = {"file_name": "photo.png", "sem_seg_file_name": "classes.png"}
    entry = {key: str(tmp_path / name) for key, name in entry.items()}
    DatasetCatalog.register("pixels", lambda: [entry])
    request.addfinalizer(lambda: [c.pop("pixels", None) for c in (DatasetCatalog, MetadataCatalog)])
    ((_, found),) = open_config(str(SHAPES), ["DATASETS.TEST", "('pixels',)"]).test_images(6)
    assert (found.classes == 3).all()
    assert found.classes.shape == (4, 6)


def test_an_output_with_objects():
    objects = Instances((4, 6), pred_boxes=Boxes(torch.tensor([[1.0, 2, 3, 4]])))
    objects.scores, objects.pred_classes = torch.tensor([0.5]), torch.tensor([2])
    found = content({"instances": objects})
    assert (found.boxes.tolist(), found.labels.tolist()) == ([[1, 2, 3, 4]], [2])
    assert (found.scores.tolist(), found.masks) == ([0.5], None)


def test_an_output_with_classes_of_pixels():
    scores = torch.zeros(3, 4, 6)
    scores[1] = 1
    assert (content({"sem_seg": scores}).classes == 1).all()


def test_proposals_have_no_content():
    assert content({"proposals": Instances((4, 6))}) is None
