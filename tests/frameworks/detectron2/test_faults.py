"""What a user of tools/train_net.py sees of faults in detectron2's runs, and what survives them."""

import json
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from faults import NOT_DENSE, error_line, finish, kill_one_of, small_files, start, wait_for
from ilm_plugins import checkpoints
from ilm_plugins.checkpoints import CheckpointError
from ilm_plugins.cli import train_net
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.detectron2.annotations import leave_out_boxes
from ilm_plugins.frameworks.detectron2.checkpoints import Checkpointer
from runs import LAZY, NO_TEST
from runs import detectron2_command as command
from workers import Harmful

#: What makes the LazyConfig of other tests as small as the yaml, without a test.
WITHOUT_EVALUATION = 'del dataloader["evaluator"]\n'
LAZY_KEYS = {
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "SOLVER.BASE_LR": "optimizer.lr",
    "DATALOADER.NUM_WORKERS": "dataloader.train.num_workers",
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def lazy(tmp_path, out):
    """The function (options and overrides, code to add) -> arguments of a LazyConfig's run."""

    def arguments(*words, code=""):
        (tmp_path / "lazy.py").write_text(LAZY + WITHOUT_EVALUATION + code)
        first = ["--config-file", str(tmp_path / "lazy.py"), "--num-gpus", "0"]
        options = [word for word in words if word.startswith("--")]
        overrides = [word for word in words if word not in options]
        return [*first, *options, f"train.output_dir={out}", *overrides]

    return arguments


@pytest.fixture(params=["yaml", "LazyConfig"])
def arguments(request, lazy, out):
    """The function (options, settings of a yaml) -> arguments of a run of either kind of config."""

    def of_yaml(*options, settings):
        opts = [word for pair in settings.items() for word in pair]
        return command(*options, out=out, opts=NO_TEST + opts)

    def of_lazy(*options, settings):
        return lazy(*options, *(f"{LAZY_KEYS[key]}={value}" for key, value in settings.items()))

    return of_yaml if request.param == "yaml" else of_lazy


@pytest.fixture
def line_of(datasets, out, capfd):
    """The function (options, overrides) -> the line that a run of a yaml ends with."""

    def run(*options, opts=(), status=2):
        return error_line(command(*options, out=out, opts=[*NO_TEST, *opts]), capfd, status)

    return run


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory):
    """The output folder of two iterations."""
    out = tmp_path_factory.mktemp("trained")
    assert train_net.main(command(out=out, opts=["SOLVER.MAX_ITER", "2", *NO_TEST])) == 0
    return out


@pytest.fixture
def resumed(trained, out):
    """A copy of that folder."""
    return shutil.copytree(trained, out)


@pytest.fixture
def shapes(datasets, tmp_path):
    """A copy of the training images that may be harmed, and its name as a data set."""
    folder = tmp_path / "shapes"
    shutil.copytree(datasets / "shapes", folder)
    name = f"harmed_{tmp_path.name}"
    known = MetadataCatalog.get("shapes_train")
    annotations = folder / known.json_file.split("/shapes/")[1]
    images = folder / known.image_root.split("/shapes/")[1]
    register_coco_instances(name, {}, str(annotations), str(images))
    yield name, annotations, images
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


# ---- checkpoints


@pytest.fixture
def load(tmp_path):
    """The function (file name, contents) -> a linear layer with the weights of such a file."""

    def make(name, contents):
        model, path = torch.nn.Linear(2, 2), tmp_path / name
        if isinstance(contents, bytes):
            path.write_bytes(contents)
        else:
            checkpoints.write(contents, path)
        Checkpointer(model).load(str(path))
        return model

    return make


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_weights_with_code(arguments, tmp_path, capfd, suffix):
    trap, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    contents = {"model": Harmful(trap), "__author__": "nobody"}
    if suffix == ".pth":
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps(contents))
    line = error_line(arguments(settings={"MODEL.WEIGHTS": str(path)}), capfd, status=2)
    assert str(path) in line and "holds os.makedirs, which may run code" in line
    assert not trap.exists()


