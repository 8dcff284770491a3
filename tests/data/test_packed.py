"""Archives of packed images, and mmpretrain's view of them."""

import io
import itertools

import pytest

pytest.importorskip("numpy", reason="needs numpy, of the extra ilm_plugins[data]")

import numpy as np
import torch
from PIL import Image

from ilm_plugins.data.packed import read_packed
from ilm_plugins.errors import UserError


def jpeg(colour, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (32, 32), colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def arrays():
    files = [jpeg((200, 30, 30)), jpeg((20, 40, 210)), jpeg(128, "L")]
    return {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.array([1, 0, 1], np.uint8),
        "classes": np.array(["blue", "red"]),
    }


@pytest.fixture
def root(tmp_path):
    np.savez(tmp_path / "train.npz", **arrays())
    return tmp_path


def test_images_labels_and_classes(root):
    images, labels, classes = read_packed(root / "train.npz")
    assert (labels, classes) == ([1, 0, 1], ("blue", "red"))
    for image, colour in zip(images, [(200, 30, 30), (20, 40, 210), (128,) * 3], strict=True):
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert np.abs(image.astype(int) - colour).max() <= 3


def test_a_missing_archive(tmp_path):
    with pytest.raises(UserError, match=r"val\.npz: expected an \.npz with .*: .* No such file"):
        read_packed(tmp_path / "val.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([1, 0, 2])}, "label 2 for 2 classes"),
        ({"labels": np.array([1, 0])}, "zip.* is shorter"),
        ({"labels": np.array([1.0, 0.0, 1.0])}, "float64"),
        ({"offsets": np.array([0.0, 9.0, 20.0, 30.0])}, "offsets run from 0.0 to 30.0 of "),
        ({"jpeg": np.zeros(9, np.float32)}, "offsets run from 0 to .* of 9,"),
        ({"offsets": np.array([0, 9, 5, 20])}, "offsets run from 0 to 20 of "),
        (
            {"jpeg": np.zeros(3, np.uint8), "offsets": np.arange(4)},
            "cannot identify image file .*, after 0 images",
        ),
    ],
)
def test_a_malformed_archive(tmp_path, change, message):
    path = tmp_path / "train.npz"
    np.savez(path, **arrays() | change)
    with pytest.raises(UserError, match=message) as error:
        read_packed(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_archive(tmp_path):
    path = tmp_path / "train.npz"
    path.write_bytes(b"no zip file")
    with pytest.raises(UserError, match="jpeg, offsets, labels, classes"):
        read_packed(path)
    np.savez(path, jpeg=np.zeros(1, np.uint8))
    with pytest.raises(UserError, match="offsets is not a file in the archive"):
        read_packed(path)


def test_in_an_mmpretrain_pipeline(root):
    pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import DATASETS

    init_default_scope("mmpretrain")
    pipeline = [
        {"type": "RandomCrop", "crop_size": 32, "padding": 4},
        {"type": "RandomFlip", "prob": 0.5, "direction": "horizontal"},
        {"type": "PackInputs"},
    ]
    options = {"type": "PackedImages", "data_root": str(root), "split": "train"}
    data = DATASETS.build({**options, "pipeline": pipeline})
    assert (len(data), data.metainfo["classes"]) == (3, ("blue", "red"))
    assert data.get_gt_labels().tolist() == [1, 0, 1]
    assert data[0]["inputs"].shape == (3, 32, 32) and data[0]["data_samples"].gt_label.item() == 1
    with pytest.raises(UserError, match=r"test\.npz"):
        DATASETS.build({**options, "split": "test"})


def test_batches_are_cropped_and_flipped_as_images_are(root):
    pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
    from mmengine.registry import FUNCTIONS, init_default_scope
    from mmpretrain.registry import DATASETS, MODELS

    init_default_scope("mmpretrain")
    data = DATASETS.build({"type": "PackedImages", "data_root": str(root), "pipeline": []})
    batch = FUNCTIONS.get("stack_images")([data[index] for index in (0, 1, 2)])
    images = batch["inputs"]
    assert (images.shape, images.dtype) == ((3, 3, 32, 32), torch.uint8)
    assert batch["data_samples"][0].gt_label.tolist() == [1, 0, 1]
    # Each pixel has a value of its own; 0 is that of the border.
    values = 1 + torch.arange(3 * 32 * 32).view(1, 3, 32, 32)
    images = values.repeat(400, 1, 1, 1)
    options = {"type": "CropFlipPreprocessor", "mean": [0.0] * 3, "std": [1.0] * 3}
    crops = MODELS.build(options)({"inputs": images}, training=True)["inputs"].long()
    assert crops.shape == images.shape
    padded = torch.nn.functional.pad(values[0], [4] * 4)
    windows = {}
    for flipped in (False, True):
        for top, left in itertools.product(range(9), range(9)):
            window = padded[:, top : top + 32, left : left + 32]
            key = (window.flip(2) if flipped else window).numpy().tobytes()
            windows[key] = (top, left, flipped)
    drawn = [windows[crop.numpy().tobytes()] for crop in crops]
    for values in zip(*drawn, strict=True):
        counts = np.unique(values, return_counts=True)[1]
        # Each of 9 offsets is drawn 44 times in the mean, and a flip 200 times.
        assert len(counts) in (2, 9) and counts.min() > 0.5 * 400 / len(counts)
    plain = MODELS.build(options)({"inputs": images})["inputs"].long()
    assert plain.equal(images)
    with pytest.raises(RuntimeError):  # a crop larger than the image
        MODELS.build({**options, "crop_size": 64})({"inputs": images}, training=True)


def test_packed_images_in_cifar10s_place(root):
    pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
    from mmengine.registry import DATASETS, init_default_scope

    from mmengine_configs import load

    np.savez(root / "test.npz", **arrays())
    cfg = load("mmpretrain", "ilm/resnet101_cifar10_ilmgn.py")
    for split in ("train", "val", "test"):
        dataset = f"{split}_dataloader.dataset"
        changes = {"type": "PackedImages", "data_root": str(root)}
        cfg.merge_from_dict({f"{dataset}.{key}": value for key, value in changes.items()})
        init_default_scope("mmpretrain")
        data = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
        assert data.split == ("train" if split == "train" else "test")
        assert data[0]["inputs"].shape == (3, 32, 32)
