"""Rows of the papers as comparisons: their configs, plans and results."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.config import Config

from ilm_plugins.errors import UserError
from reproduction.__main__ import main
from reproduction.papers import published
from reproduction.papers.options import Options
from reproduction.papers.paper_runs import comparisons, differences, open_row
from reproduction.papers.recipes import as_words, read_from, recipe_of, save, shorten

CIFAR, ADE, COCO = "en-5 ResNet20/EN", "en-6 ADE20K/EN", "ilm-5 GN, batch 2, mmdet"


def opened(cell):
    return open_row(published.find_cell(cell))


def test_an_override_in_words_keeps_the_equals_signs_of_its_value():
    overrides = ["MODEL.FPN.NORM=EN(reduction=8, eps=1e-3)"]
    assert as_words("a.yaml", overrides) == ["MODEL.FPN.NORM", "EN(reduction=8, eps=1e-3)"]
    assert as_words("a.py", overrides) == overrides


def test_a_shortened_training_has_the_same_schedule():
    cells = CIFAR, "study-128 CIFAR-10 batch 128/BN", ADE, COCO, "ilm-6 IN / IN"
    cifar, cosine, ade, coco, pix2pix = map(opened, cells)
    shorten(cosine, 8)
    assert (cosine.config.param_scheduler[1].end, cosine.config.param_scheduler[1].T_max) == (8, 6)
    shorten(cifar, 12)
    assert cifar.config.train_cfg.max_epochs == 12
    assert cifar.config.param_scheduler[1].milestones == [6, 9]
    shorten(ade, 500)
    assert ade.config.param_scheduler.end == 500
    assert ade.config.train_cfg.val_interval == 500
    shorten(coco, 900)
    warm_up, steps = coco.config.param_scheduler
    assert (warm_up.end, steps.milestones, steps.end) == (500, [600, 800], 900)
    shorten(pix2pix, 20)  # from the middle on to 0, which follows the last epoch
    assert (pix2pix.config.param_scheduler.begin, pix2pix.config.param_scheduler.end) == (10, 21)


@pytest.mark.parametrize(
    "cell, training, test",
    [
        (CIFAR, 50000, 10000),
        ("ilm-6 IN / IN", 200, 200),
        ("en-3 ResNet50/EN", None, 50000),
        ("ilm-5 test-dev, GN, batch 2, mmdet", 117266, 20288),
    ],
)
def test_a_recipe_says_how_many_images_it_has(cell, training, test):
    recipe = recipe_of(opened(cell), published.images())
    assert (recipe.images, recipe.test_images) == (training, test)


def test_images_come_from_the_users_folder_in_their_own_colours(root, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "0.png").touch()
    (tmp_path / "test" / "cat" / "1.jpg").touch()
    cifar, webvision, coco = map(opened, (CIFAR, "en-3 ResNet50/EN", COCO))
    assert [read_from(row, tmp_path) for row in (cifar, webvision, coco)] == [True, False, False]
    cfg = Config.fromfile(save(cifar, tmp_path / "seed0"))
    files = Config.fromfile(
        root / "reproduction/configs/mmpretrain/_base_/datasets/cifar10_images.py"
    )
    configs = cfg, files, opened(CIFAR).config
    # mmcv reads files as BGR, the archive has RGB.
    assert files.data_preprocessor == cfg.data_preprocessor
    assert cfg.data_preprocessor.to_rgb
    assert not configs[2].data_preprocessor.get("to_rgb")
    for loader, split in (("train", "train"), ("val", "test"), ("test", "test")):
        data, ours, archive = (c[f"{loader}_dataloader"].dataset for c in configs)
        assert data.type == ours.type == "CustomDataset"
        assert "split" not in data
        assert data.data_prefix == ours.data_prefix == split
        assert data.data_root == str(tmp_path)
        kinds, *others = ([t["type"] for t in of.pipeline] for of in (archive, data, ours))
        assert others == [["LoadImageFromFile", *kinds]] * 2
    assert webvision.config.train_dataloader.dataset.dataset.data_root == str(tmp_path)
    file = str(tmp_path / "annotations" / "instances_val2017.json")
    assert coco.config.val_evaluator.ann_file == file
    with pytest.raises(UserError, match="nowhere"):
        read_from(opened(CIFAR), Path("nowhere"))


@pytest.fixture
def planned(tmp_path):
    """Return the comparisons of rows, by the options of ``run``."""

    def plan(table, row=None, **options):
        options = Options(num_gpus=0, work_dir=tmp_path, **options)
        return [*comparisons(published.find(table, row), options)]

    return plan


def test_rows_that_differ_in_their_norm_are_one_comparison(planned):
    (study,) = planned("study-box", seeds=(0, 1))
    assert study.plan.norms == ("as-is", "ILMGN", "AN")
    assert study.plan.source.at == ("MODEL.ROI_BOX_HEAD.NORM",)
    assert [cell.name.partition("/")[2] for cell in study.cells.values()] == ["GN", "ILMGN", "AN"]


def test_a_run_has_the_length_and_the_overrides_of_the_command(planned):
    (one,) = planned("en-5", "ResNet20/EN", epochs=12, overrides=("x.y=1",))
    assert Config.fromfile(one.plan.source.config).train_cfg.max_epochs == 12
    assert one.overrides == ["x.y=1"]


def test_a_run_that_was_begun_keeps_its_length(planned):
    planned("en-5", "ResNet20/EN", epochs=12)
    planned("en-5", "ResNet20/EN", epochs=12)
    with pytest.raises(UserError, match="begun with other settings"):
        planned("en-5", "ResNet20/EN", epochs=13)


def test_a_length_in_the_other_unit_is_refused(planned):
    with pytest.raises(UserError, match="counts iterations; give --iterations N"):
        planned("study-seg", epochs=2)


def test_rows_of_other_rows_checkpoints_say_what_to_give(planned, tmp_path, capsys):
    words = "--num-gpus", "0", "--work-dir", str(tmp_path)
    assert main(["run", "en-6", "ADE20K/EN", *words]) == 2
    key = "model.backbone.init_cfg.checkpoint"
    assert f"starts from the checkpoint of en-6 backbone/EN; give {key}=" in capsys.readouterr().err
    assert main(["run", "en-4", "ImageNet -> WebVision/EN", *words]) == 2
    assert "only tests the model of en-2 ResNet50/EN; run that row" in capsys.readouterr().err
    (one,) = planned("en-6", "ADE20K/EN", overrides=(f"{key}=mine.pth",))
    assert one.overrides == [f"{key}=mine.pth"]


RECORD = {"planned": 165, "unit": "epochs", "images": 50000, "test images": 10000, "batch": 128}


@pytest.mark.parametrize(
    "changed, overrides, label",
    [
        ({}, (), "full recipe"),
        ({"planned": 9}, (), "shortened: 9 of 165 epochs"),
        ({"planned": 200}, (), "lengthened: 200 of 165 epochs"),
        ({"batch": 64}, (), "batches of 64, not 128"),
        ({"images": 384}, (), "384 of 50000 images"),
        ({"test images": 112}, (), "tested on 112 of 10000 images"),
        ({}, ("a.b=1",), "changed: a.b=1"),
    ],
)
def test_whatever_differs_from_the_recipe_is_in_the_label(changed, overrides, label):
    recipe = recipe_of(opened(CIFAR), published.images())
    assert differences(RECORD | changed, recipe, overrides) == label
    jpeg = replace(recipe, jpeg=True)
    assert differences(RECORD, jpeg, ()) == "images re-encoded as JPEG"


@pytest.mark.wide
def test_a_row_is_trained_and_shown_beside_the_papers_figure(tmp_path, capsys):
    for split in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(4):
                color = (60 * i + 30 * number, 40, 200)
                path = tmp_path / "images" / split / name / f"{number}.png"
                Image.new("RGB", (32, 32), color).save(path)
    words = "run", "en-5", "ResNet20/EN", "--epochs", "1", "--num-gpus", "0"
    folders = "--data", str(tmp_path / "images"), "--work-dir", str(tmp_path / "runs")
    small = "train_dataloader.batch_size=4", "train_dataloader.drop_last=False"
    assert main([*words, *folders, "--opts", *small]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("en-5 ResNet20/EN: top-1 ")
    assert "(paper 92.41); shortened: 1 of 165 epochs, 8 of 50000 images" in last
    assert [*(tmp_path / "runs").rglob("compare.html")]
