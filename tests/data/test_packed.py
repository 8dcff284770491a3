"""Archives of packed images, and mmpretrain's view of them."""

import io

import pytest

pytest.importorskip("numpy", reason="needs numpy, of the extra ilm_plugins[data]")

import numpy as np
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
    with pytest.raises(UserError, match=r"val\.npz: no such file; expected an \.npz with"):
        read_packed(tmp_path / "val.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([1, 0, 2])}, "expected labels below 2.*got 0 to 2"),
        ({"labels": np.array([1, 0])}, "expected 3 rising offsets .* for 2 labels, got 4"),
        ({"labels": np.array([1.0, 0.0, 1.0])}, "expected integers"),
        ({"jpeg": np.zeros(9, np.float32)}, "jpeg in uint8"),
        ({"offsets": np.array([0, 9, 5, 20])}, "expected 4 rising offsets"),
        ({"jpeg": np.zeros(3, np.uint8), "offsets": np.arange(4)}, "image 0 of 3 is no image file"),
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


def test_a_config_with_packed_images_in_cifar10s_place(root):
    pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
    from mmengine.registry import DATASETS, init_default_scope

    from mmengine_configs import load

    np.savez(root / "test.npz", **arrays())
    packed = load("mmpretrain", "_base_/datasets/cifar10_packed.py")
    overridden = load("mmpretrain", "ilm/resnet101_cifar10_ilmgn.py")
    for split in ("train", "val", "test"):
        dataset = f"{split}_dataloader.dataset"
        packed.merge_from_dict({f"{dataset}.data_root": str(root)})
        changes = {"type": "PackedImages", "data_root": str(root)}
        overridden.merge_from_dict({f"{dataset}.{key}": value for key, value in changes.items()})
        options, same = (cfg[f"{split}_dataloader"].dataset for cfg in (packed, overridden))
        assert options == same
        init_default_scope("mmpretrain")
        data = DATASETS.build(options)
        assert data.split == ("train" if split == "train" else "test")
        assert data[0]["inputs"].shape == (3, 32, 32)
