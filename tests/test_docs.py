"""The documentation: it builds, its figures are up to date, its examples and commands run."""

import copy
import doctest
import html
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import fresh
import ilm_plugins
from ilm_plugins import NORMS, ExemplarNorm, ILMGroupNorm, SparseSwitchNorm, surgery
from ilm_plugins.__main__ import command_module
from ilm_plugins.layers import parse_norm
from runs import NEEDS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DETECTRON2 = ROOT / "docs" / "detectron2.md"
OPENMMLAB = ROOT / "docs" / "openmmlab.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    return [text for found, text in BLOCK.findall(page.read_text("utf-8")) if found == language]


def block(page, language, words=""):
    """The one block of a page in a language that has these words."""
    (text,) = (text for text in blocks(page, language) if words in text)
    return text


#: Parts of the layers' equations, as the browser draws them.
EQUATIONS = (
    "β=tanh(W2ReLU(W1μ))",
    "ω=sigmoid(W2ReLU(W1μ))",
    "λnk",
    "λ=softmax(w)",
    "a=hardsigmoid(Aμ",
)


def text_of(page):
    """The text of a page in HTML, without its spaces."""
    return re.sub(r"\s", "", html.unescape(re.sub("<[^>]*>", "", page)))


@pytest.mark.wide
def test_the_site_builds_without_warnings(tmp_path):
    for package in ("sphinx", "furo", "latex2mathml", "myst_parser"):
        pytest.importorskip(package, reason=f"needs {package}")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, ROOT / "docs", tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    layers, pages = ((tmp_path / f"{n}.html").read_text("utf-8") for n in ("layers", "api"))
    drawn = re.findall('<div class="math">(.*?)</div>', layers, re.DOTALL)
    for equation in EQUATIONS:
        assert any(equation in text_of(math) for math in drawn), equation
    for key, layer in NORMS.items():
        assert layer.__name__ in layers, key
        assert f".{layer.__name__}(num_channels:int," in text_of(pages), key
        for option in inspect.signature(layer).parameters:
            assert f"<strong>{option}</strong>" in pages, (key, option)
    for module in (ilm_plugins, surgery):
        for public in module.__all__:
            assert f'id="{module.__name__}.{public}"' in pages, public


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


WORKED_EXAMPLE = ROOT / "docs" / "adding-a-normalizer.md"
IN_FRAMEWORKS = """
from ilm_plugins.frameworks import installed

if installed("detectron2"):
    from detectron2.layers import get_norm

    found = get_norm("ILN(eps=1e-3)", 8)
    assert type(found) is InstanceLayerNorm and found.eps == 1e-3
if installed("mmcv"):
    from mmcv.cnn import build_norm_layer

    assert type(build_norm_layer(norm_cfg, 8)[1]) is InstanceLayerNorm
print("ran to the end")
"""


def test_the_worked_example_runs():
    code = "\n".join((*blocks(WORKED_EXAMPLE, "python"), IN_FRAMEWORKS))
    done = fresh.run([sys.executable, "-c", code])
    assert done.stdout.endswith("ran to the end\n"), done.stderr


def given():
    """The names that pages' blocks of Python take as given, with a new model of every norm."""
    named = {
        "stem": nn.Conv2d(3, 32, 3),
        "bn": nn.BatchNorm2d(32),
        "layer1": nn.Sequential(nn.Sequential(OrderedDict(bn1=ExemplarNorm(32)))),
        "layer2": nn.Sequential(ILMGroupNorm(32), SparseSwitchNorm(32)),
        "roi_heads": nn.Sequential(OrderedDict(box_head=nn.Sequential(nn.GroupNorm(8, 32)))),
    }
    model, batch = nn.Sequential(OrderedDict(named)), torch.rand(2, 3, 8, 8)
    names = {"model": model, "batches": [batch, batch], "iterations": 2, "copy": copy}
    names |= {"torch": torch, "optimizer": torch.optim.SGD(model.parameters())}
    return names | {"nn": nn, "ilm_plugins": ilm_plugins, "ILMGroupNorm": ILMGroupNorm}


WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page != WORKED_EXAMPLE]


@pytest.fixture
def own_forward(monkeypatch):
    """Restore the classes' forward, which a block may replace."""
    for norm in NORMS.values():
        monkeypatch.setattr(norm, "forward", norm.forward)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_blocks_of_python_run(page, own_forward):
    """In their order; each meets the model as given, and the other names of those before it."""
    names = {}
    if page.stem == "interoperability":
        names["timm"] = pytest.importorskip("timm", reason="needs timm")
        extraction = pytest.importorskip(
            "torchvision.models.feature_extraction", reason="needs torchvision"
        )
        names["create_feature_extractor"] = extraction.create_feature_extractor
    if page == README:
        pytest.importorskip("torchvision", reason="needs torchvision's models")
    for text in blocks(page, "python"):
        exec(text, names := {**names, **given()})


def test_norms_in_blocks_of_yaml_are_valid():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    norms = []

    def collect(node):
        for key, value in node.items():
            if isinstance(value, dict):
                collect(value)
            elif key == "NORM":
                norms.append(value)

    for page in PAGES:
        for text in blocks(page, "yaml"):
            collect(yaml.safe_load(text))
    norms.remove("ILN(eps=1e-3)")  # the worked example's, which its test builds
    assert len(norms) >= 3
    for norm in norms:
        key, options = parse_norm(norm)
        NORMS[key](64, **options)


@pytest.mark.parametrize("layer", [layer for layer in NORMS.values() if ">>>" in layer.__doc__])
def test_examples_in_docstrings_run(layer):
    names = {n: getattr(ilm_plugins, n) for n in ilm_plugins.__all__} | {"torch": torch}
    (example,) = doctest.DocTestFinder(recurse=False).find(layer, globs=names)
    assert example.examples and not doctest.DocTestRunner().run(example).failed


def commands():
    """(page, command) for each in a block of shell, its continued lines joined."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split(" #")[0].strip()
                if command:
                    yield str(page.relative_to(ROOT)), command


@pytest.mark.parametrize("page, command", list(commands()))
def test_commands_name_what_there_is(page, command):
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
        for word in words[1:]:
            assert "=" in word or word in targets, f"{page}: {word} is no target of the Makefile"
    for word in words:
        if re.match(r"(configs|tools)/", word):
            assert list(ROOT.glob(word)), f"{page}: {word} is not there"
    known = ("make", "pip install", "python tools/", "python -m ilm_plugins")
    assert command.startswith(known), f"{page}: no test is known to run {command!r}"


OF_PACKAGE = [found for found in commands() if found[1].startswith("python -m ilm_plugins ")]


@pytest.mark.parametrize("page, command", OF_PACKAGE)
def test_commands_parse(page, command, monkeypatch):
    name, *words = shlex.split(command)[3:]
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs {NEEDS[name]}")
    module = command_module(name)
    monkeypatch.setattr(module, "command", lambda run: 0)
    assert module.main(words) == 0


def test_readmes_yaml_gives_a_box_head_and_an_fpn(tmp_path):
    pytest.importorskip("detectron2", reason="needs detectron2")
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    (tmp_path / "readme.yaml").write_text(block(README, "yaml"))
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs/detectron2/shapes/mask_rcnn_R_18_FPN_gn.yaml"))
    cfg.merge_from_file(str(tmp_path / "readme.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    convs, fcs = model.roi_heads.box_head.conv_norm_relus, model.roi_heads.box_head.fcs
    assert [type(conv.norm) for conv in convs] == [ILMGroupNorm] * 4 and len(fcs) == 1
    norm = model.backbone.fpn_output2.norm
    assert type(norm) is ExemplarNorm and norm.reduction == 16


def test_readmes_norm_cfg_gives_a_segmenter(tmp_path):
    pytest.importorskip("mmseg", reason="needs OpenMMLab")
    from ilm_plugins.frameworks import open_config

    text = block(README, "python", "auxiliary_head")
    assert text == block(OPENMMLAB, "python", "auxiliary_head")
    base = ROOT / "configs" / "mmseg" / "shapes" / "fcn_r18-d8_shapes_bn.py"
    (tmp_path / "readme.py").write_text(f"_base_ = {str(base)!r}\n{text}")
    model = open_config(str(tmp_path / "readme.py")).build_model()
    for part in (model.backbone, model.decode_head, model.auxiliary_head):
        found = {type(m) for m in part.modules() if "Norm" in type(m).__name__}
        assert found == {ExemplarNorm}, part
    assert model.decode_head.convs[0].norm.reduction == 32


def test_readmes_norm_cfg_gives_a_classifier_whose_config_names_no_norm(tmp_path):
    pytest.importorskip("mmpretrain", reason="needs OpenMMLab")
    from ilm_plugins.frameworks import open_config

    settings, _, _ = block(README, "python", "auxiliary_head").partition("model = ")
    model = "dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18))"
    (tmp_path / "base.py").write_text(f"default_scope = 'mmpretrain'\nmodel = {model}")
    (tmp_path / "readme.py").write_text(
        f"_base_ = 'base.py'\n{settings}model = dict(backbone=dict(norm_cfg=norm_cfg))"
    )
    model = open_config(str(tmp_path / "readme.py")).build_model()
    norms = [m for m in model.modules() if isinstance(m, ExemplarNorm)]
    assert len(norms) == 20 and norms[0].reduction == 32


INHERITING = """
import sys
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

