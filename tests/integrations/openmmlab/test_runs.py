"""What is asked of MMEngine's configs and of their runs' folders."""

import json

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

from ilm_plugins.errors import UserError
from ilm_plugins.integrations import training
from ilm_plugins.integrations.openmmlab import runs
from ilm_plugins.integrations.openmmlab.train import load_config
from recipes import ROOT
from reproduction.folders import write_run, write_test

CIFAR = str(ROOT / "configs/mmpretrain/en/resnet20_cifar10_en.py")
FACADES = str(ROOT / "configs/pix2pix/facades_in_in.py")
COCO = str(ROOT / "configs/mmdet/mask-rcnn_r50_fpn_gn_batch2_gn.py")
WEBVISION = str(ROOT / "configs/mmpretrain/en/resnet50_webvision_en.py")
ADE = str(ROOT / "configs/mmseg/fcn_r50-d8_ade20k_en.py")


def overridden(config, overrides):
    argv = ["--config-file", config, "--num-gpus", "0", *overrides]
    return load_config(training.parser().parse_args(argv))


def test_a_shortened_run_decays_at_the_same_shares_and_warms_up_as_before():
    cfg = overridden(CIFAR, runs.shortened(CIFAR, 12))
    warm_up, decay = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == 12 and decay.milestones == [6, 9]
    assert (warm_up.type, warm_up.begin, warm_up.end) == ("LinearLR", 0, 1)
    warm_up, *_ = overridden(COCO, runs.shortened(COCO, 900)).param_scheduler
    assert warm_up.type == "LinearLR" and warm_up.end == runs.load(COCO).param_scheduler[0].end > 1
    cfg = overridden(ADE, runs.shortened(ADE, 500))
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (500, 500)
    assert cfg.param_scheduler.end == 500
    assert overridden(FACADES, runs.shortened(FACADES, 20)).train_cfg.max_epochs == 20


def test_data_are_told_apart_by_what_is_in_their_folder(tmp_path):
    cfg = overridden(CIFAR, runs.on_data(CIFAR, str(tmp_path)))
    assert cfg.train_dataloader.dataset.type == "CIFAR10"
    (tmp_path / "train.npz").touch()
    cfg = overridden(CIFAR, runs.on_data(CIFAR, str(tmp_path)))
    for loader in runs.LOADERS:
        assert cfg[loader].dataset.type == "PackedImages"
        assert cfg[loader].dataset.data_root == str(tmp_path)
        assert cfg[loader].num_workers == 0
    with pytest.raises(UserError, match="nowhere: no such folder"):
        runs.on_data(CIFAR, "nowhere")


def test_data_sets_within_others_and_their_annotations_are_found_there(tmp_path):
    cfg = overridden(WEBVISION, runs.on_data(WEBVISION, str(tmp_path)))
    assert cfg.train_dataloader.dataset.dataset.data_root == str(tmp_path)
    assert cfg.val_dataloader.dataset.data_root == str(tmp_path)
    cfg = overridden(COCO, runs.on_data(COCO, str(tmp_path)))
    assert cfg.test_evaluator.ann_file == str(tmp_path / "annotations/instances_val2017.json")


def test_differences_name_settings_as_overrides_do():
    ours = {"a": 1, "b": {"c": [1, 2], "d": [{"e": 1}, {"e": 2}]}, "f": [{"g": 1}], "h": 3}
    theirs = {"a": 1, "b": {"c": (1, 2), "d": [{"e": 1}, {"e": 3}]}, "f": [{"g": 1}, {"g": 2}]}
    expected = {"b.d.1.e": 3, "f": [{"g": 1}, {"g": 2}], "h": None}
    assert dict(runs.differences(ours, theirs)) == expected
    assert runs.spelling("a.b", "data/x") == "a.b=data/x"
    assert runs.spelling("a.b", "10") == "a.b='10'"
    assert runs.spelling("a.b", [1, 2]) == "a.b=[1, 2]"


def test_overrides_that_are_told_make_the_same_run(tmp_path):
    options = {"train_cfg.max_epochs": 2, "train_dataloader.batch_size": 64, "work_dir": "out/x"}
    found = runs.read(CIFAR, write_run(tmp_path, CIFAR, epochs=2, options=options))
    cfg = overridden(CIFAR, found.overrides)
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (2, 64)
    assert cfg.work_dir == "out/x"
    assert found.changes == {"train_dataloader.batch_size": 64}


