"""What a user of tools/train_net.py sees of faults in detectron2's runs, and what survives them."""

import json
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

from faults import NOT_DENSE, finish, kill_one_of, small_files, start, told, wait_for
from ilm_plugins import checkpoints
from ilm_plugins.cli import train_net
from ilm_plugins.frameworks.detectron2.checkpoints import Checkpointer
from runs import LAZY, SHAPES
from runs import detectron2_command as command
from workers import Harmful

NO_TEST = ["DATASETS.TEST", "()"]
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


@pytest.fixture(params=["yaml", "LazyConfig"])
def arguments(request, root, datasets, tmp_path):
    """What gives the arguments of a run, by either kind of config, from settings of a yaml's."""

    def of_yaml(*options, out, settings):
        opts = [word for pair in settings.items() for word in pair]
        return command(root / SHAPES, "--num-gpus", "0", *options, out=out, opts=NO_TEST + opts)

    def of_lazy(*options, out, settings):
        (tmp_path / "lazy.py").write_text(LAZY + WITHOUT_EVALUATION)
        opts = [f"{LAZY_KEYS[key]}={value}" for key, value in settings.items()]
        words = ["--config-file", str(tmp_path / "lazy.py"), "--num-gpus", "0", *options]
        return [*words, f"train.output_dir={out}", *opts]

    return of_yaml if request.param == "yaml" else of_lazy


@pytest.fixture(scope="module")
def trained(root, datasets, tmp_path_factory):
    """The output folder of two iterations."""
    out = tmp_path_factory.mktemp("trained")
    argv = command(
        root / SHAPES, "--num-gpus", "0", out=out, opts=["SOLVER.MAX_ITER", "2", *NO_TEST]
    )
    assert train_net.main(argv) == 0
    return out


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


def checkpoint(kind, trained, path, trap):
    whole = trained / "model_final.pth"
    if kind == "truncated":
        path.write_bytes(whole.read_bytes()[:-1000])
    elif kind == "no checkpoint":
        path.write_text("<html>404</html>")
    elif kind == "with code":
        torch.save({"model": Harmful(trap)}, path)
    elif kind == "pickle with code":
        path = path.with_suffix(".pkl")
        path.write_bytes(pickle.dumps({"model": Harmful(trap), "__author__": "nobody"}))
    return path


@pytest.mark.parametrize(
    "kind, words",
    [
        ("truncated", "truncated, or not a checkpoint"),
        ("no checkpoint", "it is text, not a checkpoint"),
        ("with code", "holds os.makedirs, which may run code"),
        ("pickle with code", "holds os.makedirs, which may run code"),
    ],
)
def test_weights_that_are_none(arguments, trained, tmp_path, capfd, kind, words):
    trap, out = tmp_path / "ran", tmp_path / "out"
    path = checkpoint(kind, trained, tmp_path / "weights.pth", trap)
    line = told(arguments(out=out, settings={"MODEL.WEIGHTS": str(path)}), capfd, status=2)
    assert str(path) in line and words in line
    assert not trap.exists() and not list(out.iterdir())


@pytest.mark.parametrize(
    "name, contents",
    [
        ("w.pth", [1, 2]),
        ("w.pth", 3),
        ("w.pth", {"model": None}),
        ("w.pth", {"model": {1: torch.ones(1)}}),
        ("w.pth", {"state_dict": {"fc.weight": torch.ones(1)}}),
        ("w.pkl", [1]),
        ("w.pkl", {"model": 3}),
        ("w.pkl", {"model": 3, "__author__": "nobody"}),
    ],
)
def test_weights_without_a_state_dict(root, tmp_path, capfd, name, contents):
    path, out = tmp_path / name, tmp_path / "out"
    checkpoints.write(contents, path)
    argv = command(root / SHAPES, "--num-gpus", "0", out=out, opts=["MODEL.WEIGHTS", str(path)])
    line = told(argv, capfd, status=2)
    assert f"'{path}' holds no state dict" in line and not list(out.iterdir())


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_weights_with_values_that_are_none(root, tmp_path, capfd, suffix):
    path, out = tmp_path / f"w{suffix}", tmp_path / "out"
    argv = command(root / SHAPES, "--num-gpus", "0", out=out, opts=["MODEL.WEIGHTS", str(path)])
    value = np.ones(2, np.float32) if suffix == ".pkl" else torch.ones(2)
    # detectron2 takes neither strings nor what torch does not know.
    cases = {"note": ("one", "str"), "words": (np.array(["one"]), "<U3")}
    if suffix == ".pth":
        cases |= NOT_DENSE
    for name, (other, words) in cases.items():
        key = "fc.bias" if name in NOT_DENSE else name
        contents = {"model": {"fc.weight": value, key: other}, "__author__": "nobody"}
        checkpoints.write(contents, path)
        line = told(argv, capfd, status=2)
        assert f"'{path}': {key} is a {words}, expected a" in line and not list(out.iterdir())


