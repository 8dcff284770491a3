"""The documentation: its figures are up to date, its examples and commands run."""

import copy
import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import ilm_plugins
from helpers import processes
from helpers.close import assert_close
from ilm_plugins import NORMS, ILMGroupNorm, surgery
from ilm_plugins.cli import parsers
from ilm_plugins.layers.base import AdaptiveNorm
from ilm_plugins.shapes.dataset import write_shapes
from reproduction.parsers import parse

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
PATTERNS = "*.md", "*/README.md", "reproduction/results.md", "docs/**/*.md"
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    return [text for found, text in BLOCK.findall(page.read_text("utf-8")) if found == language]


def words_of(page):
    return " ".join((ROOT / page).read_text("utf-8").split())


def block(page, language, words=""):
    (text,) = (text for text in blocks(page, language) if words in text)
    return text


def test_pages_have_the_files_and_records_that_they_show():
    from reproduction.write_pages import documented

    for page, text in documented().items():
        shown = page.read_text("utf-8")
        assert shown == text, f"{page.relative_to(ROOT)}: run python -m reproduction.write_pages"


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


def test_the_worked_example_of_a_norm_runs():
    page = ROOT / "docs" / "adding-a-normalizer.md"
    code = "\n".join((*blocks(page, "python"), 'ilm_plugins.NORMS["ILN"](8, eps=1e-3)'))
    processes.run([sys.executable, "-c", code], check=True)


def test_a_norm_with_a_function_after_the_affine_map_is_made_as_the_page_says():
    page = ROOT / "docs" / "adding-a-normalizer.md"
    names = {"torch": torch, "nn": torch.nn, "AdaptiveNorm": AdaptiveNorm}
    exec(block(page, "python", "class FilterResponseNorm"), names)
    layer = names["FilterResponseNorm"](6, dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, dz = (torch.randn(3, 6, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias, tau = (p.view(-1, 1, 1) for p in (layer.weight, layer.bias, layer.tau))
    rms = (x.square().mean((2, 3), keepdim=True) + layer.eps).sqrt()
    expected, inputs = torch.maximum(weight * x / rms + bias, tau), (x, *layer.parameters())
    assert_close(layer(x), expected)
    gradients = torch.autograd.grad(layer(x), inputs, dz)
    assert_close(gradients, torch.autograd.grad(expected, inputs, dz))


@pytest.mark.wide
def test_the_worked_example_of_a_norm_passes_the_check_that_its_page_recommends(tmp_path):
    page = ROOT / "docs" / "adding-a-normalizer.md"
    layer, register, *_ = blocks(page, "python")
    (tmp_path / "mine.py").write_text(f"{layer}\n{register}")
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", ROOT / "tests" / "contract.py"]
    command += ["--norm", "mine:InstanceLayerNorm"]
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_models_are_scripted_as_the_page_says(dtype):
    code = block(ROOT / "docs" / "interoperability.md", "python", "torch.jit.script")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 1), ILMGroupNorm(32)).to(dtype)
    names = {"copy": copy, "torch": torch, "ilm_plugins": ilm_plugins, "model": model}
    exec(code, names)
    x = torch.randn(2, 3, 4, 5).to(dtype)
    assert_close(names["scripted"](x), model(x), 16)


def test_activations_are_fused_as_the_page_says():
    code = block(ROOT / "docs" / "adopting.md", "python", "fuse_activations")
    convolution, plain = torch.nn.Conv2d(3, 32, 1), torch.nn.GroupNorm(32, 32)
    model = torch.nn.Sequential(convolution, plain, torch.nn.ReLU())
    before, names = repr(model), {"surgery": ilm_plugins.surgery, "model": model}
    exec(code, names)
    assert [*names["report"].converted] == ["1"]
    assert repr(names["model"]) == before


def test_groups_of_optimizers_are_made_as_the_page_says():
    pytest.importorskip("timm", reason="needs timm")
    code = block(ROOT / "docs" / "why-did-my-result-change.md", "python", "parameter_groups")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 1), ILMGroupNorm(32))
    names = {"torch": torch, "model": model}
    exec(code, names)
    weight_decay = {
        id(p): g["weight_decay"] for g in names["optimizer"].param_groups for p in g["params"]
    }
    assert weight_decay[id(model[1].weight)] == 0
    assert weight_decay[id(model[0].weight)] > 0


def test_readmes_blocks_of_python_run_and_print_what_is_shown(capsys):
    names = {}
    for package in ("timm", "torchvision"):
        pytest.importorskip(package, reason=f"needs {package}'s models")
    for text in blocks(README, "python"):
        exec(text, names)
    assert capsys.readouterr().out == block(README, "text", "converted")


@pytest.mark.parametrize("page", ["README.md", "docs/detectron2.md", "docs/notebook.ipynb"])
def test_torch_and_torchvision_are_installed_in_one_line(page):
    """Of two indices, pip replaces the torch for CPUs, or torchvision's operators are missing."""
    assert "pip install torch torchvision" in words_of(page)


def test_the_table_of_families_says_how_many_work_by_a_key_by_convert_and_not_at_all():
    record = json.loads((ROOT / "docs" / "families.json").read_text("utf-8"))
    ways = [words for models in record.values() for words in models.values()]
    by_key, by_convert, none = (
        sum(words.startswith(way) for words in ways) for way in ("norm_", "convert", "no: ")
    )
    text = words_of("docs/adopting.md")
    assert f"one model of each of {len(ways)} families" in text
    assert re.search(rf" {by_key} compute .* by a key: ", text)
    assert f" {by_convert} do so after `convert`; {none} do not: " in text