@pytest.mark.parametrize(
    "name, contents",
    [
        ("w.pth", [1, 2]),
        ("w.pth", {"model": None}),
        ("w.pth", {"state_dict": {"fc.weight": torch.ones(1)}}),
        ("w.pkl", [1]),
        ("w.pkl", {"model": 3}),
        ("w.pkl", {"model": 3, "__author__": "nobody"}),
    ],
)
def test_weights_without_a_state_dict(load, tmp_path, name, contents):
    with pytest.raises(CheckpointError, match=f"'{tmp_path / name}' holds no state dict"):
        load(name, contents)


@pytest.mark.parametrize("kind", NOT_DENSE)
def test_weights_with_values_that_are_none(load, kind):
    value, words = NOT_DENSE[kind]
    contents = {"model": {"fc.weight": torch.ones(2, 2), "fc.bias": value}}
    with pytest.raises(CheckpointError, match=f"w.pth': fc.bias is a {words}, expected a dense"):
        load("w.pth", contents)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("value", ["one", np.array(["one"])])
def test_weights_of_which_torch_makes_no_tensors(load, suffix, value):
    weight = torch.ones(2, 2) if suffix == ".pth" else np.ones((2, 2))
    contents = {"model": {"weight": weight, "words": value}, "__author__": "nobody"}
    with pytest.raises(CheckpointError, match=r"cannot be loaded: .*str.*; remove what is neither"):
        load(f"w{suffix}", contents)


@pytest.mark.parametrize(
    "path, words",
    [
        ("none.pth", "checkpoint 'none.pth' does not exist; set MODEL.WEIGHTS to a file"),
        ("http://127.0.0.1:9/model.pth", "model.pth' cannot be fetched: .*; set MODEL.WEIGHTS"),
        ("catalog://nowhere", "'catalog://nowhere' cannot be fetched: .*; set MODEL.WEIGHTS"),
    ],
)
def test_weights_that_cannot_be_reached(path, words, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=words):
        Checkpointer(torch.nn.Linear(2, 2)).load(path)


def test_pickles_of_arrays_are_loaded(load):
    """As detectron2's model zoo has them; wherever in a program they are loaded."""
    arrays = {"weight": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)}
    zoo = pickle.dumps({"model": arrays, "__author__": "zoo"}, protocol=2)
    assert load("zoo.pkl", zoo).weight.eq(1).all()
    # As Caffe2 wrote them, by names of its own, and with what only training needs.
    blobs = {"weight": 2 * arrays["weight"], "bias": arrays["bias"], "weight_momentum": np.ones(1)}
    for contents in (blobs, {"blobs": blobs, "cfg": "MODEL: {}"}):
        assert load("caffe2.pkl", pickle.dumps(contents, protocol=2)).weight.eq(2).all()


def test_files_are_opened_as_asked_for(tmp_path):
    manager = Checkpointer(torch.nn.Linear(1, 1)).path_manager
    with manager.open(str(tmp_path / "t"), "w", encoding="latin1") as file:
        file.write("\u00b5")
    assert (tmp_path / "t").read_bytes() == b"\xb5"


def test_weights_of_another_model(line_of, tmp_path):
    path = tmp_path / "other.pth"
    checkpoints.write({"model": {"fc.weight": torch.ones(3)}}, path)
    line = line_of(opts=["MODEL.WEIGHTS", str(path)])
    assert f"{path}' is of another model" in line and "fc.weight" in line


@pytest.mark.parametrize(
    "content, words",
    [
        (b"\xff\xfe", "is not text; write"),
        (b" \n", "names '', which does not exist; write"),
        (b"model_0000004.pth", "names 'model_0000004.pth', which does not exist; write"),
    ],
)
def test_a_name_of_the_last_checkpoint_that_is_none(line_of, out, content, words):
    out.mkdir()
    (out / "last_checkpoint").write_bytes(content)
    assert f"'{out}/last_checkpoint' {words}" in line_of("--resume")
    assert (out / "last_checkpoint").read_bytes() == content


def test_a_truncated_last_checkpoint(line_of, resumed):
    path = resumed / "model_final.pth"
    before = path.read_bytes()[:-1000]
    path.write_bytes(before)
    assert f"{path}' cannot be read: it is truncated" in line_of("--resume")
    assert path.read_bytes() == before and (resumed / "last_checkpoint").exists()