def test_pickles_of_arrays_are_loaded_and_others_are_not(tmp_path):
    """As detectron2's model zoo has them; wherever in a program they are loaded."""
    model, path = torch.nn.Linear(2, 2), tmp_path / "zoo.pkl"
    arrays = {"weight": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo"}, protocol=2))
    Checkpointer(model).load(str(path))
    assert model.weight.eq(1).all()
    # As Caffe2 wrote them, by names of its own, and with what only training needs.
    blobs = {"weight": 2 * arrays["weight"], "bias": arrays["bias"], "weight_momentum": np.ones(1)}
    for contents in (blobs, {"blobs": blobs, "cfg": "MODEL: {}"}):
        torch.nn.init.zeros_(model.weight)
        path.write_bytes(pickle.dumps(contents, protocol=2))
        Checkpointer(model).load(str(path))
        assert model.weight.eq(2).all()
    trap = tmp_path / "ran"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": Harmful(trap)}))
    with pytest.raises(checkpoints.CheckpointError, match="which may run code"):
        Checkpointer(model).load(str(path))
    assert not trap.exists()


def test_a_pickle_is_read_once_and_never_by_pickle_itself(tmp_path, monkeypatch):
    model, path = torch.nn.Linear(2, 2, bias=False), tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"weight": np.ones((2, 2))}))

    def load(*args, **options):
        raise AssertionError("what is in it was believed")

    monkeypatch.setattr(pickle, "load", load)
    Checkpointer(model).load(str(path))
    assert model.weight.eq(1).all()


def test_files_are_opened_as_asked_for(tmp_path):
    manager = Checkpointer(torch.nn.Linear(1, 1)).path_manager
    with manager.open(str(tmp_path / "t"), "w", encoding="latin1") as file:
        file.write("\u00b5")
    assert (tmp_path / "t").read_bytes() == b"\xb5"


def test_weights_of_another_model(root, trained, tmp_path, capfd):
    path = tmp_path / "other.pth"
    checkpoints.write({"model": {"fc.weight": torch.ones(3)}}, path)
    argv = command(
        root / SHAPES, "--num-gpus", "0", out=tmp_path, opts=["MODEL.WEIGHTS", str(path)]
    )
    line = told(argv, capfd, status=2)
    assert f"{path}' is of another model" in line and "fc.weight" in line


@pytest.mark.parametrize("content, words", [(b"\xff\xfe", "not text"), (b" \n", "empty")])
def test_a_name_of_the_last_checkpoint_that_is_none(root, tmp_path, capfd, content, words):
    (tmp_path / "last_checkpoint").write_bytes(content)
    argv = command(root / SHAPES, "--num-gpus", "0", "--resume", out=tmp_path, opts=NO_TEST)
    assert f"'{tmp_path}/last_checkpoint' is {words}; write" in told(argv, capfd, status=2)


def test_a_last_checkpoint_that_is_missing(root, tmp_path, capfd):
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth")
    argv = command(root / SHAPES, "--num-gpus", "0", "--resume", out=tmp_path)
    line = told(argv, capfd, status=2)
    assert f"checkpoint '{tmp_path}/model_0000004.pth' does not exist" in line
    assert [path.name for path in tmp_path.iterdir()] == ["last_checkpoint"]


def test_a_truncated_last_checkpoint(root, trained, tmp_path, capfd):
    shutil.copytree(trained, tmp_path / "out")
    path = tmp_path / "out" / "model_final.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    argv = command(root / SHAPES, "--num-gpus", "0", "--resume", out=tmp_path / "out")
    assert str(path) in told(argv, capfd, status=2)
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}