cfg = Config.fromfile(sys.argv[1])
base = Config.fromfile(sys.argv[2], import_custom_modules=False)
register_all_modules()
found = {type(m).__name__ for m in MODELS.build(cfg.model).modules()}
assert "ExemplarNorm" in found and "my_package" in sys.modules
for part in ("train_dataloader", "val_dataloader", "test_dataloader"):
    dataset = cfg[part].dataset
    assert dataset.pop("data_root") == "data/mine" != base[part].dataset.pop("data_root")
    assert dataset == base[part].dataset and {"type", "data_prefix", "pipeline"} <= dataset.keys()
assert cfg.model.decode_head.num_classes == base.model.decode_head.num_classes == 150
assert cfg.train_cfg == base.train_cfg and cfg.param_scheduler == base.param_scheduler
"""


@pytest.mark.wide
@pytest.mark.parametrize("dropped", [False, True], ids=["both imports", "one's own alone"])
def test_a_config_that_inherits(tmp_path, dropped):
    pytest.importorskip("mmseg", reason="needs OpenMMLab")
    text, own = (found for found in blocks(OPENMMLAB, "python") if "_base_" in found)
    base = ROOT / "configs" / "mmseg" / "fcn_r50-d8_ade20k_en.py"
    assert '_base_ = "ilm_plugins::mmseg/' in text and '"ilm_plugins", "my_package"' in text
    # The process has not imported the package, like a framework's own tools.
    _, text = text.split("\n", 1)
    if dropped:
        own = f"_base_ = {str(base)!r}\n"
        text = text.replace('"ilm_plugins", "my_package"', '"my_package"')
    text = own + text
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "my_package.py").touch()
    done = fresh.run(
        [sys.executable, "-c", INHERITING, tmp_path / "mine.py", base],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert bool(done.returncode) == dropped, done.stderr
    assert ("Cannot find None in registry" in done.stderr) == dropped


def test_readmes_table_of_layers():
    """Every layer has a row; the last column counts parameters beside a scale and a shift."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|.*\| ([\d,]+) \|$", README.read_text(), re.M)
    expected = set()
    for key, layer in NORMS.items():
        more = sum(p.numel() for p in layer(256).parameters()) - 2 * 256
        expected.add((key, layer.__name__, f"{more:,}"))
    assert len(rows) == len(NORMS) and set(rows) == expected
