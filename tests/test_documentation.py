"""The documentation: it builds, its figures are up to date, its examples and commands run."""

import argparse
import copy
import doctest
import hashlib
import html
import inspect
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import fresh
import ilm_plugins.__main__
from benchmarks import report as benchmark
from ilm_plugins import NORMS, ExemplarNorm, ILMGroupNorm, SparseSwitchNorm, surgery
from ilm_plugins.layers import parse_norm
from ilm_plugins.layers.autoencoder import AutoencoderNorm
from ilm_plugins.ops import cpu
from ilm_plugins.reproduction import record, registry
from runs import NEEDS
from swaps import SINGLE, change, randomized

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


#: Page of a layer -> its class, and a part of its equation as the browser draws it.
LAYER_PAGES = {
    "ilm": ("ILMGroupNorm", "β=tanh(W2ReLU(W1μ))"),
    "assocnorm": ("AssocNorm", "ω=sigmoid(W2ReLU(W1μ))"),
    "en": ("ExemplarNorm", "λnk"),
    "sn": ("SwitchNorm", "λ=softmax(w)"),
    "ssn": ("SparseSwitchNorm", "max(1,"),
    "an": ("AttentiveNorm", "a=hardsigmoid(Aμ"),
}


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
    for name, (layer, equation) in LAYER_PAGES.items():
        page = (tmp_path / "layers" / f"{name}.html").read_text("utf-8")
        drawn = re.findall('<div class="math">(.*?)</div>', page, re.DOTALL)
        assert any(equation in text_of(math) for math in drawn), name
        assert ".svg" in page and f".{layer}(num_channels:int," in text_of(page), name
        assert "Shape: " in page and "Raises<" in page, name
        for option in inspect.signature(getattr(ilm_plugins, layer)).parameters:
            assert f"<strong>{option}</strong>" in page, (name, option)
    pages = "".join(page.read_text("utf-8") for page in tmp_path.glob("**/*.html"))
    assert "$$" not in pages and r"\(" not in pages, "an equation as LaTeX"
    for module in (ilm_plugins, surgery):
        for public in module.__all__:
            assert f'id="{module.__name__}.{public}"' in pages, public


def test_drawings_are_as_drawn():
    draw = runpy.run_path(str(ROOT / "docs" / "draw.py"))
    for name, figure in draw["DRAWN"].items():
        committed = (draw["FIGURES"] / f"{name}.svg").read_text("utf-8")
        assert committed == draw["draw"](figure), f"{name}: run python docs/draw.py"


def test_the_readme_takes_ten_minutes():
    assert len(README.read_text("utf-8").splitlines()) <= 200


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


def figures(stem):
    """The figures of a record, by its file's name; under "mean" those of the mean image."""
    found = record.read(ROOT / "reports" / "records" / f"{stem}.json")
    return {**found["figures"], "mean": found.get("references", {}).get("mean training image")}


def paper_gain(better, worse):
    """How much more one row of the papers has than another, in its first measure."""
    return registry.find_cell(better).paper[0] - registry.find_cell(worse).paper[0]