def test_what_a_resumed_run_logged_anew_takes_the_place_of_what_it_had(tmp_path):
    options = {"train_cfg.max_epochs": 4}
    write_run(tmp_path, CIFAR, epochs=3, step=1.0, options=options)
    write_run(tmp_path, CIFAR, epochs=4, start=2, options=options, name="20260101_000001")
    found = runs.read(CIFAR, tmp_path)
    assert [row["epochs"] for row in found.curve] == [1, 2, 3, 4]
    assert [row["accuracy/top1"] for row in found.curve] == [1.0, 2.0, 30.0, 40.0]
    assert found.curve[1]["loss"] == pytest.approx(4 / 2 + 1.5)
    assert found.seconds == pytest.approx(0.5 * 8)
    assert (found.run, found.planned, found.recipe) == (4, 4, 165)


def lengths(found):
    return (found.images, found.recipe_images), (found.test_images, found.recipe_test_images)


def test_the_lengths_of_data_are_told_by_the_batches_of_an_epoch(tmp_path):
    """Batches are of 128 images, in a test of 16."""
    whole = runs.read(CIFAR, write_run(tmp_path / "whole", CIFAR, 165, batches=(391, 625)))
    assert lengths(whole) == ((50000, 50000), (10000, 10000))
    write_run(tmp_path / "part", CIFAR, 165, batches=(3, 7))
    assert lengths(runs.read(CIFAR, tmp_path / "part")) == ((384, 50000), (112, 10000))
    write_test(tmp_path / "part", {"accuracy/top1": 90.0}, batches=625)
    assert lengths(runs.read(CIFAR, tmp_path / "part"))[1] == (10000, 10000)
    options = {"train_dataloader.batch_size": 64}
    write_run(tmp_path / "two", CIFAR, 165, options=options, processes=2, batches=(391, 625))
    assert lengths(runs.read(CIFAR, tmp_path / "two"))[0] == (50000, 50000)
    unknown = runs.read(CIFAR, write_run(tmp_path / "unknown", CIFAR, 165))
    assert lengths(unknown) == ((None, 50000), (None, 10000))
    # A folder of a hundred pairs, of which the recipe takes the first two hundred.
    facades = runs.read(FACADES, write_run(tmp_path / "facades", FACADES, 2, batches=(100, 200)))
    assert lengths(facades)[0] == (100, 200)


