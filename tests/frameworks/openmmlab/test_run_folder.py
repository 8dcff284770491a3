"""What is asked of MMEngine's configs and of their runs' folders."""

import json
import math
import shutil
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

from ilm_plugins.cli import train_net
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks import curves
from ilm_plugins.frameworks.openmmlab import run_folder
from ilm_plugins.frameworks.openmmlab.checks import load_config
from recipes import ROOT
from reproduction.folders import write_run, write_test

CIFAR = str(ROOT / "configs/mmpretrain/en/resnet20_cifar10_en.py")
FACADES = str(ROOT / "configs/pix2pix/facades_in_in.py")
COCO = str(ROOT / "configs/mmdet/mask-rcnn_r50_fpn_gn_batch2_gn.py")
WEBVISION = str(ROOT / "configs/mmpretrain/en/resnet50_webvision_en.py")
ADE = str(ROOT / "configs/mmseg/fcn_r50-d8_ade20k_en.py")


def overridden(config, overrides):
    argv = ["--config-file", config, "--num-gpus", "0", *overrides]
    return load_config(train_net.parser().parse_args(argv))


def test_a_shortened_run_decays_at_the_same_shares_and_warms_up_as_before():
    cfg = overridden(CIFAR, run_folder.length_overrides(CIFAR, 12))
    warm_up, decay = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == 12 and decay.milestones == [6, 9]
    assert (warm_up.type, warm_up.begin, warm_up.end) == ("LinearLR", 0, 1)
    warm_up, *_ = overridden(COCO, run_folder.length_overrides(COCO, 900)).param_scheduler
    assert (
        warm_up.type == "LinearLR"
        and warm_up.end == run_folder.load(COCO).param_scheduler[0].end > 1
    )
    cfg = overridden(ADE, run_folder.length_overrides(ADE, 500))
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (500, 500)
    assert cfg.param_scheduler.end == 500
    assert overridden(FACADES, run_folder.length_overrides(FACADES, 20)).train_cfg.max_epochs == 20


def test_data_are_told_apart_by_what_is_in_their_folder(tmp_path):
    cfg = overridden(CIFAR, run_folder.data_overrides(CIFAR, str(tmp_path)))
    assert cfg.train_dataloader.dataset.type == "CIFAR10"
    (tmp_path / "train.npz").touch()
    cfg = overridden(CIFAR, run_folder.data_overrides(CIFAR, str(tmp_path)))
    for loader in run_folder.LOADERS:
        assert cfg[loader].dataset.type == "PackedImages"
        assert cfg[loader].dataset.data_root == str(tmp_path)
        assert cfg[loader].num_workers == 0
    with pytest.raises(UserError, match="nowhere: no such folder"):
        run_folder.data_overrides(CIFAR, "nowhere")


def test_only_batches_of_cifar_are_augmented_as_a_whole():
    cfg = overridden(CIFAR, run_folder.augmentation_overrides(CIFAR))
    assert cfg.train_dataloader.dataset.pipeline == []
    assert cfg.data_preprocessor.type == "CropFlipPreprocessor"
    assert cfg.val_dataloader.dataset.pipeline == [{"type": "PackInputs"}]
    for config in (WEBVISION, COCO, FACADES):
        with pytest.raises(UserError, match=r"unlike .*; leave it out"):
            run_folder.augmentation_overrides(config)


def test_data_sets_within_others_and_their_annotations_are_found_there(tmp_path):
    cfg = overridden(WEBVISION, run_folder.data_overrides(WEBVISION, str(tmp_path)))
    assert cfg.train_dataloader.dataset.dataset.data_root == str(tmp_path)
    assert cfg.val_dataloader.dataset.data_root == str(tmp_path)
    cfg = overridden(COCO, run_folder.data_overrides(COCO, str(tmp_path)))
    assert cfg.test_evaluator.ann_file == str(tmp_path / "annotations/instances_val2017.json")


