"""Untrusted yaml configs and proposal files: read as by detectron2, without running code."""

import json
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.model_zoo import get_config_file

from faults import told
from ilm_plugins import checkpoints
from ilm_plugins.cli import analyze, convert, train_net
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.detectron2.config_files import compute, read_config
from ilm_plugins.reproduction import main as reproduction
from runs import LAZY, SHAPES
from runs import detectron2_command as command
from workers import Harmful

STOCK = Path(get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
EVAL = "!!python/object/apply:eval"


def theirs(path):
    """What detectron2 itself makes of a file."""
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


def harmful(trap):
    """A setting that makes a folder where a tag of Python's is obeyed; in the file's third line."""
    return f"# A\n# comment.\nVERSION: !!python/object/apply:os.makedirs [{str(trap)!r}]\n"


@pytest.fixture
def trap(tmp_path):
    return tmp_path / "ran"


@pytest.fixture(params=["in the file", "in its base", "in a base of its base"])
def config(request, root, trap, tmp_path):
    """A config with code, and the file that has it."""
    base, path = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    own = path if request.param == "in the file" else base
    if request.param == "in a base of its base":
        own = tmp_path / "first.yaml"
        base.write_text("_BASE_: [first.yaml]\n")
    own.write_text(harmful(trap) + f"_BASE_: {root / SHAPES}\n")
    if own != path:
        path.write_text("_BASE_: base.yaml\n")
    return path, own


def is_refused(line, file):
    """Whether a line names the file, the line and the tag, and says what to do."""
    assert f"config '{file}', line 3: " in line and "'!!python/object/apply:os.makedirs'" in line
    return "which may run code" in line and line.endswith("give --unsafe")


def test_training_runs_no_code_of_a_config(config, trap, tmp_path, capfd):
    path, own = config
    out = tmp_path / "out"
    opts = ["SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"]
    assert is_refused(told(command(path, "--num-gpus", "0", out=out), capfd, status=2), own)
    assert not trap.exists() and not out.exists()
    argv = command(path, "--num-gpus", "0", "--unsafe", out=out, opts=opts)
    assert train_net.main(argv) == 0 and trap.exists()


@pytest.fixture
def weights(root, tmp_path):
    model = convert.build_model(str(root / SHAPES.replace("ilmgn", "gn")))
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


def absolute(folder):
    return str(STOCK)


def linked(folder):
    (folder / "stock").symlink_to(STOCK.parents[1])
    return "stock/COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def copied(folder):
    shutil.copy(STOCK, folder)
    # It names its own as ../Base-RetinaNet.yaml.
    shutil.copy(STOCK.parents[1] / "Base-RetinaNet.yaml", folder.parent)
    return STOCK.name


@pytest.mark.parametrize("place", [absolute, linked, copied])
@pytest.mark.parametrize("several", [False, True])
def test_a_stock_retinanet_is_a_base(tmp_path, place, several):
    (tmp_path / "folder").mkdir()
    base = place(tmp_path / "folder")
    path = tmp_path / "folder" / "mine.yaml"
    path.write_text(f"_BASE_: {[base] if several else base}\nSOLVER: {{MAX_ITER: 7}}\n")
    found = read_config(str(path))
    assert found == theirs(path)
    expected = theirs(STOCK)
    assert found.MODEL.ANCHOR_GENERATOR.SIZES[0] == [32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]
    expected.SOLVER.MAX_ITER = 7
    assert found == expected and type(found) is type(expected)


def test_every_stock_config_is_read_as_detectron2_does(tmp_path):
    """In its place, and as a copy, of which nothing is believed."""
    shutil.copytree(STOCK.parents[1], tmp_path / "configs")
    paths = sorted(STOCK.parents[1].rglob("*.yaml"))
    assert len(paths) > 50
    for path in paths:
        expected = theirs(path)
        copy = tmp_path / "configs" / path.relative_to(STOCK.parents[1])
        assert read_config(str(path)) == read_config(str(copy)) == expected, path


def test_what_detectron2_writes_is_read_again(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(theirs(STOCK).dump())
    assert "!" not in path.read_text() and read_config(str(path)) == theirs(path)


def test_files_in_detectron2_itself_load_as_they_are(tmp_path, monkeypatch, trap):
    """As does what a source build links there; but not by a path that only looks like it."""
    package, checkout = tmp_path / "detectron2", tmp_path / "configs"
    for folder in (package / "model_zoo", checkout):
        folder.mkdir(parents=True)
    (package / "model_zoo" / "configs").symlink_to(checkout)
    (checkout / "a.yaml").write_text(harmful(trap))
    monkeypatch.setattr("detectron2.__file__", str(package / "__init__.py"))
    for path in (checkout / "a.yaml", package / "model_zoo" / "configs" / "a.yaml"):
        read_config(str(path))
        trap.rmdir()
    outside = tmp_path / "outside.yaml"
    outside.write_text(harmful(trap))
    (checkout / "link.yaml").symlink_to(outside)
    for path in (outside, checkout / ".." / "outside.yaml", checkout / "link.yaml"):
        with pytest.raises(UserError, match="which may run code"):
            read_config(str(path))
    assert not trap.exists()


def test_settings_behind_bases_are_joined_as_in_detectron2(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    files = {
        "a.yaml": "MODEL: {WEIGHTS: a, FPN: {NORM: GN, IN_FEATURES: [x]}}\nSEED: 1\n",
        "b.yaml": "_BASE_: a.yaml\nMODEL: {FPN: {NORM: BN}}\nSEED: 2\n",
        "c.yaml": "MODEL: {FPN: {IN_FEATURES: [y, z]}, WEIGHTS: ''}\nOUTPUT_DIR: c\n",
        "mine.yaml": "_BASE_: ['~/b.yaml', c.yaml]\nDATASETS: {TRAIN: !!python/tuple [a, b]}\n",
        # Of an older version of detectron2's settings.
        "old.yaml": "VERSION: 1\nMODEL: {WEIGHT: x}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in files:
        assert read_config(str(tmp_path / name)) == theirs(tmp_path / name), name
    found = read_config(str(tmp_path / "mine.yaml"))
    assert found.MODEL.FPN.NORM == "BN" and found.MODEL.FPN.IN_FEATURES == ["y", "z"]
    assert (found.MODEL.WEIGHTS, found.SEED, found.DATASETS.TRAIN) == ("", 2, ("a", "b"))


# ---- files that cannot be read

DOUBLED = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 64))
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 64)
)


