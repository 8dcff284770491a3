"""Runs of rows: the configs that the command train is given, and what becomes of its records."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from ilm_plugins.__main__ import main
from ilm_plugins.experiments.papers import paper_record, published
from ilm_plugins.experiments.papers import paper_runs as running
from ilm_plugins.frameworks.variants import as_words

CIFAR, ADE, COCO = "en-5 ResNet20/EN", "en-6 ADE20K/EN", "ilm-5 GN, batch 2, mmdet"


def opened(cell):
    return running.open_row(published.find_cell(cell))


def run(work_dir, *words):
    options = "--num-gpus", "0", "--work-dir", str(work_dir)
    return main(["reproduce", "run", *words[:2], *options, *words[2:]])


def test_a_shortened_training_has_the_same_schedule():
    cells = CIFAR, "study-128 CIFAR-10 batch 128/BN", ADE, COCO, "ilm-6 IN / IN"
    cifar, cosine, ade, coco, pix2pix = map(opened, cells)
    cosine.shorten(8)
    assert (cosine.config.param_scheduler[1].end, cosine.config.param_scheduler[1].T_max) == (8, 6)
    cifar.shorten(12)
    assert cifar.config.train_cfg.max_epochs == 12
    assert cifar.config.param_scheduler[1].milestones == [6, 9]
    ade.shorten(500)
    assert ade.config.param_scheduler.end == 500
    assert ade.config.train_cfg.val_interval == 500
    coco.shorten(900)
    warm_up, steps = coco.config.param_scheduler
    assert (warm_up.end, steps.milestones, steps.end) == (500, [600, 800], 900)
    pix2pix.shorten(20)  # from the middle on to 0, which follows the last epoch
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
    recipe = opened(cell).recipe(published.images())
    assert (recipe.images, recipe.test_images) == (training, test)


def test_images_come_from_the_users_folder_in_their_own_colours(root, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "0.png").touch()
    (tmp_path / "test" / "cat" / "1.jpg").touch()
    cifar, webvision, coco = map(opened, (CIFAR, "en-3 ResNet50/EN", COCO))
    assert [row.read_from(tmp_path) for row in (cifar, webvision, coco)] == [True, False, False]
    cfg = Config.fromfile(cifar.save(tmp_path / "seed0"))
    files = Config.fromfile(root / "configs/mmpretrain/_base_/datasets/cifar10_images.py")
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
    with pytest.raises(running.UserError, match="nowhere"):
        opened(CIFAR).read_from(Path("nowhere"))


def test_a_seed_is_set_in_a_config_without_one(tmp_path):
    row = opened("en-6 ADE20K/SyncBN")
    row.config.pop("randomness", None)
    row.change(seed=3)
    assert Config.fromfile(row.save(tmp_path / "seed3")).randomness == {"seed": 3}


def test_detectron2_has_its_own_arguments(tmp_path):
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    row, overrides = opened("ilm-5 GN, batch 2"), ["SOLVER.BASE_LR=0.1", "OUTPUT_DIR=x"]
    words = as_words(row.opened.path, overrides)
    assert words == ["SOLVER.BASE_LR", "0.1", "OUTPUT_DIR", "x"]
    assert running.parsed(overrides) == {"SOLVER.BASE_LR": 0.1, "OUTPUT_DIR": "x"}
    recipe = row.recipe(published.images())
    assert (recipe.length, recipe.unit, recipe.batch) == (90000, "iterations", 2)
    row.change(folder=str(tmp_path / "seed3"), seed=3)
    row.shorten(900)
    text = row.save(tmp_path / "seed3").read_text()
    assert "MAX_ITER: 900\n" in text
    assert "SEED: 3\n" in text
    assert f"OUTPUT_DIR: {tmp_path}" in text
    assert row.config.SOLVER.STEPS == (600, 800)
    tuned = opened("study-tune BCCD fine-tuned/ILMGN")
    tuned.start_from("model_final.pth")
    assert tuned.config.MODEL.WEIGHTS == "model_final.pth"
    assert tuned.recipe(published.images()).images == 292


@pytest.fixture
def trainings(monkeypatch):
    """Calls of a stand-in for the command train, which ends ``missing`` epochs early."""
    calls = type("Calls", (list,), {"missing": 0})()

    def call(command, env, check):
        (*_, option, config, gpus, number), words = command[:8], command[8:]
        assert (option, gpus, number) == ("--config-file", "--num-gpus", "0")
        assert check
        cfg, calls.data = Config.fromfile(config), env.get("DETECTRON2_DATASETS")
        calls.append((cfg, words))
        folder = Path(cfg.work_dir)
        found = {"batch": 128, "images": 50000, "unit": "epochs", "planned": 0, "run": 0}
        found = running.read(folder) or {**found, "metrics": {}}
        if "--eval-only" in words:
            metrics = {"accuracy/top1": 90.0, "mIoU": 40.0}
            found["metrics"]["tta" if "--tta" in words else ""] = metrics
        else:
            length = cfg.train_cfg.get("max_epochs") or cfg.train_cfg.max_iters
            found |= {"planned": length, "run": length - calls.missing}
        running.write(folder / "record.json", found)
        (folder / "last_checkpoint").write_text("/elsewhere/epoch_9.pth")
        if calls.missing:
            raise subprocess.CalledProcessError(1, "train")

    monkeypatch.setattr(running, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": call}))
    return calls


SHORT = "en-5", "ResNet20/EN", "--epochs", "12", "--seeds", "3", "x.y=1"


def test_a_row_is_trained_by_its_settings(trainings, tmp_path):
    assert run(tmp_path, *SHORT) == 0
    cfg, arguments = trainings[0]
    assert arguments == ["--resume", "x.y=1"]
    assert (cfg.randomness.seed, cfg.train_cfg.max_epochs) == (3, 12)
    assert cfg.work_dir == str(tmp_path / "en-5" / "ResNet20-EN" / "seed3")


def test_a_row_is_tested_after_its_training(trainings, tmp_path):
    assert run(tmp_path, *SHORT) == 0
    (_, (_, arguments)) = trainings
    assert arguments[:2] == ["--eval-only", "--resume"]


def test_a_complete_row_is_not_run_again(trainings, tmp_path, capsys):
    for _ in range(2):
        assert run(tmp_path, *SHORT) == 0
        assert "top-1 90 (shortened: 12 of 165 epochs, changed: x.y=1)" in capsys.readouterr().out
    assert len(trainings) == 2  # a training and a test


@pytest.mark.parametrize(
    "changed", [[*SHORT[:-1], "x.y=2"], [*SHORT[:2], *SHORT[4:]]], ids=["override", "length"]
)
def test_a_row_that_was_begun_keeps_its_settings(trainings, tmp_path, capsys, changed):
    assert run(tmp_path, *SHORT) == 0
    assert run(tmp_path, *changed) == 2
    assert "begun with other settings: {'x.y': 1}, 12 epochs" in capsys.readouterr().err


def test_a_failed_run_does_not_end_the_others(trainings, tmp_path):
    trainings.missing = 5
    assert run(tmp_path, "ilm-1", "GN", "--seeds", "0", "1") == 1
    assert len(trainings) == 2


def test_a_failed_run_has_a_record(trainings, tmp_path):
    trainings.missing = 5
    assert run(tmp_path, "ilm-1", "GN") == 1
    found = paper_record.read(tmp_path / "ilm-1" / "GN" / "seed0" / "record.json")
    assert paper_record.label(found).startswith("unfinished: 345 of 350 epochs")


def test_a_failed_run_goes_on(trainings, tmp_path, capsys):
    trainings.missing = 5
    assert run(tmp_path, "ilm-1", "GN") == 1
    trainings.missing = 0
    assert run(tmp_path, "ilm-1", "GN") == 0
    assert "error 10 (batches of 128, not 64)" in capsys.readouterr().out


def test_an_unfinished_checkpoint_is_not_tested_by_another_row(trainings, tmp_path):
    trainings.missing = 5
    assert run(tmp_path, "en-2", "ResNet50/EN") == 1
    assert run(tmp_path, "en-4", "ImageNet -> WebVision/EN") == 2


def test_a_row_names_the_row_that_it_starts_from(trainings, tmp_path, capsys):
    assert run(tmp_path, "en-6", "ADE20K/EN") == 2
    assert "reproduce run en-6 'backbone/EN' first" in capsys.readouterr().err


@pytest.fixture
def backbone(trainings, tmp_path):
    """The checkpoint of a backbone that was trained for 2 of 100 epochs."""
    assert run(tmp_path, "en-6", "backbone/EN", "--epochs", "2") == 0
    trainings.clear()
    return tmp_path / "en-6" / "backbone-EN" / "seed0" / "epoch_9.pth"


def test_a_length_in_the_other_unit_is_refused(backbone, tmp_path, capsys):
    assert run(tmp_path, "en-6", "ADE20K/EN", "--epochs", "2") == 2
    assert "counts iterations; give --iterations" in capsys.readouterr().err


def test_a_row_starts_from_another_rows_backbone(trainings, backbone, tmp_path):
    assert run(tmp_path, "en-6", "ADE20K/EN") == 0
    init = trainings[0][0].model.backbone.init_cfg
    assert (init.checkpoint, init.prefix) == (str(backbone), "backbone.")


def test_a_label_says_how_the_backbone_was_trained(backbone, tmp_path, capsys):
    assert run(tmp_path, "en-6", "ADE20K/EN") == 0
    assert "from en-6 backbone/EN (shortened: 2 of 100 epochs" in capsys.readouterr().out


def test_a_backbone_may_be_the_users(trainings, tmp_path):
    assert run(tmp_path, "en-6", "ADE20K/EN", f"{running.PRETRAINED}mine.pth") == 0


def test_a_row_with_two_tests_has_both(trainings, backbone, tmp_path):
    assert run(tmp_path, "en-6", "ADE20K/EN") == 0
    plain = ["--eval-only", "--resume"]
    assert [arguments for _, arguments in trainings[1:]] == [plain, [*plain, "--tta"]]


def test_a_row_that_only_tests_takes_another_rows_checkpoint(trainings, tmp_path):
    assert run(tmp_path, "en-2", "ResNet50/EN") == 0
    assert run(tmp_path, "en-4", "ImageNet -> WebVision/EN") == 0
    cfg, arguments = trainings[-1]
    assert arguments == ["--eval-only"]
    assert cfg.load_from == str(tmp_path / "en-2" / "ResNet50-EN" / "seed0" / "epoch_9.pth")


@pytest.mark.parametrize("cell", [CIFAR, ADE, COCO, "ilm-6 IN / IN"])
def test_a_miniature_reads_small_generated_images(cell, trainings, tmp_path):
    assert run(tmp_path, *cell.split(" ", 1), "--miniature", "--unsafe") == 0
    (cfg, words), *_ = trainings
    assert words == ["--unsafe", "--resume"]
    assert 2 in cfg.train_cfg.values()
    assert trainings.data == str(tmp_path / "miniature" / "data")
    init_default_scope(cfg.default_scope)
    for loader in ("train_dataloader", "val_dataloader"):
        item = DATASETS.build(cfg[loader].dataset)[0]
        assert max(item.get("inputs", item.get("input")).shape) <= 64


@pytest.mark.wide
@pytest.mark.parametrize(
    "cell, package, figures",
    [
        (CIFAR, "mmpretrain", {"top-1"}),
        ("ilm-5 ILM+GN, batch 2", "detectron2", {"box AP", "mask AP"}),
    ],
)
def test_each_frameworks_miniature_gives_the_figures_of_its_table(cell, package, figures, tmp_path):
    pytest.importorskip(package, reason=f"needs {package}")
    assert run(tmp_path, *cell.split(" ", 1), "--miniature") == 0
    (path,) = tmp_path.rglob("record.json")
    found = paper_record.read(path)
    assert found["figures"].keys() >= figures
    assert found["curve"]
    assert found["run"] == 2
    assert paper_record.label(found).startswith("miniature, shortened: 2 of ")