def test_what_a_resumed_run_logged_anew_takes_the_place_of_what_it_had(tmp_path):
    options = {"train_cfg.max_epochs": 4}
    write_run(tmp_path, CIFAR, epochs=3, step=1.0, options=options)
    write_run(tmp_path, CIFAR, epochs=4, start=2, options=options, name="20260101_000001")
    found = run_folder.summary(CIFAR, tmp_path, 4)
    assert [row["epochs"] for row in found.curve] == [1, 2, 3, 4]
    assert [row["accuracy/top1"] for row in found.curve] == [1.0, 2.0, 30.0, 40.0]
    assert found.curve[1]["loss"] == pytest.approx(4 / 2 + 1.5)
    assert found.seconds == pytest.approx(0.5 * 8)
    assert found.run == 4


def lengths(found):
    return (found.images, found.recipe_images), (found.test_images, found.recipe_test_images)


def test_the_lengths_of_data_are_told_by_the_batches_of_an_epoch(tmp_path):
    """Batches are of 128 images, in a test of 16."""
    folder, metrics = tmp_path / "whole", {"accuracy/top1": 90.0}
    write_run(folder, CIFAR, 165, batches=(391, 625))
    write_test(folder, metrics, batches=625)
    assert lengths(run_folder.summary(CIFAR, folder, 165)) == ((50000, 50000), (10000, 10000))
    folder = write_run(tmp_path / "part", CIFAR, 165, batches=(3, 7))
    write_test(folder, metrics, batches=7)
    assert lengths(run_folder.summary(CIFAR, folder, 165)) == ((384, 50000), (112, 10000))
    options = {"train_dataloader.batch_size": 64}
    folder = tmp_path / "two"
    write_run(folder, CIFAR, 165, options=options, processes=2, batches=(391, 625))
    assert lengths(run_folder.summary(CIFAR, folder, 165))[0] == (50000, 50000)
    folder = write_run(tmp_path / "unknown", CIFAR, 165)
    assert lengths(run_folder.summary(CIFAR, folder, 165)) == ((None, 50000), (None, 10000))
    # A folder of a hundred pairs, of which the recipe takes the first two hundred.
    folder = write_run(tmp_path / "facades", FACADES, 2, batches=(100, 200))
    assert lengths(run_folder.summary(FACADES, folder, 200))[0] == (100, 200)