@pytest.mark.parametrize(
    "settings, words",
    [
        (["MODEL.ROI_BOX_HEAD.NORM", "GN"], "its optimizer's state is another's"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "7"], "in it, not (8, "),
    ],
)
def test_resuming_with_another_model(line_of, resumed, settings, words):
    before = {path: path.read_bytes() for path in resumed.glob("*.pth")}
    line = line_of("--resume", opts=["SOLVER.MAX_ITER", "3", *settings])
    assert "model_final.pth' does not fit this config" in line and words in line
    assert "as MODEL.WEIGHTS" in line
    assert before == {path: path.read_bytes() for path in resumed.glob("*.pth")}


def test_resuming_with_another_optimizer(datasets, lazy, capfd):
    """Of a LazyConfig, whose optimizer can be any."""
    assert train_net.main(lazy("train.max_iter=1")) == 0
    adam = "import torch\noptimizer._target_ = torch.optim.AdamW\ndel optimizer['momentum']\n"
    line = error_line(lazy("--resume", "train.max_iter=2", code=adam), capfd, status=2)
    assert "its optimizer's state is another's" in line and "as train.init_checkpoint" in line


def test_weights_with_code_that_the_user_trusts(load, tmp_path):
    trap = tmp_path / "ran"
    state = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    with checkpoints.loading(unsafe=True):
        assert load("w.pth", {"model": state, "more": Harmful(trap)}).weight.eq(1).all()
    assert trap.exists()


# ---- settings and data


@pytest.mark.parametrize(
    "settings, words",
    [
        (["MODEL.RESNETS.DEPTH", "19"], "model cannot be built: KeyError: 19"),
        (["SOLVER.BASE_LR", "-1.0"], "optimizer cannot be built: ValueError: Invalid"),
    ],
)
def test_settings_that_cannot_be(line_of, settings, words):
    assert words in line_of(opts=settings)


@pytest.mark.parametrize(
    "content, workers", [("foreign", "0"), pytest.param("cut", "2", marks=pytest.mark.wide)]
)
def test_a_corrupt_image_is_named(arguments, shapes, out, capfd, content, workers):
    name, _, images = shapes
    for path in images.iterdir():
        path.write_bytes(path.read_bytes()[:300] if content == "cut" else b"no image")
    settings = {"DATASETS.TRAIN": f"['{name}']", "DATALOADER.NUM_WORKERS": workers}
    line = error_line(arguments(settings=settings), capfd, status=1)
    assert f"image '{images}/" in line and "cannot be used" in line
    assert not (out / "model_final.pth").exists()


def test_generated_annotations_that_were_changed(line_of):
    path = Path(MetadataCatalog.get("shapes_train").json_file)
    text = path.read_text()
    contents = json.loads(text)
    contents["categories"].append({"id": 9, "name": "hexagon"})
    path.write_text(json.dumps(contents))
    try:
        line = line_of()
    finally:
        path.write_text(text)
    assert f"data set shapes_train cannot be loaded from {path}: AssertionError" in line
    assert "DETECTRON2_DATASETS" in line


def with_three_as_bbox(contents):
    return json.dumps(
        {**contents, "annotations": [{**a, "bbox": 3} for a in contents["annotations"]]}
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda contents: "", "(empty)"),
        (lambda contents: "{}", "KeyError"),
        (lambda contents: json.dumps({**contents, "annotations": []}), "No valid"),
        (with_three_as_bbox, "TypeError"),
    ],
)
def test_annotations_that_are_none(line_of, shapes, change, words):
    name, annotations, _ = shapes
    annotations.write_text(change(json.loads(annotations.read_text())))
    line = line_of(opts=["DATASETS.TRAIN", f"('{name}',)"])
    assert str(annotations) in line and words in line


def test_annotations_that_nobody_foresaw(line_of, shapes, out):
    name, annotations, _ = shapes
    annotations.write_text("[" * 200_000 + "]" * 200_000)
    line = line_of(opts=["DATASETS.TRAIN", f"('{name}',)"], status=1)
    words = "RecursionError: maximum recursion"
    assert f"unexpected {words}" in line and f"see {out}/error.log" in line
    assert words in (out / "error.log").read_text()


