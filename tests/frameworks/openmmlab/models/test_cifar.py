"""CIFAR ResNet-20 with EN on real images, by the command line."""

import json

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

from ilm_plugins.cli import train_net


@pytest.mark.long
def test_two_epochs_reach_half_of_the_images(root, tmp_path):
    archive = root.parent / "shared" / "data" / "cifar10_jpeg"
    if not archive.exists():
        pytest.skip("no real images at ../shared/data/cifar10_jpeg")
    options = ["train_cfg.max_epochs=2", "randomness.seed=0", f"work_dir={tmp_path}"]
    for loader in ("train_dataloader", "val_dataloader"):
        options += [f"{loader}.dataset.type=PackedImages", f"{loader}.dataset.data_root={archive}"]
        options += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
    config = root / "configs/mmpretrain/en/resnet20_cifar10_en.py"
    assert train_net.main(["--config-file", str(config), "--num-gpus", "0", *options]) == 0
    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert entries[-1]["accuracy/top1"] >= 50