def quotes():
    """Page -> sentences in it, with figures of records."""
    norms = ("BN", "SN", "EN")
    bn, sn, en = full = [figures(f"en-5-ResNet20-{norm}-seed0")["top-1"] for norm in norms]
    papers = [registry.find_cell(f"en-5 ResNet20/{norm}").paper[0] for norm in norms]
    below = [paper - ours for paper, ours in zip(papers, full, strict=True)]
    facades = [figures(f"ilm-6-{norm}-IN-seed0-8db0c756") for norm in ("IN", "ILM+IN")]
    columns = ("RMSE", "RMSE of RGB vectors", "SSIM", "L1")
    plain, ilm, mean = (
        [one[column] for column in columns] for one in (*facades, facades[0]["mean"])
    )
    gn, ilmgn = json.loads((ROOT / "docs" / "demo.json").read_text("utf-8"))["results"]
    cost, paper = (
        figures("en-2-cost-ResNet50-EN"),
        registry.find_cell("en-2-cost ResNet50/EN").paper,
    )
    models = json.loads(benchmark.RECORD.read_text("utf-8"))["models"]
    steps = [row["over baseline"][0] for row in models]
    tutorial = json.loads((ROOT / "docs" / "tutorial" / "record.json").read_text("utf-8"))
    on_photos = tutorial["segmenter"]["on photos"]
    return {
        ROOT / "docs" / "tutorial.md": [
            "{} photos, with {} held out: `detector.py`".format(*tutorial["photos"]),
            "box AP {} on its training photos and {} on the others".format(*tutorial["GN"]),
            "converted to ILM+GN, {} and {} again".format(*tutorial["converted"]),
            "400 iterations with ILM+GN, {} and {}.".format(*tutorial["ILM+GN"]),
            f"box AP {tutorial['detector']['GN']} after 300 iterations with GN",
            f"box AP {tutorial['detector']['ILM+GN']} after another 300 with ILM+GN",
            "{} photos, with {} held out, people".format(*on_photos["photos"]),
            "mIoU {:.1f} on its training photos and {:.1f} on the others".format(*on_photos["BN"]),
            "converted to EN, {:.1f} and {:.1f} again".format(*on_photos["converted"]),
            "400 iterations with EN, {:.1f} and {:.1f}.".format(*on_photos["EN"]),
            f"mIoU {tutorial['segmenter']['BN']:.1f} after 200 iterations with BN",
            f"mIoU {tutorial['segmenter']['EN']:.1f} after another 200 with EN",
        ],
        ROOT / "docs" / "translation.md": [
            "an RMSE of {:.1f} ({:.1f} over vectors), an SSIM of {:.3f} and an L1 of {:.1f} on the "
            "200 test images, ".format(*plain)
            + "ILM+IN / IN {:.1f} ({:.1f}), {:.3f} and {:.1f}; ".format(*ilm)
            + "the mean training image has {:.1f} ({:.1f}), {:.3f} and {:.1f}.".format(*mean),
        ],
        ROOT / "docs" / "reproduction" / "index.md": [
            "BN is {:.1f} % below the paper, SN {:.1f} % and EN {:.1f} %,".format(*below),
            f"SN gains {sn - bn:.1f} % over BN here, {papers[1] - papers[0]:.1f} % in the paper, "
            f"and EN {en - bn:.1f} % and {papers[2] - papers[0]:.1f} %;",
        ],
        README: [
            f"box AP {gn['box AP']:.1f} and mask AP {gn['mask AP']:.1f} with GN, "
            f"{ilmgn['box AP']:.1f} and {ilmgn['mask AP']:.1f} with ILM+GN",
            "ResNet-20 on CIFAR-10 re-encoded as JPEG, {:.1f} % with BN, {:.1f} % with SN and "
            "{:.1f} % with EN; the paper has {:.1f} %, {:.1f} % and {:.1f} % on the original images"
            "".format(*full, *papers),
            f"{paper_gain('ilm-5 ILM+GN, batch 2', 'ilm-5 GN, batch 2'):+.1f} box AP for ILM+GN "
            "over GN in box heads (COCO), and for EN in ResNet-50 "
            f"{paper_gain('en-2 ResNet50/EN', 'en-2 ResNet50/BN'):+.1f} % top-1 over BN (ImageNet) "
            f"and {paper_gain('en-6 ADE20K/EN', 'en-6 ADE20K/SyncBN'):+.1f} mIoU over SyncBN",
            f"takes {min(steps):.2f} to {max(steps):.2f} times as long as with the plain norm",
            f"ResNet-50 with EN has {cost['parameters']:.2f} M parameters and "
            f"{cost['GFLOPs']:.3f} GFLOPs here, {paper[0]} M and {paper[1]} in the paper",
        ],
    }


#: A measured figure: an accuracy, a score or a cost.
MEASURED = re.compile(r"\d ?%|\b(AP|mIoU|RMSE|SSIM|L1|accuracy)( of)? \d|\d (M|GFLOPs)\b")