@pytest.mark.parametrize(
    "settings, words",
    [
        (["MODEL.ROI_BOX_HEAD.NORM", "GN"], "its optimizer's state is another's"),
        (["MODEL.RESNETS.DEPTH", "34"], "is missing in it"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "7"], "in it, not (8, "),
    ],
)
def test_resuming_with_another_model(root, trained, tmp_path, capfd, settings, words):
    shutil.copytree(trained, tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").glob("*.pth")}
    opts = ["SOLVER.MAX_ITER", "3", *NO_TEST, *settings]
    argv = command(root / SHAPES, "--num-gpus", "0", "--resume", out=tmp_path / "out", opts=opts)
    line = told(argv, capfd, status=2)
    assert "model_final.pth' does not fit this config" in line and words in line
    assert "as MODEL.WEIGHTS" in line
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").glob("*.pth")}


def test_resuming_with_another_optimizer(datasets, trained, tmp_path, capfd):
    """Of a LazyConfig, whose optimizer can be any."""
    text, out = LAZY + WITHOUT_EVALUATION, tmp_path / "out"
    (tmp_path / "lazy.py").write_text(text)
    argv = ["--config-file", tmp_path / "lazy.py", "--num-gpus", "0", f"train.output_dir={out}"]
    assert train_net.main([str(word) for word in [*argv, "train.max_iter=1"]]) == 0
    adam = "optimizer._target_ = torch.optim.AdamW\ndel optimizer['momentum']\n"
    (tmp_path / "lazy.py").write_text("import torch\n" + text + adam)
    argv.insert(2, "--resume")
    line = told([*argv, "train.max_iter=2"], capfd, status=2)
    assert "its optimizer's state is another's" in line and "as train.init_checkpoint" in line


@pytest.mark.parametrize(
    "settings, words",
    [
        (["MODEL.RESNETS.DEPTH", "19"], "model cannot be built: KeyError: 19"),
        (
            ["SOLVER.BASE_LR", "-1.0"],
            "optimizer cannot be built: ValueError: Invalid",
        ),
    ],
)
def test_settings_that_cannot_be(root, datasets, tmp_path, capfd, settings, words):
    argv = command(root / SHAPES, "--num-gpus", "0", out=tmp_path, opts=[*NO_TEST, *settings])
    assert words in told(argv, capfd, status=2)


@pytest.mark.parametrize("kind", ["file", "no dict", "images", "category", "categories"])
def test_generated_annotations_that_were_changed(root, datasets, tmp_path, capfd, kind):
    path = Path(MetadataCatalog.get("shapes_train").json_file)
    text = path.read_text()
    contents = json.loads(text)
    if kind == "category":
        contents["annotations"] = [{**a, "category_id": 9} for a in contents["annotations"]]
    elif kind == "categories":
        contents["categories"].append({"id": 9, "name": "hexagon"})
    else:
        contents = {"file": "", "no dict": [], "images": {**contents, "images": [1]}}[kind]
    argv = command(root / SHAPES, "--num-gpus", "0", out=tmp_path, opts=NO_TEST)
    path.write_text(json.dumps(contents) if contents else str(contents))
    try:
        line = told(argv, capfd, status=2)
    finally:
        path.write_text(text)
    assert "data set shapes_train cannot be loaded from" in line and str(path) in line


def test_weights_with_code_that_the_user_trusts(root, trained, tmp_path):
    """They are loaded, with what they do, only when asked to by name."""
    trap, path = tmp_path / "ran", tmp_path / "weights.pth"
    state = checkpoints.read(trained / "model_final.pth")["model"]
    torch.save({"model": state, "more": Harmful(trap)}, path)
    opts = ["MODEL.WEIGHTS", str(path), "SOLVER.MAX_ITER", "1", *NO_TEST]
    argv = command(root / SHAPES, "--num-gpus", "0", "--unsafe", out=tmp_path / "out", opts=opts)
    assert train_net.main(argv) == 0
    assert trap.exists()


@pytest.mark.parametrize(
    "content, workers", [("foreign", "0"), pytest.param("cut", "2", marks=pytest.mark.wide)]
)
def test_a_corrupt_image_is_named(arguments, shapes, tmp_path, capfd, content, workers):
    name, _, images = shapes
    for path in images.iterdir():
        path.write_bytes(path.read_bytes()[:300] if content == "cut" else b"no image")
    settings = {"DATASETS.TRAIN": f"['{name}']", "DATALOADER.NUM_WORKERS": workers}
    line = told(arguments(out=tmp_path / "out", settings=settings), capfd, status=1)
    assert f"image '{images}/" in line and "cannot be used" in line
    assert not (tmp_path / "out" / "model_final.pth").exists()


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "(empty)"),
        ("{}", "KeyError"),
        ("[1", "JSONDecodeError"),
        ("none", "No valid"),
        ("null", "AssertionError"),
        ('{"images": 1, "annotations": []}', "TypeError"),
        ("boxes", "TypeError"),
    ],
)
def test_annotations_that_are_none(root, shapes, tmp_path, capfd, content, words):
    name, annotations, _ = shapes
    known = json.loads(annotations.read_text())
    if content == "none":  # images, but nothing in them
        content = json.dumps({**known, "annotations": []})
    elif content == "boxes":
        boxes = [{**a, "bbox": 3} for a in known["annotations"]]
        content = json.dumps({**known, "annotations": boxes})
    annotations.write_text(content)
    opts = ["DATASETS.TRAIN", f"('{name}',)", *NO_TEST]
    argv = command(root / SHAPES, "--num-gpus", "0", out=tmp_path / "out", opts=opts)
    line = told(argv, capfd, status=2)
    assert str(annotations) in line and words in line