def test_the_lengths_of_data_are_told_by_their_files_where_iterations_are_counted(tmp_path):
    annotations = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(7)],
        "annotations": [{"image_id": 1, "id": 1}],
    }
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(annotations))
    options = {"train_dataloader.dataset.data_root": str(tmp_path)}
    found = run_folder.summary(COCO, write_run(tmp_path / "coco", COCO, 2, options=options), 2)
    assert lengths(found)[0] == (7, 118287)
    for name in ("a/1.jpg", "a/1.txt", "b/2.jpg"):
        (tmp_path / "images/training" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images/training" / name).touch()
    found = run_folder.summary(ADE, write_run(tmp_path / "ade", ADE, 2, options=options), 2)
    assert lengths(found) == ((2, 20210), (None, 2000))
    options = {"train_dataloader.dataset.data_root": "nowhere"}
    found = run_folder.summary(ADE, write_run(tmp_path / "gone", ADE, 2, options=options), 2)
    assert lengths(found)[0] == (None, 20210)


def test_what_a_full_disk_cut_short_is_left_out(tmp_path):
    write_run(tmp_path, CIFAR, epochs=3, options={"train_cfg.max_epochs": 4})
    file = tmp_path / "20260101_000000" / "vis_data" / "scalars.json"
    file.write_text(file.read_text() + '{"loss": 1.0, "ep')
    write_run(tmp_path, CIFAR, epochs=4, start=4, options={"train_cfg.max_epochs": 4}, name="2027")
    found = run_folder.summary(CIFAR, tmp_path, 165)
    assert [row["epochs"] for row in found.curve] == [1, 2, 3]


def test_logged_ratios_are_no_part_of_the_curve(tmp_path):
    write_run(tmp_path, CIFAR, epochs=2)
    expected = run_folder.summary(CIFAR, tmp_path, 2).curve
    with (tmp_path / "20260101_000000" / "vis_data" / "scalars.json").open("a") as file:
        file.write('{"ratios/bn1/IN": 0.3, "step": 100}\n')
    assert run_folder.summary(CIFAR, tmp_path, 2).curve == expected


def test_a_test_counts_until_training_goes_on(tmp_path):
    write_run(tmp_path, CIFAR, epochs=2)
    assert run_folder.summary(CIFAR, tmp_path, 2).metrics == {}
    write_test(tmp_path, {"accuracy/top1": 21.0})
    assert run_folder.summary(CIFAR, tmp_path, 2).metrics == {(): {"accuracy/top1": 21.0}}
    assert run_folder.tests_made(tmp_path) == {()}
    write_run(tmp_path, CIFAR, epochs=4, start=2, name="20260103_000000")
    found = run_folder.summary(CIFAR, tmp_path, 5)
    assert found.metrics == {} and found.run == 4
    assert run_folder.tests_made(tmp_path) == set()


def test_the_last_test_of_a_kind_counts_alone(tmp_path):
    write_run(tmp_path, CIFAR, epochs=2)
    write_test(tmp_path, {"accuracy/top1": 99.0})
    write_test(tmp_path, {"accuracy/top1": 90.0}, name="20260103_000000")
    assert run_folder.summary(CIFAR, tmp_path, 2).metrics == {(): {"accuracy/top1": 90.0}}


def test_a_copy_of_a_folder_has_checkpoints_of_its_own(tmp_path):
    """MMEngine's last_checkpoint has the whole path."""
    write_run(tmp_path / "a", CIFAR, epochs=2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert run_folder.progress(tmp_path / "b") == (2, str(tmp_path / "b" / "epoch_2.pth"))


def test_the_multi_scale_test_is_told_by_its_model(tmp_path):
    write_run(tmp_path, ADE, epochs=2)
    write_test(tmp_path, {"mIoU": 38.2})
    wrapped = {"model": {"_delete_": True, "type": "SegTTAModel", "module": {}}}
    write_test(tmp_path, {"mIoU": 38.9}, options=wrapped, name="20260103_000000")
    found = run_folder.summary(ADE, tmp_path, 2).metrics
    assert found == {(): {"mIoU": 38.2}, ("--tta",): {"mIoU": 38.9}}


def test_predictions_for_a_server_are_written_to_the_given_folder():
    def paths(name):
        config = str(ROOT / "configs" / name)
        words = run_folder.prediction_overrides(config, Path("a b"))
        return overridden(config, []).test_evaluator, overridden(config, words).test_evaluator

    (old,), (new,) = paths("mmseg/fcn_r50-d8_cityscapes-test_en.py")
    assert old != new == {**old, "output_dir": "a b"}
    old, new = paths("mmdet/mask-rcnn_r50_fpn_gn_batch2_test-dev_gn.py")
    assert old != new == {**old, "outfile_prefix": "a b/results"}
    assert run_folder.prediction_overrides(ADE, Path("a b")) == []
    assert run_folder.HARMLESS.fullmatch("test_evaluator.0.output_dir")


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(UserError, match="no run of the command train"):
        run_folder.summary(CIFAR, tmp_path, 165)


def test_curves_leave_out_what_is_infinite_or_nan():
    values = [(1, "loss", 2.0), (1, "loss", math.nan), (2, "loss", math.inf), (2, "lr", 0.1)]
    assert curves.means("epochs", values) == [{"epochs": 1, "loss": 2.0}, {"epochs": 2, "lr": 0.1}]