@pytest.mark.parametrize(
    "text, words",
    [
        (f'x: {EVAL} [\'__import__("os").makedirs("ran")\']', "line 1: "),
        (f"x: {EVAL} ['[' , '1]']", "one string"),
        (f"x: {EVAL} [[1]]", "one string"),
        (f"x: {EVAL} {{args: ['1']}}", "one string"),
        (f"x: {EVAL} '1'", "one string"),
        (f"\nx: {EVAL} ['10**10**10']", "line 2: "),
        ("x: !!python/name:os.system", "'!!python/name:os.system'"),
        ("x: !!python/object/new:os.system [ls]", "'!!python/object/new:os.system'"),
        ("x: !!python/module:os", "'!!python/module:os'"),
        ("!!python/object:os.system {}", "'!!python/object:os.system'"),
        ("? !!python/name:os.system\n: 1", "which may run code"),
        ("x: !<tag:yaml.org,2002:python/object/apply:os.system> [ls]", "which may run code"),
        ("x: !!python/object/apply:builtins.eval ['1']", "which may run code"),
        ("_BASE_: !!python/object/apply:os.system [ls]", "which may run code"),
        ("x: !mine 3", "'!mine', which is unknown; remove it"),
        ("x: !!python%0Ax 3", r"'!!python\nx', which is unknown"),
        (DOUBLED, "more than 20,000"),
        (MERGED, "more than 20,000"),
        ("x: &x [*x]", "line 1: an anchor refers to itself"),
        ("x: &x {y: [*x]}", "line 1: an anchor refers to itself"),
        ("[" * 5000, "RecursionError"),
        ("_BASE_: mine.yaml", "more than 100 files"),
        ("_BASE_: [other.yaml, other.yaml]", "more than 100 files"),
        ("_BASE_: missing.yaml", "missing.yaml' does not exist; give a file"),
        ("_BASE_: 3", "_BASE_ is 3"),
        ("_BASE_: .", "does not exist"),
        ("SEED: 3\nSEED", "line 2"),
        ("x: [", "expected the node content"),
        ("", "no settings"),
        ("[1]", "no settings"),
        ("x: \x00", "unacceptable character"),
        ("x: !!int abc", "ValueError"),
        ("x: 2020-99-99", "ValueError"),
        ("NOTHING: 3", "NOTHING"),
        ("SEED: {A: 3}", "SEED"),
    ],
)
def test_files_that_are_refused(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    (tmp_path / "other.yaml").write_text("_BASE_: [mine.yaml]\n")
    start = time.process_time()
    with pytest.raises(UserError) as error:
        read_config(str(path))
    line = str(error.value)
    assert words in line and str(tmp_path) in line and "\n" not in line and len(line) < 600
    assert time.process_time() - start < 5 and sorted(tmp_path.iterdir()) == [
        path,
        tmp_path / "other.yaml",
    ]


# ---- arithmetic


@pytest.mark.parametrize(
    "text",
    [
        "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]",
        "[[2**x] for x in (5, 6, 7)]",
        "(1, -2.5, +3, not 0, 'a', None, True, 7 // 2, 7 % 4, 2**-1, 1 - 1)",
        "[(x, y) for x in [1, 2, 3] if x != 2 for y in [x, [x]] if 0 < x < 3 ]",
        "[x for x in [[x, x] for x in [1, 2]]]",
        "[[x for x in [x, 2 * x]] + 0 * 1 if 0 else 0 for x in []]",
        "{x: {y for y in [x, 1]} for x in [1, 2]}",
        "{'a': {1, 2}, 'b': [a + b for a, (b, c) in [(1, (2, 3))]]}",
        "[a for a in 'abc']",
        "[]",
        "3",
    ],
)
def test_arithmetic_is_pythons(text):
    assert compute(text) == eval(text) and type(compute(text)) is type(eval(text))


@pytest.mark.parametrize(
    "text, words",
    [
        ("__import__('os')", "__import__('os')"),
        ("x", "'x'"),
        ("[x for y in [1]]", "'x'"),
        ("[[x for x in [1]], x]", "'x'"),
        ("[].__class__", "[].__class__"),
        ("[1][0]", "[1][0]"),
        ("f'{1}'", "f'{1}'"),
        ("lambda: 1", "lambda: 1"),
        ("[y := 1]", "y := 1"),
        ("(x for x in [1])", "for x in"),
        ("[*[1]]", "*[1]"),
        ("{**{}}", "{**{}}"),
        ("[x async for x in [1]]", "async"),
        ("[x.y for x.y in [1]]", "x.y"),
        ("1j", "1j"),
        ("b'a'", "b'a'"),
        ("...", "'...'"),
        ("(-1)**0.5", "not a real number"),
        ("[0] * 10**12", "not a real number"),
        ("'a' * 10**12", "not a real number"),
        ("'%99999999999d' % 1", "not a real number"),
        ("1 << 10**10", "1 << 10"),
        ("10**10**10", "must not exceed"),
        ("2**63 * 2", "must not exceed"),
        ("9" * 400, "must not exceed"),
        ("10.0**400", "OverflowError"),
        ("1 / 0", "ZeroDivisionError"),
        ("1 < 'a'", "TypeError"),
        ("[x for x in 3]", "TypeError"),
        ("{[]}", "TypeError"),
        ("[a for a, b in [(1, 2, 3)]]", "ValueError"),
        ("1 +", "SyntaxError"),
        ("", "SyntaxError"),
        ("a = 1", "SyntaxError"),
        ("\0", "null"),
        ("-" * 990 + "1", "RecursionError"),
        ("(" * 490 + ")" * 490, "parenthes"),
        ("1" * 1001, "1,000 characters"),
        ("[0 " + "for x in 'abcdefghij' " * 8 + "]", "10,000 steps"),
        ("[[y, y] for y in " * 40 + "[1]" + "]" * 40, "10,000 steps"),
        ("[0 " + "for x in [[], [], []] " * 20 + "if 0]", "10,000 steps"),
    ],
)
def test_all_else_is_refused(text, words):
    start = time.process_time()
    with pytest.raises(ValueError) as error:
        compute(text)
    assert words in str(error.value)
    assert time.process_time() - start < 2


# ---- proposals


def on_proposals(config, path, out, *options):
    """The arguments of one iteration with a file of proposals."""
    opts = ["MODEL.LOAD_PROPOSALS", "True", "DATASETS.PROPOSAL_FILES_TRAIN", f"('{path}',)"]
    opts += ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "SOLVER.MAX_ITER", "1"]
    opts += ["DATASETS.TEST", "()"]
    return command(config, "--num-gpus", "0", *options, out=out, opts=opts)