def test_measured_figures_are_those_of_records():
    """In pages, but for code and the benchmark's tables, and in the comments of configs."""
    quoted = quotes()
    for page in [*PAGES, *ROOT.glob("configs/**/*.py"), *ROOT.glob("configs/**/*.yaml")]:
        text = page.read_text("utf-8")
        if page.suffix != ".md":
            text = "\n".join(line for line in text.splitlines() if line.startswith("#"))
        text = re.sub(r"<!-- benchmark.*?<!-- end -->", "", text, flags=re.DOTALL)
        text = " ".join(BLOCK.sub("", text).split())
        for sentence in quoted.get(page, []):
            assert sentence in text, f"{page.name}: records give {sentence!r}"
            text = text.replace(sentence, "")
        left = [text[m.start() - 40 : m.end() + 40] for m in MEASURED.finditer(text)]
        assert not left, f"{page.name}: no record is known of {left}"


def test_the_demos_picture_is_that_of_its_record():
    demo = json.loads((ROOT / "docs" / "demo.json").read_text("utf-8"))
    assert [one["norm"] for one in demo["results"]] == ["GN", "ILMGN"]
    assert re.fullmatch("[0-9a-f]{12}", demo["commit"])
    picture = (ROOT / "docs" / "demo.png").read_bytes()
    assert demo["picture"] == hashlib.sha256(picture).hexdigest()


def test_numbers_on_ratios_are_those_of_summaries():
    """Each section links the picture, and the summary that a command wrote beside it."""
    folder = ROOT / "docs" / "figures"
    linked = set()
    for section in (ROOT / "docs" / "learned.md").read_text("utf-8").split("### ")[1:]:
        names = set(re.findall(r"figures/(\w+\.(?:png|txt))", section))
        linked |= names
        summaries = "".join((folder / name).read_text("utf-8") for name in names if ".txt" in name)
        text = re.sub("`[^`]*`", "", BLOCK.sub("", section))
        for number in re.findall(r"\d\.\d+", text):
            assert re.search(rf"\s{re.escape(number)}\s", summaries), number
    assert linked == {p.name for p in folder.iterdir() if p.suffix in (".png", ".txt")}


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
    names = {**vars(ilm_plugins), "torch": torch}
    (example,) = doctest.DocTestFinder(recurse=False).find(layer, globs=names)
    assert example.examples and not doctest.DocTestRunner().run(example).failed


@pytest.mark.parametrize("key", NORMS)
def test_what_outputs_start_as(key):
    """As docs/why-did-my-result-change.md says: 1.5 or 5 times the norm's; 1/2 at a weight of 0."""
    torch.manual_seed(0)
    x, layer = torch.randn(8, 256, 14, 14), NORMS[key](256)
    from_autoencoder = isinstance(layer, AutoencoderNorm)
    expected = 1.5 if from_autoencoder else 5.0 if key == "AN" else 1.0
    torch.testing.assert_close(layer(x).std().item(), expected, rtol=0.05, atol=0)
    with torch.no_grad():
        layer.weight.zero_()
    if key != "AN":  # whose pairs add a shift
        found = layer(x).std(dim=(2, 3)).mean().item()
        torch.testing.assert_close(found, 0.5 if from_autoencoder else 0.0, rtol=0.05, atol=0)


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


OF_TOOLS = [
    (page, command)
    for page, command in commands()
    if "tools/" in command or command.startswith("python -m ilm_plugins ")
]


class Parsed(Exception):
    """A command line was read."""


def parsed(command, monkeypatch):
    """What a tool, or the command that it stands for, makes of its command line."""
    python, tool, *options = shlex.split(command)
    assert python == "python"
    if tool == "-m":
        package, name, *options = options
        assert package == "ilm_plugins"
    else:
        name = Path(tool).stem.replace("_", "-")
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs {NEEDS[name]}")
    monkeypatch.setattr(sys, "argv", [tool, *options])
    for method in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, method)

        def then_stop(parser, *args, parse=parse):
            args = parse(parser, *args)
            if parser.prog == "python -m ilm_plugins":  # it has the command's name alone
                return args
            raise Parsed(args)

        monkeypatch.setattr(argparse.ArgumentParser, method, then_stop)
    with pytest.raises(Parsed) as found:
        if tool == "-m":
            ilm_plugins.__main__.main([name, *options])
        else:
            runpy.run_path(str(ROOT / tool), run_name="__main__")
    return found.value.args[0]


