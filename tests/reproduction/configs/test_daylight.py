"""CamVid by the time of day: which images train and test, and what each condition changes."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")

from mmseg.datasets.transforms import PhotoMetricDistortion

from helpers.mmengine_configs import ROOT, load

BASE = "fcn_r18-d8"
DAYLIGHT = "reproduction/configs/mmseg/camvid_daylight"
FOLDERS = "reproduction/configs/mmseg/camvid_folds"
#: Another training, tested on the same images.
STRONG = "strong_contrast"
CONDITIONS = sorted({p.stem for p in (ROOT / DAYLIGHT).glob("*.py")} - {BASE, STRONG})
#: Number of images in CamVid's folders.
SIZES = {"train": 367, "val": 101, "test": 233}
#: Begin of a condition's name -> the transform's options, by the number that follows.
ALTERED = {
    "blur": lambda number: {"name": "gaussian_blur", "sigma": number},
    "contrast": lambda number: {"name": "adjust_contrast", "contrast_factor": number},
    # torchvision's gamma is the exponent: above 1 darkens.
    "gamma": lambda number: {"name": "adjust_gamma", "gamma": 1 / number},
    "noise": lambda number: {"name": "gaussian_noise", "sigma": number},
}


def config(name):
    return load(f"{DAYLIGHT}/{name}.py")


def images(dataset):
    """The (folder, number of the file in it) of each image of a dataset."""
    if "datasets" in dataset:
        return [image for part in dataset.datasets for image in images(part)]
    folder = Path(dataset.data_prefix.img_path).name
    assert folder == Path(dataset.data_prefix.seg_map_path).name
    return [(folder, number) for number in dataset.get("indices") or range(SIZES[folder])]


def test_only_the_images_and_their_distortion_differ_from_camvid_with_bn():
    base, camvid = config(BASE), load("mmseg/camvid/fcn_r18-d8.py")
    loaders = {"train_dataloader", "val_dataloader", "test_dataloader"}
    parts = {"train_folder", "val_folder", "test_folder", "custom_imports", "train_pipeline"}
    assert {key for key in base if base[key] != camvid.get(key)} == loaders | parts
    added = [step for step in base.train_pipeline if step not in camvid.train_pipeline]
    assert added == [{"type": "PhotoMetricDistortion"}]


def test_strong_contrast_changes_the_range_of_factors_alone():
    base, strong = config(BASE), config(STRONG)
    for cfg, factors in ((base, (0.5, 1.5)), (strong, (0.2, 1.8))):
        for dataset in cfg.train_dataloader.dataset.datasets:
            (step,) = (s for s in dataset.pipeline if s.type == "PhotoMetricDistortion")
            # The usual range is the transform's default.
            options = {key: value for key, value in step.items() if key != "type"}
            transform = PhotoMetricDistortion(**options)
            assert (transform.contrast_lower, transform.contrast_upper) == factors
            step.pop("contrast_range", None)  # all else is compared below
    parts = {"train_pipeline", "train_folder", "val_folder"}
    assert {key for key in strong if strong[key] != base[key]} <= parts


@pytest.mark.parametrize("name", [BASE, STRONG, *CONDITIONS])
def test_no_image_of_a_test_trains(name):
    cfg = config(name)
    trained, tested = (
        images(loader.dataset) for loader in (cfg.train_dataloader, cfg.test_dataloader)
    )
    assert trained
    assert tested
    assert not {*trained} & {*tested}
    assert all(0 <= number < SIZES[folder] for folder, number in trained + tested)


def test_held_out_images_are_of_the_training():
    base, cfg = config(BASE), config("held_out")
    both = images(cfg.train_dataloader.dataset) + images(cfg.test_dataloader.dataset)
    assert sorted(both) == sorted(images(base.train_dataloader.dataset))


@pytest.mark.parametrize("name", [name for name in CONDITIONS if name != "held_out"])
def test_a_condition_changes_the_test_alone(name):
    base, cfg = config(BASE), config(name)
    own = {"dusk"} if name == "dusk" else {"change"}
    assert {key for key in cfg if cfg[key] != base.get(key)} == {"test_dataloader"} | own


@pytest.mark.parametrize("name", [name for name in CONDITIONS if name not in ("held_out", "dusk")])
def test_an_altered_test_has_the_strength_of_its_name(name):
    kind, number = re.fullmatch(r"([a-z]+)([\d.]+)", name).groups()
    before, after = (config(n).test_dataloader.dataset for n in (BASE, name))
    (change,) = (step for step in after.pipeline if step not in before.pipeline)
    # After the image is loaded and before it is packed.
    assert after.pipeline == [*before.pipeline[:-1], change, before.pipeline[-1]]
    assert change.pop("type") == "TorchvisionTransform"
    if kind == "blur":  # The kernel reaches four deviations to each side.
        assert change.pop("kernel_size") == 8 * int(number) + 1
    assert change == ALTERED[kind](float(number))
    assert images(after) == images(before)


FOLDS = sorted({p.stem for p in (ROOT / FOLDERS).glob("*.py")})


@pytest.mark.parametrize("name", FOLDS)
def test_no_image_of_a_folds_test_trains(name):
    cfg = load(f"{FOLDERS}/{name}.py")
    trained, tested = (images(cfg[f"{one}_dataloader"].dataset) for one in ("train", "test"))
    assert not {*trained} & {*tested}
    fold = name.partition("_")[0]
    assert len(tested) == {"0016E5": 305, "0006R0": 101, "standardized": 124}[fold]
    if fold != "standardized":
        assert len(trained) + len(tested) == 101 + 305 + 171


@pytest.mark.parametrize("name", [name for name in FOLDS if "standardized" in name])
def test_a_standardized_fold_differs_in_its_inputs_alone(name):
    plain = f"{DAYLIGHT}/dusk" if name.endswith("dusk") else f"{FOLDERS}/{name}"
    ours, theirs = load(f"{FOLDERS}/{name}.py"), load(f"{plain.replace('_standardized', '')}.py")
    loaders = ("test",) if name.endswith("dusk") else ("train", "val", "test")
    for one in loaders:
        parts = zip(*(c[f"{one}_dataloader"].dataset.datasets for c in (ours, theirs)), strict=True)
        for standardized, other in parts:
            (step,) = (s for s in standardized.pipeline if s not in other.pipeline)
            assert step == standardized.pipeline[-2] == {"type": "StandardizeImage"}
            assert images(standardized) == images(other)
    assert ours.model.data_preprocessor["mean"] is None
    for cfg in (ours, theirs):
        cfg.model.data_preprocessor.update(mean=None, std=None)
    assert ours.model == theirs.model
    assert ours.optim_wrapper == theirs.optim_wrapper