ZERO = "ZeroDivisionError: "


@pytest.mark.parametrize(
    "settings, status, words",
    [
        (["SOLVER.MAX_ITER", "0"], 1, ZERO),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], 1, ZERO),
        (["OUTPUT_DIR", r"'a\0b'"], 2, "ValueError: embedded null byte; give --traceback"),
        pytest.param(
            *(["--machine-rank", "1", "--dist-url", "tcp://127.0.0.1:99999"], 1),
            "ValueError: port",
            marks=pytest.mark.wide,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings_that_nobody_foresaw(root, datasets, tmp_path, capfd, settings, status, words):
    options = ["--num-machines", "2", *settings] if "--dist-url" in settings else []
    opts = [*NO_TEST, "SOLVER.MAX_ITER", "2", *(() if options else settings)]
    argv = command(root / SHAPES, "--num-gpus", "0", *options, out=tmp_path, opts=opts)
    line = told(argv, capfd, status)
    assert f"unexpected {words}" in line and "report it with the output of" in line
    log = tmp_path / "error.log"
    assert (f"see {log} for the traceback" in line) == log.exists() == (status == 1)
    assert not log.exists() or words in log.read_text()


def without_masks(contents):
    for annotation in contents["annotations"]:
        del annotation["segmentation"]
    return json.dumps(contents)


def with_large_counts(contents):
    for annotation in contents["annotations"]:
        annotation["segmentation"] = {"size": [64, 64], "counts": [10**12, 1]}
    return json.dumps(contents)


@pytest.mark.parametrize(
    "change, words",
    [
        (without_masks, "AttributeError: Cannot find field 'gt_masks'"),
        (with_large_counts, "OverflowError: "),
        (lambda contents: "[" * 200_000 + "]" * 200_000, "RecursionError: maximum recursion"),
    ],
    ids=["no masks", "large counts", "nested"],
)
def test_annotations_that_nobody_foresaw(root, shapes, tmp_path, capfd, change, words):
    name, annotations, _ = shapes
    annotations.write_text(change(json.loads(annotations.read_text())))
    opts = ["DATASETS.TRAIN", f"('{name}',)", *NO_TEST]
    argv = command(root / SHAPES, "--num-gpus", "0", out=tmp_path / "out", opts=opts)
    line = told(argv, capfd, status=1)
    assert f"unexpected {words}" in line and f"see {tmp_path}/out/error.log" in line
    assert words in (tmp_path / "out" / "error.log").read_text()


def test_weights_behind_a_url_that_cannot_be_reached(root, tmp_path, capfd):
    url = "http://127.0.0.1:9/model.pth"
    argv = command(root / SHAPES, "--num-gpus", "0", out=tmp_path, opts=["MODEL.WEIGHTS", url])
    line = told(argv, capfd, status=2)
    assert f"checkpoint '{url}' cannot be fetched: " in line and "set MODEL.WEIGHTS" in line


def test_a_loss_that_is_nan_ends_the_run_before_it_is_saved(arguments, tmp_path, capfd):
    settings = {"SOLVER.BASE_LR": "1e12", "SOLVER.CHECKPOINT_PERIOD": "1", "SOLVER.MAX_ITER": "9"}
    line = told(arguments(out=tmp_path, settings=settings), capfd, status=1)
    assert "at iteration " in line and "--resume goes on" in line
    iteration = int(line.split("at iteration ")[1].split(":")[0])
    # The last that was saved is of the iteration before.
    last = (tmp_path / "last_checkpoint").read_text()
    assert checkpoints.read(tmp_path / last)["iteration"] == iteration - 1 < 8
    assert not (tmp_path / "model_final.pth").exists()


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


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.wide)])
def test_a_nan_in_a_batch_is_not_saved(datasets, tmp_path, capfd, monkeypatch, processes):
    """Of the last process, in the fourth batch of two images.

    A second process may end the run while the first writes its third checkpoint; the second one was
    whole before the third step's gradients were summed.
    """
    (tmp_path / "spoil.py").write_text(SPOIL)
    mapper = "from spoil import Spoil\ndataloader.train.mapper._target_ = Spoil\n"
    (tmp_path / "lazy.py").write_text(LAZY + WITHOUT_EVALUATION + mapper)
    out = tmp_path / "out"
    argv = ["--config-file", tmp_path / "lazy.py", "--num-gpus", "0", "--num-processes", processes]
    argv += [f"train.output_dir={out}", "train.max_iter=9", "train.checkpointer.period=1"]
    monkeypatch.syspath_prepend(tmp_path)
    line = told(argv, capfd, status=1)
    assert "at iteration 3: " in line and "NaN" in line
    saved = sorted(path.name for path in out.glob("*.pth"))
    expected = [f"model_000000{i}.pth" for i in range(3)]
    assert saved == expected or (processes == "2" and saved == expected[:2])
    last = checkpoints.read(out / (out / "last_checkpoint").read_text())
    assert all(value.isfinite().all() for value in last["model"].values())


