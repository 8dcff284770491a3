"""Untrusted yaml configs and proposal files: read as by detectron2, without running code."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.model_zoo import get_config_file

from faults import error_line
from ilm_plugins import checkpoints
from ilm_plugins.cli import analyze, convert, train_net
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.detectron2.config_files import read_config
from ilm_plugins.reproduction import main as reproduction
from runs import LAZY, NO_TEST, SHAPES
from runs import detectron2_command as command
from workers import Harmful

STOCK = Path(get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))


def theirs(path):
    """What detectron2 itself makes of a file."""
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


def harmful(trap):
    """A setting that makes a folder where Python's tags are obeyed; in the file's third line."""
    return f"# A\n# comment.\nVERSION: !!python/object/apply:os.makedirs [{str(trap)!r}]\n"


@pytest.fixture
def trap(tmp_path):
    return tmp_path / "ran"


@pytest.fixture
def config(trap, tmp_path):
    """A config with code in its base, and the file that has the code."""
    base, path = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text(harmful(trap) + f"_BASE_: {SHAPES}\n")
    path.write_text("_BASE_: base.yaml\n")
    return path, base


def is_refused(line, file):
    """Whether a line names the file, the line and the tag, and says what to do."""
    assert f"config '{file}', line 3: " in line and "'!!python/object/apply:os.makedirs'" in line
    return "which may run code" in line and line.endswith("give --unsafe")


def test_training_runs_no_code_of_a_config(config, trap, tmp_path, capfd):
    path, own = config
    out = tmp_path / "out"
    opts = ["SOLVER.MAX_ITER", "1", *NO_TEST]
    assert is_refused(error_line(command(out=out, config=path), capfd, status=2), own)
    assert not trap.exists() and not out.exists()
    argv = command("--unsafe", out=out, opts=opts, config=path)
    assert train_net.main(argv) == 0 and trap.exists()


@pytest.fixture
def weights(tmp_path):
    model = convert.build_model(str(SHAPES).replace("ilmgn", "gn"))
    checkpoints.write({"model": model.state_dict()}, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def test_conversion_runs_no_code_of_a_config(config, trap, weights, tmp_path, capsys):
    path, own = config
    argv = [weights, str(tmp_path / "out.pth"), "--config-file", str(path)]
    assert convert.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert is_refused(line, own)
    assert not trap.exists() and not (tmp_path / "out.pth").exists()
    assert convert.main([*argv, "--unsafe"]) == 0 and trap.exists()


def test_analysis_runs_no_code_of_a_config(config, trap, weights, datasets, tmp_path, capsys):
    path, own = config
    argv = ["omega", str(datasets / "shapes/images/validation"), "--config-file", str(path)]
    argv += ["--checkpoint", weights, "--output", str(tmp_path / "out")]
    assert analyze.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert is_refused(line, own)
    assert not trap.exists() and not (tmp_path / "out").exists()
    # The weights are of another norm.
    assert analyze.main([*argv, "--unsafe"]) == 2 and trap.exists()
    assert "does not fit" in capsys.readouterr().err


def test_a_run_folder_runs_no_code(trap, tmp_path, capsys):
    folder = tmp_path / "ilm-5/ILM+GN-batch-2/seed0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(harmful(trap))
    (folder / "last_checkpoint").write_text("model_final.pth")
    argv = ["run", "ilm-5", "ILM+GN, batch 2", "--work-dir", str(tmp_path)]
    assert reproduction.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert is_refused(line, folder / "config.yaml") and not trap.exists()
    assert reproduction.main([*argv, "--unsafe"]) == 2 and trap.exists()
    assert "settings are unknown" in capsys.readouterr().err


# ---- what detectron2's own configs need


def test_every_stock_config_is_read_as_detectron2_does(tmp_path):
    """In its place, and as a copy."""
    shutil.copytree(STOCK.parents[1], tmp_path / "configs")
    paths = sorted(STOCK.parents[1].rglob("*.yaml"))
    assert len(paths) > 50
    for path in paths:
        expected = theirs(path)
        copy = tmp_path / "configs" / path.relative_to(STOCK.parents[1])
        assert read_config(str(path)) == read_config(str(copy)) == expected, path


@pytest.mark.parametrize("several", [False, True])
def test_a_stock_retinanet_is_a_base(tmp_path, several):
    (tmp_path / "stock").symlink_to(STOCK.parents[1])
    base = f"stock/COCO-Detection/{STOCK.name}"
    path = tmp_path / "mine.yaml"
    names = "!!python/tuple [a, b]"
    path.write_text(f"_BASE_: {[base] if several else base}\nDATASETS: {{TRAIN: {names}}}\n")
    found, expected = read_config(str(path)), theirs(STOCK)
    assert found.MODEL.ANCHOR_GENERATOR.SIZES[0] == [32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]
    expected.DATASETS.TRAIN = ("a", "b")
    assert found == theirs(path) == expected and type(found) is type(expected)


def test_a_changed_copy_of_a_stock_config_runs_no_code(trap, tmp_path):
    stock = STOCK.parents[1] / "Base-RetinaNet.yaml"
    path = tmp_path / stock.name
    path.write_text(harmful(trap) + stock.read_text())
    with pytest.raises(UserError, match=r"line 3: .* which may run code; .*give --unsafe"):
        read_config(str(path))
    assert not trap.exists()


# ---- files that cannot be read


@pytest.mark.parametrize(
    "text, words",
    [
        ("x: !!python/object/apply:eval ['1']", "'!!python/object/apply:eval', which may run code"),
        ("x: !!python/name:os.system", "'!!python/name:os.system', which may run code"),
        ("x: !!python/object/new:os.system [ls]", "line 1: it has '!!python/object/new:os.system'"),
        ("\n!!python/object:os.system {}", "line 2: it has '!!python/object:os.system'"),
        ("? !!python/name:os.system\n: 1", "which may run code"),
        ("x: !<tag:yaml.org,2002:python/object/apply:os.system> [ls]", "which may run code"),
        ("_BASE_: !!python/object/apply:os.system [ls]", "which may run code"),
        ("x: !mine 3", "'!mine'"),
        ("x: !!python%0Ax 3", "tag"),
        ("_BASE_: mine.yaml", "RecursionError"),
        ("_BASE_: missing.yaml", "missing.yaml"),
        ("x: [", "expected the node content"),
        ("", "TypeError"),
        ("x: !!int abc", "ValueError"),
        ("NOTHING: 3", "NOTHING"),
        ("MODEL: {POINT_HEAD: {NUM_FC: 3}}", "MODEL.POINT_HEAD; this command knows detectron2's"),
        ("SEED: {A: 3}", "SEED"),
    ],
)
def test_files_that_are_refused(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_config(str(path))
    line = str(error.value)
    assert words in line and str(path) in line and "\n" not in line
    assert list(tmp_path.iterdir()) == [path]


# ---- proposals


def on_proposals(path, out, *options):
    """The arguments of one iteration with a file of proposals."""
    opts = ["MODEL.LOAD_PROPOSALS", "True", "DATASETS.PROPOSAL_FILES_TRAIN", f"('{path}',)"]
    opts += ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "SOLVER.MAX_ITER", "1"]
    return command(*options, out=out, opts=[*opts, *NO_TEST])


def on_proposals_lazily(path, out):
    """The arguments of such a run by a LazyConfig."""
    text = LAZY + f"dataloader.train.dataset.proposal_files = [{str(path)!r}]\n"
    (out.parent / "lazy.py").write_text(f"{text}del dataloader['evaluator']\ntrain.max_iter = 1\n")
    first = ["--config-file", str(out.parent / "lazy.py"), "--num-gpus", "0"]
    return [*first, f"train.output_dir={out}"]


def proposals(extra=None):
    """Two boxes in each image."""
    images = json.loads(Path(MetadataCatalog.get("shapes_train").json_file).read_text())["images"]
    ids = [image["id"] for image in images]
    boxes = np.array([[1, 2, 30, 40], [5, 5, 60, 50]], np.float32)
    found = {"ids": ids, "boxes": [boxes] * len(ids), "bbox_mode": 0}
    found["objectness_logits"] = [np.array([0.5, 2], np.float32)] * len(ids)
    return {**found, **({"extra": extra} if extra else {})}


@pytest.mark.parametrize("arguments", [on_proposals, on_proposals_lazily])
def test_proposals_run_no_code(arguments, datasets, trap, tmp_path, capfd):
    path, out = tmp_path / "proposals.pkl", tmp_path / "out"
    path.write_bytes(pickle.dumps(proposals(Harmful(trap))))
    line = error_line(arguments(path, out), capfd, status=2)
    assert f"proposal file '{path}' cannot be read: it holds os.makedirs" in line
    assert line.endswith("give --unsafe") and not trap.exists()
    assert not list(out.glob("*.pth"))


def test_proposals_of_another_format(datasets, tmp_path, capfd):
    path = tmp_path / "proposals.data"
    path.write_bytes(pickle.dumps(proposals()))
    line = error_line(on_proposals(path, tmp_path / "out"), capfd, status=2)
    assert f"proposal file '{path}' is no .pkl; rename it" in line


@pytest.mark.parametrize("trusted", [pytest.param(False, marks=pytest.mark.wide), True])
def test_a_model_is_trained_on_proposals(datasets, trap, tmp_path, trusted):
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps(proposals(Harmful(trap) if trusted else None)))
    argv = on_proposals(path, tmp_path / "out", *["--unsafe"] * trusted)
    assert train_net.main(argv) == 0 and trap.exists() == trusted