@pytest.mark.parametrize(
    "settings, status, words",
    [
        (["SOLVER.MAX_ITER", "0"], 1, "ZeroDivisionError: "),
        (["OUTPUT_DIR", r"'a\0b'"], 2, "ValueError: embedded null byte; give --traceback"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings_that_nobody_foresaw(line_of, out, settings, status, words):
    line = line_of(opts=["SOLVER.MAX_ITER", "2", *settings], status=status)
    assert f"unexpected {words}" in line and "report it with the output of" in line
    log = out / "error.log"
    assert (f"see {log} for the traceback" in line) == log.exists() == (status == 1)


# ---- losses, disks and processes


def test_a_loss_that_is_nan_ends_the_run_before_it_is_saved(arguments, out, capfd):
    settings = {"SOLVER.BASE_LR": "1e12", "SOLVER.CHECKPOINT_PERIOD": "1", "SOLVER.MAX_ITER": "9"}
    line = error_line(arguments(settings=settings), capfd, status=1)
    assert "at iteration " in line and "--resume continues" in line
    iteration = int(line.split("at iteration ")[1].split(":")[0])
    # The last that was saved is of the iteration before.
    last = (out / "last_checkpoint").read_text()
    assert checkpoints.read(out / last)["iteration"] == iteration - 1 < 8
    assert not (out / "model_final.pth").exists()


def test_weights_that_are_infinite_are_not_saved(tmp_path):
    """After a step from a loss that was finite yet."""
    model = torch.nn.Linear(2, 2)
    model.weight.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="weights became infinite or NaN"):
        Checkpointer(model, str(tmp_path)).save("model_final")
    assert not list(tmp_path.iterdir())


SPOIL = """
from detectron2.data import DatasetMapper
from detectron2.utils import comm

class Spoil(DatasetMapper):
    count = 0

    def __call__(self, entry):
        data = super().__call__(entry)
        self.count += 1
        last = comm.get_rank() + 1 == comm.get_world_size()
        if last and self.count * comm.get_world_size() > 3 * 2:
            data["image"] = data["image"] * float("nan")
        return data
"""


@pytest.mark.wide
@pytest.mark.parametrize("processes", [1, 2])
def test_a_nan_in_a_batch_is_not_saved(
    datasets, lazy, tmp_path, out, capfd, monkeypatch, processes
):
    """Of the last process, in the fourth batch of two images.

    A second process may end the run while the first writes its third checkpoint; the second one was
    whole before the third step's gradients were summed.
    """
    (tmp_path / "spoil.py").write_text(SPOIL)
    monkeypatch.syspath_prepend(tmp_path)
    mapper = "from spoil import Spoil\ndataloader.train.mapper._target_ = Spoil\n"
    words = f"--num-processes={processes}", "train.max_iter=9", "train.checkpointer.period=1"
    line = error_line(lazy(*words, code=mapper), capfd, status=1)
    assert "at iteration 3: " in line and "NaN" in line
    saved = sorted(path.name for path in out.glob("*.pth"))
    expected = [f"model_000000{i}.pth" for i in range(3)]
    assert saved == expected or (processes == 2 and saved == expected[:2])
    last = checkpoints.read(out / (out / "last_checkpoint").read_text())
    assert all(value.isfinite().all() for value in last["model"].values())


@pytest.mark.wide
def test_a_mistake_that_only_one_process_meets_is_told(lazy, shapes, capfd):
    """And not that the others have lost it."""
    _, annotations, images = shapes
    first = sorted(images.iterdir())[0]
    first.write_bytes(b"no image")
    harmed = f"""
from detectron2.data.datasets import register_coco_instances
register_coco_instances(f"harmed_{{id(train)}}", {{}}, {str(annotations)!r}, {str(images)!r})
dataloader.train.dataset.names = f"harmed_{{id(train)}}"
"""
    argv = lazy("--num-processes=2", "train.max_iter=100", code=harmed)
    assert f"image '{first}' cannot be used" in error_line(argv, capfd, status=1)


def test_a_full_disk_leaves_the_last_checkpoint(line_of, resumed, out):
    longer = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "1"]
    with small_files(1_000_000):
        line = line_of("--resume", opts=longer, status=1)
    assert "model_0000002.pth' cannot be written: File too large" in line
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert not list(out.glob(f"*{checkpoints.PARTIAL}"))
    assert checkpoints.read(out / "model_final.pth")["iteration"] == 1


@pytest.mark.wide
def test_a_log_that_cannot_grow_does_not_flood_the_terminal(datasets, out):
    """Each of several processes would print a traceback for each line of its log."""
    size = 2**30
    out.mkdir()
    for name in ("log.txt", "log.txt.rank1"):
        (out / name).touch()
        os.truncate(out / name, size)
    opts = ["SOLVER.MAX_ITER", "1", *NO_TEST]
    with small_files(size):
        process = start(command("--num-processes", "2", out=out, opts=opts))
    printed, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert (out / "model_final.pth").exists() and "Logging error" not in printed + err


@pytest.mark.wide
def test_a_killed_process_ends_the_others_and_the_run_can_go_on(datasets, out):
    """In seconds; what the last checkpoint has is not lost."""
    opts = ["SOLVER.MAX_ITER", "10000", "SOLVER.CHECKPOINT_PERIOD", "1", *NO_TEST]
    process = start(command("--num-processes", "2", out=out, opts=opts))
    wait_for((out / "model_0000001.pth").exists, process)
    kill_one_of(process, rank=1)
    killed = time.monotonic()
    line = finish(process, seconds=60)
    assert time.monotonic() - killed < 20
    assert process.returncode == 1
    assert "process 1 ended by SIGKILL, so the others were stopped" in line
    assert "--resume continues from the last checkpoint" in line
    last = checkpoints.read(out / (out / "last_checkpoint").read_text())["iteration"]
    opts = ["SOLVER.MAX_ITER", str(last + 2), *NO_TEST]
    assert train_net.main(command("--resume", out=out, opts=opts)) == 0
    assert checkpoints.read(out / "model_final.pth")["iteration"] == last + 1


REMOVE = """
import shutil
from detectron2.data import DatasetMapper

class Remove(DatasetMapper):
    images = 0

    def __call__(self, entry):
        self.images += 1
        if self.images > 8:
            shutil.rmtree({folder!r}, ignore_errors=True)
        return super().__call__(entry)
"""


def test_a_folder_that_is_removed_ends_the_run(datasets, lazy, tmp_path, out, capfd, monkeypatch):
    (tmp_path / "remove.py").write_text(REMOVE.format(folder=str(out)))
    monkeypatch.syspath_prepend(tmp_path)
    mapper = "from remove import Remove\ndataloader.train.mapper._target_ = Remove\n"
    words = "train.max_iter=9", "train.log_period=100"
    line = error_line(lazy(*words, code=mapper), capfd, status=1)
    assert f"{out}/metrics.json does not exist" in line


# ---- boxes and masks


def image(**annotation):
    """An image of 20 x 30 pixels with one annotation, as detectron2 loads it."""
    annotation = {"bbox_mode": 1, "bbox": [5, 5, 10, 10], "category_id": 0, **annotation}
    return {"file_name": "x.jpg", "height": 20, "width": 30, "annotations": [annotation]}


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "box, empty",
    [
        ([5, NAN, 10, 10], True),
        ([5, 5, INF, 10], True),
        ([5, 5, -3, 10], True),
        ([30, 5, 10, 10], True),
        ([-20, 5, 10, 10], True),
        ([-5, 5, 10, 100], False),
    ],
)
def test_boxes_that_are_left_out_are_counted(box, empty, caplog):
    MetadataCatalog.get("boxes").json_file = "boxes.json"
    entries = leave_out_boxes([image(bbox=box), image()], ["boxes"])
    assert (entries[0]["annotations"][0]["bbox"] == [0] * 4) == empty
    assert ("Left out 1 of 2 boxes of boxes.json" in caplog.text) == empty


@pytest.mark.parametrize(
    "wrong",
    [
        {"bbox": [1, 2, 3]},
        {"bbox": 3},
        {"segmentation": {"size": [20, 30], "counts": "garbage"}},
        {"segmentation": {"size": [2, 3], "counts": b"6"}},
    ],
)
def test_a_broken_annotation_is_named(wrong):
    with pytest.raises(UserError, match=r"annotation \{.*x\.jpg' in boxes"):
        leave_out_boxes([image(**wrong)], ["boxes"])


def test_a_training_counts_the_boxes_that_it_leaves_out(arguments, shapes, out):
    name, annotations, _ = shapes
    contents = json.loads(annotations.read_text())
    contents["annotations"][0]["bbox"][2] = -1
    annotations.write_text(json.dumps(contents))
    settings = {"DATASETS.TRAIN": f"['{name}']", "SOLVER.MAX_ITER": "1"}
    assert train_net.main(arguments(settings=settings)) == 0
    assert f"Left out 1 of {len(contents['annotations'])} boxes" in (out / "log.txt").read_text()