@pytest.mark.wide
def test_a_mistake_that_only_one_process_meets_is_told(shapes, tmp_path, capfd):
    """And not that the others have lost it."""
    _, annotations, images = shapes
    first = sorted(images.iterdir())[0]
    first.write_bytes(b"no image")
    harmed = f"""
from detectron2.data.datasets import register_coco_instances
register_coco_instances(f"harmed_{{id(train)}}", {{}}, {str(annotations)!r}, {str(images)!r})
dataloader.train.dataset.names = f"harmed_{{id(train)}}"
"""
    (tmp_path / "lazy.py").write_text(LAZY + WITHOUT_EVALUATION + harmed)
    argv = ["--config-file", tmp_path / "lazy.py", "--num-gpus", "0", "--num-processes", "2"]
    argv += [f"train.output_dir={tmp_path / 'out'}", "train.max_iter=100"]
    line = told(argv, capfd, status=1)
    assert f"image '{first}' cannot be used" in line


def test_a_full_disk_leaves_the_last_checkpoint(arguments, tmp_path, capfd):
    out, length = tmp_path / "out", {"SOLVER.MAX_ITER": "2"}
    assert train_net.main(arguments(out=out, settings=length)) == 0
    longer = {"SOLVER.MAX_ITER": "4", "SOLVER.CHECKPOINT_PERIOD": "1"}
    with small_files(1_000_000):
        line = told(arguments("--resume", out=out, settings=longer), capfd, status=1)
    assert "model_0000002.pth' cannot be written: File too large" in line
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert not list(out.glob(f"*{checkpoints.PARTIAL}"))
    state = checkpoints.read(out / "model_final.pth")
    assert state["iteration"] == 1


@pytest.mark.wide
def test_a_killed_process_ends_the_others_and_the_run_can_go_on(root, datasets, tmp_path):
    """In seconds; what the last checkpoint has is not lost."""
    opts = ["SOLVER.MAX_ITER", "10000", "SOLVER.CHECKPOINT_PERIOD", "1", *NO_TEST]
    options = ["--num-gpus", "0", "--num-processes", "2"]
    process = start(command(root / SHAPES, *options, out=tmp_path, opts=opts))
    wait_for((tmp_path / "model_0000001.pth").exists, process)
    kill_one_of(process, rank=1)
    killed = time.monotonic()
    line = finish(process, seconds=60)
    assert time.monotonic() - killed < 20
    assert process.returncode == 1
    assert "process 1 ended by SIGKILL, and the others with it" in line
    assert "--resume goes on from the last checkpoint" in line
    last = checkpoints.read(tmp_path / (tmp_path / "last_checkpoint").read_text())["iteration"]
    opts = ["SOLVER.MAX_ITER", str(last + 2), *NO_TEST]
    resumed = command(root / SHAPES, "--num-gpus", "0", "--resume", out=tmp_path, opts=opts)
    assert train_net.main(resumed) == 0
    assert checkpoints.read(tmp_path / "model_final.pth")["iteration"] == last + 1