@pytest.fixture(params=["yaml", "LazyConfig"])
def with_proposals(request, root, datasets, tmp_path):
    """What gives the arguments of a run, by either kind of config, with a file of proposals."""

    def of_yaml(path):
        return on_proposals(root / SHAPES, path, tmp_path / "out")

    def of_lazy(path):
        text = LAZY.replace('f"mine_{id(train)}"', f"'mine_{tmp_path.name}'")
        text += f"dataloader.train.dataset.proposal_files = [{str(path)!r}]\n"
        text += "del dataloader['evaluator']\ntrain.max_iter = 1\n"
        (tmp_path / "lazy.py").write_text(text)
        words = ["--config-file", str(tmp_path / "lazy.py"), "--num-gpus", "0"]
        return [*words, f"train.output_dir={tmp_path / 'out'}"]

    return of_yaml if request.param == "yaml" else of_lazy


def proposals(extra=None):
    """Two boxes in each image."""
    images = json.loads(Path(MetadataCatalog.get("shapes_train").json_file).read_text())["images"]
    ids = [image["id"] for image in images]
    boxes = np.array([[1, 2, 30, 40], [5, 5, 60, 50]], np.float32)
    found = {"ids": ids, "boxes": [boxes] * len(ids), "bbox_mode": 0}
    found["objectness_logits"] = [np.array([0.5, 2], np.float32)] * len(ids)
    return {**found, **({"extra": extra} if extra else {})}


def test_proposals_run_no_code(with_proposals, datasets, trap, tmp_path, capfd):
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps(proposals(Harmful(trap))))
    line = told(with_proposals(path), capfd, status=2)
    assert f"proposal file '{path}' cannot be read: it holds os.makedirs" in line
    assert line.endswith("give --unsafe") and not trap.exists()
    assert not list((tmp_path / "out").glob("*.pth"))


def test_proposals_of_another_format(root, datasets, tmp_path, capfd):
    path = tmp_path / "proposals.data"
    path.write_bytes(pickle.dumps(proposals()))
    line = told(on_proposals(root / SHAPES, path, tmp_path / "out"), capfd, status=2)
    assert f"proposal file '{path}' is no .pkl; rename it" in line


@pytest.mark.parametrize("trusted", [False, True])
def test_a_model_is_trained_on_proposals(root, datasets, trap, tmp_path, trusted):
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps(proposals(Harmful(trap) if trusted else None)))
    argv = on_proposals(root / SHAPES, path, tmp_path / "out", *["--unsafe"] * trusted)
    assert train_net.main(argv) == 0 and trap.exists() == trusted