def test_the_table_that_readme_names_has_as_many_differences_as_readme_says():
    link = r"\[table by norm\]\(([^)#]+)#by-norm\) has the (\d+) differences"
    page, number = re.search(link, words_of("README.md")).groups()
    _, section = (ROOT / page).read_text("utf-8").split("\n### By norm\n")
    rows = re.findall(r"^\| \w+ - \w+ \| (\d+) \|", section.split("\n#")[0], re.MULTILINE)
    assert sum(map(int, rows)) == int(number)


EXAMPLES = [*NORMS.values(), ilm_plugins.freeze, ilm_plugins.compare]
EXAMPLES += [surgery.convert, surgery.revert, surgery.recalibrate]


@pytest.mark.parametrize("documented", EXAMPLES, ids=lambda one: one.__name__)
def test_the_example_in_a_docstring_runs(documented, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # compare writes there
    names = {n: getattr(ilm_plugins, n) for n in ilm_plugins.__all__} | vars(surgery)
    names |= {"torch": torch, "nn": torch.nn, "ilm_plugins": ilm_plugins}
    if documented is ilm_plugins.compare:
        names["timm"] = pytest.importorskip("timm", reason="needs timm")
        names["accuracy"] = lambda model: sum(p.numel() for p in model.parameters())
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, globs=names)
    assert 3 <= len(example.docstring.partition("Example:\n")[2].strip().splitlines()) <= 8
    assert not doctest.DocTestRunner().run(example).failed


def commands():
    """(page, command) for each in a block of shell, its continued lines joined."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split(" #")[0].strip()
                if command:
                    yield str(page.relative_to(ROOT)), command


each_command = pytest.mark.parametrize("page, command", list(commands()))


@each_command
def test_files_in_commands_exist(page, command):
    for word in shlex.split(command):
        if re.match(r"(configs|reproduction|tools)/", word):
            assert list(ROOT.glob(word)), f"{page}: {word} is not there"


@each_command
def test_targets_of_make_exist(page, command):
    program, *words = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
        for word in words:
            assert "=" in word or word in targets, f"{page}: {word} is no target of the Makefile"


@each_command
def test_commands_of_the_package_are_parsed(page, command):
    if command.startswith("python -m ilm_plugins "):
        name, *options = shlex.split(command)[3:]
        getattr(parsers, name.replace("-", "_"))(options)
    if command.startswith("python -m reproduction "):
        with suppress(SystemExit):  # of --help
            parse(shlex.split(command)[3:])


#: Words of a command that trains, and of one that only shows how a command is written.
TRAINS = re.compile(
    r"ilm_plugins (?:train|compare) (?!.*--(?:eval-only|dry-run))|reproduction run "
)
FORM = re.compile(r"CONFIG|train\.py|setup=")


GUIDES = [README, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_section_with_a_training_says_how_long_it_trains(page):
    for section in re.split(r"^##? ", page.read_text("utf-8"), flags=re.MULTILINE):
        shown = " ".join(text for kind, text in BLOCK.findall(section) if kind == "sh")
        trains = [line for line in shown.replace("\\\n", " ").splitlines() if TRAINS.search(line)]
        if any(not FORM.search(line) for line in trains):
            assert re.search(r"\d (?:epochs|iterations|steps)", section), section.splitlines()[0]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """A folder with the page's configs, of two iterations, and small generated datasets."""
    out = tmp_path_factory.mktemp("tutorial")
    for path in (ROOT / "docs" / "tutorial").glob("*.py"):
        text = re.sub(r"iterations = \d+", "iterations = 2", path.read_text(encoding="utf-8"))
        (out / path.name).write_text(text, encoding="utf-8")
    shapes = write_shapes(out, num_training=1, num_validation=2, seed=5)
    bccd, camvid = out / "data" / "bccd", out / "data" / "camvid"
    for folder in (bccd / "annotations", camvid / "images", camvid / "annotations"):
        folder.mkdir(parents=True)
    (bccd / "images").symlink_to(shapes / "images" / "validation")
    annotations = json.loads((shapes / "annotations" / "instances_validation.json").read_text())
    cells = ("RBC", "WBC", "Platelets", "unused")
    for category, cell in zip(annotations["categories"], cells, strict=True):
        category["name"] = cell
    for name in ("train", "test"):
        (bccd / "annotations" / f"{name}.json").write_text(json.dumps(annotations))
        for kind in ("images", "annotations"):
            (camvid / kind / name).symlink_to(shapes / kind / "validation")
    return out


@pytest.mark.wide
@pytest.mark.parametrize(
    "package, measure, words",
    [
        ("mmdet", r"\((?:val|test)\) .*coco/bbox_mAP: ([\d.]+)", "--config-file detector.py"),
        ("mmseg", r"\((?:val|test)\) .*aAcc: ([\d.]+)", "--config-file segmenter.py"),
    ],
)
def test_the_tutorials_commands_run(package, measure, words, tutorial, launcher, monkeypatch):
    pytest.importorskip(package, reason="needs OpenMMLab: make install-openmmlab")
    commands = re.sub(r"iter_\d+", "iter_2", block(TUTORIAL, "sh", words))
    monkeypatch.chdir(tutorial)
    log = tutorial / f"{package}.txt"
    for command in commands.replace("\\\n", " ").splitlines():
        launcher.start(shlex.split(command)[3:], log)
        assert launcher.wait() == 0, log.read_text("utf-8")[-3000:]
    first, converted, *_ = re.findall(measure, log.read_text("utf-8"))
    assert first == converted