def check_overrides(args):
    """Options behind overrides would be taken for some; .yaml has pairs, .py has KEY=VALUE."""
    overrides = getattr(args, "opts", None) or getattr(args, "overrides", None) or []
    assert not [word for word in overrides if word.startswith("--")]
    if overrides and args.config_file.endswith(".yaml"):
        assert not len(overrides) % 2 and not any("=" in key for key in overrides[::2])
    elif overrides:
        assert all("=" in word for word in overrides)


@pytest.mark.parametrize("page, command", OF_TOOLS)
def test_tools_understand_their_commands(page, command, monkeypatch):
    check_overrides(parsed(command, monkeypatch))


@pytest.mark.parametrize(
    "command",
    [
        "python tools/convert.py a.pth b.pth --to EN --revert",
        "python tools/convert.py a.pth b.pth --config-file a.yaml MODEL.FPN.NORM=EN",
        "python tools/train_net.py --config-file a.yaml OUTPUT_DIR a --num-gpus 1",
        "python tools/train_net.py --config-file a.py work_dir a",
        "python tools/train_net.py --config-file a.py --gpus 1",
        "python tools/reproduce.py report --miniature",
        "python -m ilm_plugins convert a.pth b.pth --to EN --revert",
    ],
)
def test_commands_that_tools_do_not_understand_are_found(command, monkeypatch):
    with pytest.raises((SystemExit, AssertionError)):
        check_overrides(parsed(command, monkeypatch))


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
    from ilm_plugins.cli.convert import build_model

    text = block(README, "python", "auxiliary_head")
    assert text == block(OPENMMLAB, "python", "auxiliary_head")
    base = ROOT / "configs" / "mmseg" / "shapes" / "fcn_r18-d8_shapes_bn.py"
    (tmp_path / "readme.py").write_text(f"_base_ = {str(base)!r}\n{text}")
    model = build_model(str(tmp_path / "readme.py"))
    for part in (model.backbone, model.decode_head, model.auxiliary_head):
        found = {type(m) for m in part.modules() if "Norm" in type(m).__name__}
        assert found == {ExemplarNorm}, part
    assert model.decode_head.convs[0].norm.reduction == 32


def test_readmes_norm_cfg_gives_a_classifier_whose_config_names_no_norm(tmp_path):
    pytest.importorskip("mmpretrain", reason="needs OpenMMLab")
    from ilm_plugins.cli.convert import build_model

    settings, _, _ = block(README, "python", "auxiliary_head").partition("model = ")
    model = "dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18))"
    (tmp_path / "base.py").write_text(f"default_scope = 'mmpretrain'\nmodel = {model}")
    (tmp_path / "readme.py").write_text(
        f"_base_ = 'base.py'\n{settings}model = dict(backbone=dict(norm_cfg=norm_cfg))"
    )
    model = build_model(str(tmp_path / "readme.py"))
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


def test_options_for_other_widths():
    found = re.findall(r"""`"(\w+\([^"]*='auto'\))"`""", DETECTRON2.read_text("utf-8"))
    parsed = dict(map(parse_norm, found))
    assert parsed.keys() == NORMS.keys() - {"SN", "SSN"}
    for key, options in parsed.items():
        for channels in (3, 24, 144):
            assert NORMS[key](channels, **options).num_channels == channels


@pytest.mark.parametrize(
    "library, family, way",
    [
        ("torchvision", "resnet18", "norm_layer"),
        ("torchvision", "shufflenet_v2_x0_5", "convert"),
        ("timm", "deit_tiny_patch16_224", "no"),
        pytest.param("mmpretrain", "seresnet/seresnet50*", "norm_cfg", marks=pytest.mark.wide),
    ],
)
def test_ways_of_giving_families_a_norm(library, family, way):
    pytest.importorskip(library, reason=f"needs {library}'s models")
    families = runpy.run_path(str(ROOT / "docs" / "families.py"))
    found = families["outcome"](library, family, "ILMGN")
    assert found.partition(":")[0] == way
    page = families["table"]({f"{library}/{family}": {"ILMGN": found}})
    assert f"| {family.partition('/')[0]} | {way}" in page
    both = families["table"]({f"{library}/{family}": {"ILMGN": found, "EN": "no: it fails"}})
    assert f"{found.replace('ILMGroupNorm: ', '')[:30]}" in page
    assert "no: it fails (EN) |" in both