def test_the_lengths_of_data_are_told_by_their_files_where_iterations_are_counted(tmp_path):
    annotations = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(7)],
        "annotations": [{"image_id": 1, "id": 1}],
    }
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(annotations))
    options = {"train_dataloader.dataset.data_root": str(tmp_path)}
    found = runs.read(COCO, write_run(tmp_path / "coco", COCO, 2, options=options))
    assert lengths(found)[0] == (7, 118287)
    for name in ("a/1.jpg", "a/1.txt", "b/2.jpg"):
        (tmp_path / "images/training" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images/training" / name).touch()
    found = runs.read(ADE, write_run(tmp_path / "ade", ADE, 2, options=options))
    assert lengths(found) == ((2, 20210), (None, 2000))
    options = {"train_dataloader.dataset.data_root": "nowhere"}
    found = runs.read(ADE, write_run(tmp_path / "gone", ADE, 2, options=options))
    assert lengths(found)[0] == (None, 20210)


def test_what_a_full_disk_cut_short_is_left_out(tmp_path):
    write_run(tmp_path, CIFAR, epochs=3, options={"train_cfg.max_epochs": 4})
    file = tmp_path / "20260101_000000" / "vis_data" / "scalars.json"
    file.write_text(file.read_text() + '{"loss": 1.0, "ep')
    write_run(tmp_path, CIFAR, epochs=4, start=4, options={"train_cfg.max_epochs": 4}, name="2027")
    found = runs.read(CIFAR, tmp_path)
    assert [row["epochs"] for row in found.curve] == [1, 2, 3]


def test_as_many_processes_as_make_the_recipes_batch():
    runs.check_processes(CIFAR, 1, ())
    runs.check_processes(CIFAR, 4, ("train_dataloader.batch_size=32",))
    runs.check_processes(CIFAR, 4, ("auto_scale_lr.enable=True",))
    with pytest.raises(
        UserError, match="batches of 128 images; 4 x 128 are 512; give --num-gpus 1"
    ):
        runs.check_processes(CIFAR, 4, ())


def test_a_test_counts_until_training_goes_on(tmp_path):
    options = {"train_cfg.max_epochs": 2}
    write_run(tmp_path, CIFAR, epochs=2, options=options)
    # Without a test, the validation after the last epoch.
    assert runs.read(CIFAR, tmp_path).metrics == {(): {"accuracy/top1": 20.0, "loss": 3.5}}
    assert runs.read(CIFAR, tmp_path).tested == []
    write_test(tmp_path, {"accuracy/top1": 21.0})
    found = runs.read(CIFAR, tmp_path)
    assert found.metrics == {(): {"accuracy/top1": 21.0}} and found.tested == [()]
    options = {"train_cfg.max_epochs": 5}
    write_run(tmp_path, CIFAR, epochs=4, start=2, options=options, name="20260103_000000")
    found = runs.read(CIFAR, tmp_path)
    assert found.metrics == {} and (found.run, found.planned) == (4, 5)


def test_a_validation_on_some_of_the_images_gives_no_figure(tmp_path):
    for i, other in enumerate(({"indices": 8}, {"split": "train"}, {"ann_file": "mine"})):
        changes = {f"val_dataloader.dataset.{key}": value for key, value in other.items()}
        options = {"train_cfg.max_epochs": 2, **changes}
        found = runs.read(CIFAR, write_run(tmp_path / str(i), CIFAR, epochs=2, options=options))
        assert found.metrics == {} and found.curve[1].keys() == {"epochs", "loss"}


def test_a_test_on_some_of_the_images_is_told(tmp_path):
    write_run(tmp_path, CIFAR, epochs=2)
    assert runs.read(CIFAR, tmp_path).changes == {}
    write_test(tmp_path, {"accuracy/top1": 99.0}, {"test_dataloader.dataset.indices": 8})
    assert runs.read(CIFAR, tmp_path).changes == {"test_dataloader.dataset.indices": 8}


def test_a_schedule_is_scaled_with_a_shortened_run_alone(tmp_path):
    decay = {"param_scheduler.1.milestones": [6, 9]}
    write_run(tmp_path / "short", CIFAR, epochs=2, options={**decay, "train_cfg.max_epochs": 12})
    assert runs.read(CIFAR, tmp_path / "short").changes == {}
    write_run(tmp_path / "full", CIFAR, epochs=2, options=decay)
    assert runs.read(CIFAR, tmp_path / "full").changes == decay
    options = {"param_scheduler.end": 20, "train_cfg.max_iters": 20}
    assert runs.read(ADE, write_run(tmp_path / "ade", ADE, 2, options=options)).changes == {}


def test_the_last_test_of_a_kind_counts_alone(tmp_path):
    write_run(tmp_path, CIFAR, epochs=2)
    write_test(tmp_path, {"accuracy/top1": 99.0}, {"test_dataloader.dataset.indices": 8})
    write_test(tmp_path, {"accuracy/top1": 90.0}, name="20260103_000000")
    found = runs.read(CIFAR, tmp_path)
    assert found.changes == {} and found.metrics == {(): {"accuracy/top1": 90.0}}
    assert runs.tests_made(tmp_path) == {()}
    write_test(tmp_path, {"accuracy/top1": 91.0}, {"model.head.topk": (5,)}, "20260104_000000")
    assert runs.read(CIFAR, tmp_path).changes == {"model.head.topk": (5,)}


def test_the_multi_scale_test_is_told_by_its_model(tmp_path):
    write_run(tmp_path, ADE, epochs=2)
    write_test(tmp_path, {"mIoU": 38.2})
    wrapped = {"model": {"_delete_": True, "type": "SegTTAModel", "module": {}}}
    write_test(tmp_path, {"mIoU": 38.9}, options=wrapped, name="20260103_000000")
    found = runs.read(ADE, tmp_path).metrics
    assert found == {(): {"mIoU": 38.2}, ("--tta",): {"mIoU": 38.9}}


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(UserError, match="no run of tools"):
        runs.read(CIFAR, tmp_path)
