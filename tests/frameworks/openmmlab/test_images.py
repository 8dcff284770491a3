"""What models of OpenMMLab see in test images; tests of compare have the images."""

import numpy as np
import pytest

pytest.importorskip("mmengine", reason="needs OpenMMLab: make install-openmmlab")

import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from ilm_plugins.frameworks.openmmlab.images import content


def test_an_output_with_objects():
    objects = InstanceData(bboxes=torch.tensor([[1.0, 2, 3, 4]]), labels=torch.tensor([2]))
    objects.scores = torch.tensor([0.5])
    found = content(BaseDataElement(pred_instances=objects))
    assert (found.boxes.tolist(), found.labels.tolist()) == ([[1, 2, 3, 4]], [2])
    assert (found.scores.tolist(), found.masks) == ([0.5], None)


def test_boxes_and_masks_of_an_annotation_become_arrays():
    boxes = pytest.importorskip("mmdet.structures.bbox", reason="needs mmdet")
    masks = pytest.importorskip("mmdet.structures.mask", reason="needs mmdet")
    objects = InstanceData(
        bboxes=boxes.HorizontalBoxes(torch.tensor([[1.0, 2, 3, 4]])),
        labels=torch.tensor([2]),
        masks=masks.BitmapMasks(np.ones((1, 4, 6), np.uint8), 4, 6),
    )
    found = content(BaseDataElement(gt_instances=objects), "gt")
    assert found.boxes.tolist() == [[1, 2, 3, 4]]
    assert found.masks.shape == (1, 4, 6)


def test_an_output_with_classes_of_pixels():
    found = content(BaseDataElement(pred_sem_seg=PixelData(data=torch.full((1, 4, 6), 3))))
    assert (found.classes == np.full((4, 6), 3)).all()


def test_classes_of_images_have_no_content():
    assert content(BaseDataElement(pred_label=torch.tensor([1]))) is None