def test_the_page_on_families_is_that_of_its_results():
    families = runpy.run_path(str(ROOT / "docs" / "families.py"))
    results = json.loads((ROOT / "docs" / "families.json").read_text("utf-8"))
    assert families["table"](results) == (ROOT / "docs" / "families.md").read_text("utf-8")
    trained = sum(not any(r.startswith("no: ") for r in row.values()) for row in results.values())
    words = f"Of {len(results)} [model families](docs/families.md), {trained} ran a training step"
    assert words in README.read_text("utf-8")


def test_readmes_table_of_layers():
    """Every layer has a row; the last column counts parameters beside a scale and a shift."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|.*\| ([\d,]+) \|$", README.read_text(), re.M)
    expected = set()
    for key, layer in NORMS.items():
        more = sum(p.numel() for p in layer(256).parameters()) - 2 * 256
        expected.add((key, layer.__name__, f"{more:,}"))
    assert len(rows) == len(NORMS) and set(rows) == expected


@pytest.mark.wide
def test_the_way_to_script_a_detector():
    pytest.importorskip("detectron2", reason="needs detectron2")
    from detectron2.config import get_cfg
    from detectron2.export import scripting_with_instances
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes

    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs/detectron2/shapes/mask_rcnn_R_18_FPN_ilmgn.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.FPN.NORM = "cpu", "EN(reduction=16)"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    boxes, tensors = ("proposal_boxes", "pred_boxes"), ("objectness_logits", "scores")
    fields = {**dict.fromkeys(boxes, Boxes), **dict.fromkeys(tensors, torch.Tensor)}
    fields |= {"pred_classes": torch.Tensor, "pred_masks": torch.Tensor}

    text = block(ROOT / "docs" / "interoperability.md", "python", "torch.jit.trace")
    assert "scripted = torch.jit.script(model)" in text
    text = text.replace("torch.jit.script(model)", "scripting_with_instances(model, fields)")
    names = {"copy": copy, "torch": torch, "ilm_plugins": ilm_plugins, "model": model}
    names |= {"scripting_with_instances": scripting_with_instances, "fields": fields}
    exec(text, names)
    images = [{"image": 255 * torch.rand(3, 96, 128)}]
    with torch.no_grad():
        (theirs,) = names["scripted"].inference(images, do_postprocess=False)
        (ours,) = model.inference(images, do_postprocess=False)
    assert len(ours) > 10
    torch.testing.assert_close(theirs.pred_boxes.tensor, ours.pred_boxes.tensor)
    torch.testing.assert_close(theirs.scores, ours.scores)


def test_the_way_to_convert_timms_norms_with_activations():
    timm = pytest.importorskip("timm", reason="needs timm")
    built = []

    class Timm:
        layers = timm.layers

        @staticmethod
        def create_model(name):
            torch.manual_seed(0)
            model = randomized(timm.create_model(name, num_classes=3)).eval()
            built.append(copy.deepcopy(model))
            return model

    text = block(ROOT / "docs" / "interoperability.md", "python", "BatchNormAct2d")
    names = {"timm": Timm, "nn": nn, "ilm_plugins": ilm_plugins}
    exec(text, names)
    assert len(names["report"].converted) == 34 and not names["report"].left
    x = torch.randn(2, 3, 64, 64)
    assert change(built[0](x), names["model"](x)) <= SINGLE


def test_the_way_to_keep_the_kernels_in_a_compiled_model(monkeypatch, own_forward):
    if not cpu.is_built():
        pytest.skip("needs the C kernels")
    called, call = [], cpu._call
    monkeypatch.setattr(cpu, "_call", lambda name, *args: called.append(name) or call(name, *args))
    text = block(ROOT / "docs" / "performance.md", "python")
    assert "torch.compile(model)" in text
    names, x = {}, torch.randn(2, 3, 8, 8)
    exec(text.replace("compile(model)", "compile(model, backend='eager')"), names)
    names["compiled"](x).sum().backward()
    assert called == ["forward", "backward"]
    # As for an exponential moving average: the copy computes with its own parameters.
    copied = copy.deepcopy(names["model"])
    nn.init.zeros_(copied[1].weight)
    assert not torch.equal(copied(x), names["model"](x))
