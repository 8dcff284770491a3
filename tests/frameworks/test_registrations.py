"""A user's own code and datasets: the options --import and --dataset of the commands."""

import json
import math
import re
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
pytest.importorskip("PIL", reason="needs Pillow, of the extra ilm_plugins[data]")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import ExifTags, Image

from helpers.trainings import LAZY
from ilm_plugins import checkpoints
from ilm_plugins.__main__ import main
from ilm_plugins.cli import parsers
from ilm_plugins.cli.compare import plan_of
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.detectron2 import datasets as coco_datasets
from ilm_plugins.frameworks.registrations import Registrations

YAML = """
_BASE_: "ilm_plugins://faster_rcnn_R_18_FPN_gn.yaml"
MODEL: {ROI_HEADS: {NUM_CLASSES: 3}}
DATASETS:
  TRAIN: ("my_train",)
  TEST: ("my_test",)
"""
NAMES = "my_train", "my_test"
DATASETS = [word for name in NAMES for word in ("--dataset", name, f"{name}.json", "images")]
COMPARE = "compare", "mine.yaml", "GN", "ILMGN", "--num-gpus", "0", "--dry-run"


def coco():
    """A json of two images with an object each."""
    box = {"bbox": [2, 3, 20, 10], "area": 200, "iscrowd": 0}
    image = {"width": 40, "height": 30}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", **image} for i in (1, 2)],
        "annotations": [{"id": i, "image_id": i, "category_id": i, **box} for i in (1, 2)],
        "categories": [{"id": i, "name": name} for i, name in enumerate("abc", 1)],
    }


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A current folder with a yaml and a LazyConfig, and the user's two jsons and images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = {*sys.modules}
    Path("mine.yaml").write_text(YAML)
    Path("images").mkdir()
    for i in (1, 2):
        Image.new("RGB", (40, 30)).save(f"images/{i}.png")
    for name in NAMES:
        Path(f"{name}.json").write_text(json.dumps(coco()))
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in NAMES:
            catalog.pop(name, None)
    for name in {*sys.modules} - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def refusal(capsys, *words):
    """Return the one line with which a command ends."""
    assert main([*words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def change(name="my_test", **entries):
    Path(f"{name}.json").write_text(json.dumps({**coco(), **entries}))


def changed(entries, **values):
    """coco()'s entries, the last with other values; None leaves a key out."""
    *others, last = coco()[entries]
    last = {k: v for k, v in {**last, **values}.items() if v is not None}
    return {entries: [*others, last]}


def turn():
    """Have an EXIF tag that turns image 2, of 40 x 30 pixels."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 30)).save("images/2.png", exif=exif)


#: What is wrong with json or images -> how to make it so, and words of the message.
FAULTS = {
    "no json": (lambda: Path("my_test.json").unlink(), r"No such file .*: '\S+/my_test.json'"),
    "no JSON": (lambda: Path("my_test.json").write_text("{"), "my_test.json' is no json of COCO"),
    "no annotations": (lambda: change(annotations=[]), "no image has annotations"),
    "crowds alone": (
        lambda: change(annotations=[{**one, "iscrowd": 1} for one in coco()["annotations"]]),
        "no image has annotations, other than of crowds .iscrowd 1.",
    ),
    "another category": (
        lambda: change(categories=coco()["categories"][1:]),
        "no category has the category_id 1 of annotations",
    ),
    "one name twice": (
        lambda: change(categories=[{"id": i, "name": "cell"} for i in (1, 2)]),
        "several categories have the name 'cell'",
    ),
    "one annotation twice": (lambda: change(**changed("annotations", id=1)), "not unique"),
    "another order": (
        lambda: change(categories=[{"id": i, "name": n} for i, n in enumerate("acb", 1)]),
        "class 1 of dataset 'my_test' is 'c', of 'my_train' 'b'",
    ),
    "more classes": (
        lambda: change(categories=[*coco()["categories"], {"id": 4, "name": "d"}]),
        "class 3 of dataset 'my_test' is 'd', of 'my_train' None; give both jsons",
    ),
    "an image less": (lambda: Path("images/2.png").unlink(), "1 of 2 images .* file.*images/2.png"),
    "no image": (lambda: Path("images/2.png").write_text("?"), "cannot identify image .*2.png"),
    "other sizes": (
        lambda: change(**changed("images", width=30, height=40)),
        "images/2.png', which is 40 x 30 .EXIF applied., but 30 x 40 in the json",
    ),
    "a turned image": (turn, "2.png', which is 30 x 40 .EXIF applied., but 40 x 30 in"),
    "a size of text": (lambda: change(**changed("images", width="40")), "but '40' x 30 in the"),
}

#: A key of an annotation -> invalid values, and words of the message; None stands for no value.
INVALID = {
    "bbox": (
        [
            *(None, "box", [2, 3, 20], [2, 3, 20, 10, 0], ["2", "3", "20", "10"], [2, 3, 20, None]),
            *([2, 3, -20, 10], [2, 3, 20, -10], [2, math.nan, 20, 10], [2, 3, math.inf, 10]),
        ],
        "a detector needs four numbers",
    ),
    "area": ([None, "200", math.nan], "the test needs a number"),
    "iscrowd": (["0", 2, [0]], "detectron2 needs 0 or 1"),
    "segmentation": (
        [
            *(None, [], [[2, 3]], [["2", "3", "9", "9", "2", "9"]], [[2, 3, 9, 9, 2, math.nan]]),
            *([[2, 3, 9, 9]], [[2, 3, 9, 9], [2, 3, 22, 3, 2, 13]], [[2, 3, 9, 9, 2]]),
        ],
        "MODEL.MASK_ON needs polygons or a mask (without masks, give MODEL.MASK_ON False)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_dataset_that_cannot_work_is_refused_before_the_runs(fault, own, capsys):
    spoil, message = FAULTS[fault]
    spoil()
    assert re.search(message, refusal(capsys, *COMPARE, *DATASETS))
    assert not Path("output").exists()


@pytest.mark.parametrize(
    "key, value",
    [(key, value) for key, (values, _) in INVALID.items() for value in values],
    ids=str,
)
def test_an_annotation_with_an_invalid_value_is_told_by_its_id(key, value, own, capsys):
    masks = {"segmentation": [[2, 3, 22, 3, 2, 13]]} if key == "segmentation" else {}
    for name, values in (("my_train", masks), ("my_test", {**masks, key: value})):
        first, last = coco()["annotations"]
        last = {k: v for k, v in {**last, **values}.items() if v is not None}
        change(name, annotations=[{**first, **masks}, last])
    message = refusal(capsys, *COMPARE, *DATASETS, "--opts", "MODEL.MASK_ON", str(bool(masks)))
    assert f"dataset 'my_test': '{key}' of annotation 2 is " in message
    assert f", but {INVALID[key][1]}" in message
    assert ("is missing" in message) == (value is None)


def test_values_that_detectron2_reads_are_accepted(own, capsys):
    """A box without width, ids of texts, no iscrowd, no area in training, RLE, any order."""
    first, last = coco()["annotations"]
    shape = {"size": [30, 40], "counts": [0, 5, 1195]}
    del first["iscrowd"], last["iscrowd"]
    first.update(id="a", bbox=[-0.5, 3, 0, 10], segmentation=shape)
    last.update(id="b", bbox=[2.5, 3, 38, 28], segmentation=[[2, 3, 22, 3, 2, 13], [4, 5, 6, 7]])
    change("my_test", annotations=[first, last], categories=coco()["categories"][::-1])
    del first["area"]
    change("my_train", annotations=[first, last])
    words = "MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask"
    assert main([*COMPARE, *DATASETS, "--opts", *words]) == 0


@pytest.mark.parametrize(
    "is_crowd, name, form, is_refused",
    [
        (0, "my_train", "polygon", True),
        (0, "my_train", "bitmask", False),
        (0, "my_test", "polygon", False),
        (1, "my_train", "polygon", False),
    ],
)
def test_a_mask_that_is_no_polygon_is_told_where_it_is_trained_as_one(
    is_crowd, name, form, is_refused, own
):
    for one in NAMES:
        first, last = ({**a, "segmentation": [[2, 3, 22, 3, 2, 13]]} for a in coco()["annotations"])
        mask = {"size": [30, 40], "counts": [0, 5, 1195]}
        rle = {"segmentation": mask, "iscrowd": is_crowd} if one == name else {}
        change(one, annotations=[first, {**last, **rle}])
    words = "MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", form
    for dataset in Registrations.of_options((), [DATASETS[1:4], DATASETS[5:8]]).datasets:
        coco_datasets.register_coco(*dataset)
    told = (
        r"dataset 'my_train': 'segmentation' of annotation 2 is {.*}, but INPUT.MASK_FORMAT needs "
        r"polygons \(for other masks, give INPUT.MASK_FORMAT bitmask\); correct its json"
    )
    with pytest.raises(UserError, match=told) if is_refused else nullcontext():
        open_config("mine.yaml", words).check_training(NAMES)


@pytest.mark.parametrize("format", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(9))  # 0: without EXIF
def test_an_images_size_is_known_without_decoding_as_detectron2_turns_it(
    orientation, format, tmp_path, monkeypatch
):
    path, exif = tmp_path / f"a.{format}", Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (40, 30)).save(path, **({"exif": exif} if orientation else {}))
    height, width, _ = read_image(path, "RGB").shape
    with Image.open(path) as image:
        monkeypatch.setattr(image, "load", pytest.fail)
        assert coco_datasets.size_of(image) == (width, height)


@pytest.mark.parametrize("command", [COMPARE, ("train", "--config-file", "mine.yaml")])
def test_a_dataset_that_is_not_registered_is_refused(command, own, capsys):
    message = refusal(capsys, *command, *DATASETS[:4])
    assert "'my_test' of DATASETS.TEST is not registered; give --dataset my_test JSON" in message


@pytest.mark.parametrize(
    "words, message",
    [
        ("--opts DATASETS.TEST () MODEL.ROI_HEADS.NUM_CLASSES 2", "ROI_HEADS.NUM_CLASSES 3"),
        ("--opts MODEL.META_ARCHITECTURE RetinaNet", "give MODEL.RETINANET.NUM_CLASSES 3"),
        (
            "--opts MODEL.KEYPOINT_ON True",
            "my_train registers no keypoints; register it by --import",
        ),
        (
            "--opts DATASETS.TRAIN ('shapes_train',) DATASETS.TEST ('shapes_val',)",
            "DATASETS.TRAIN is ('shapes_train',), but --dataset gives my_train, my_test",
        ),
        (
            "--dataset coco_2017_val my_test.json images",
            "coco_2017_val: this name is registered already, by ",
        ),
    ],
)
def test_what_does_not_fit_the_json_is_refused(words, message, own, capsys):
    """A model, a config that would train on another dataset, and a name of another dataset."""
    assert message in refusal(capsys, *COMPARE, *DATASETS, *words.split())


@pytest.mark.parametrize(
    "words, code, message",
    [
        (DATASETS[:4], "", "'my_test' of dataloader.test.dataset.names is not registered"),
        (DATASETS[4:], "", "'my_train' of dataloader.train.dataset.names is not registered"),
        (DATASETS, "model.roi_heads.mask_in_features = None", "give model.roi_heads.num_classes=3"),
        (DATASETS, "model.roi_heads.num_classes = 3", "mask_in_features needs polygons or a mask"),
    ],
)
def test_the_datasets_of_a_lazy_config_are_checked_likewise(words, code, message, own, capsys):
    sets = [f'dataloader.{name[3:]}.dataset.names = "{name}"' for name in NAMES]
    code = code or "model.roi_heads.mask_in_features = None\nmodel.roi_heads.num_classes = 3"
    Path("lazy.py").write_text("\n".join([LAZY, *sets, code]))
    words = "train", "--config-file", "lazy.py", "--num-gpus", "0", *words
    assert message in refusal(capsys, *words)


IMPORTS = {
    "none.py": (None, "there is no such file"),
    "json.py": ("", "there is another module json"),
    "not_there": (None, "Python finds no such module"),
    "os.not_there": (None, "Python finds no such module"),
    "a folder/file": (None, "Python finds no such module"),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_an_import_that_does_not_exist_or_cannot_be_read_is_refused(name, own, capsys):
    code, message = IMPORTS[name]
    if code is not None:
        Path(name).write_text(code)
    assert re.search(message, refusal(capsys, *COMPARE, "--import", name))


def test_an_error_of_ones_own_code_keeps_its_traceback(own):
    Path("mine.py").write_text("def register():\n    return 1 / 0\nregister()")
    with pytest.raises(ZeroDivisionError) as found:
        main([*COMPARE, "--import", "mine.py"])
    assert found.traceback[-1].name == "register"


#: A config that says what ran before.
SAYS_SO = """
from detectron2.config import LazyCall
from ilm_plugins.errors import UserError
model = None
raise UserError("so far " + open("ran").read())
"""


@pytest.mark.parametrize(
    "command",
    [
        "train --num-gpus 0 --config-file says.py",
        "compare says.py GN EN --num-gpus 0",
        "convert a.pth b.pth --config-file says.py",
    ],
)
def test_imports_run_once_before_the_config_is_read(command, own, capsys):
    Path("mine.py").write_text('open("ran", "a").write("mine ")')
    Path("other.py").write_text('import mine; open("ran", "a").write("other")')
    Path("says.py").write_text(SAYS_SO)
    checkpoints.write({}, Path("a.pth"))
    words = "--import", "mine.py", "--import", "other.py", "--import", "mine.py"
    assert refusal(capsys, *command.split(), *words).endswith("so far mine other")


def test_dataset_is_refused_for_openmmlab(own, capsys):
    Path("net.py").write_text('model = dict(type="Net")')
    message = refusal(capsys, "compare", "net.py", "GN", "EN", "--num-gpus", "0", *DATASETS)
    assert "in OpenMMLab, set data_root and ann_file" in message


def plan(*words):
    return plan_of(parsers.compare([*COMPARE[1:-1], *words, "--output", "out"]))


def test_runs_get_the_same_options_with_absolute_paths(own):
    source = plan("--import", "mine.py", "--import", "json", *DATASETS).source
    run, checkpoint = ("GN", 0), Path("a.pth")
    words = ["--import", str(Path("mine.py").absolute()), "--import", "json"]
    for name in NAMES:
        words += [
            "--dataset",
            name,
            *map(str, (Path(f"{name}.json").absolute(), Path("images").absolute())),
        ]
    evaluation = source.evaluation(*run, "", Path("out"), checkpoint)
    for command in (source.training(*run, Path("out")), evaluation):
        assert shlex.join(words) in shlex.join(command)


def test_a_comparison_is_not_continued_on_another_json(own):
    Path("out").mkdir()
    plan(*DATASETS).save_settings()
    plan().save_settings()  # of a run that is complete
    settings = json.loads(Path("out/compare.json").read_text())
    assert settings["--dataset my_train"]["images"] == str(Path("images").absolute())
    change("my_train", info={})
    with pytest.raises(UserError, match="begun with --dataset my_train: SHA-256 = "):
        plan(*DATASETS).save_settings()
