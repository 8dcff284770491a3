"""The documentation: it builds, its figures are up to date, its examples and commands run."""

import argparse
import html
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ilm_plugins import ExemplarNorm, ILMGroupNorm

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    return [text for found, text in BLOCK.findall(page.read_text("utf-8")) if found == language]


#: Page of a layer -> what its equation has.
EQUATIONS = {
    "ilm": r"\tanh(W_2",
    "assocnorm": r"\tanh(W_3",
    "en": r"\lambda_{nk}",
    "sn": r"\lambda'_k",
}
MATH = r'<div class="math[^>]*>(.*?)</div>'


@pytest.mark.wide
def test_the_site_builds_without_warnings(tmp_path):
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason=f"needs {package}")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, ROOT / "docs", tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    for name, equation in EQUATIONS.items():
        page = (tmp_path / "layers" / f"{name}.html").read_text("utf-8")
        page = html.unescape(page)
        assert f"{name}.svg" in page, name
        assert any(equation in math for math in re.findall(MATH, page, re.DOTALL)), name


def test_drawings_are_as_drawn():
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    for name, figure in draw.DRAWN.items():
        committed = (draw.FIGURES / f"{name}.svg").read_text("utf-8")
        assert committed == draw.draw(figure), f"{name}: run python docs/draw.py"


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


WORKED_EXAMPLE = ROOT / "docs" / "adding-a-normalizer.md"
IN_FRAMEWORKS = """
from ilm_plugins.integrations import installed

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
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True)
    assert done.stdout.endswith("ran to the end\n"), done.stderr


def test_the_worked_example_can_fail():
    code = "\n".join(blocks(WORKED_EXAMPLE, "python"))
    broken = code.replace("(1 - rho) * (mean - layer_mean)", "rho * (mean - layer_mean)")
    assert broken != code
    done = subprocess.run([sys.executable, "-"], input=broken, capture_output=True, text=True)
    assert "AssertionError" in done.stderr


#: Entry point -> the tests that run it, by the words with which they do.
RUN_BY = {
    "tools/train_net.py": ("tests/faults.py", "training.main("),
    "tools/make_shapes.py": ("tests/data/test_shapes.py", "make_shapes"),
    "tools/convert.py": ("tests/test_convert.py", "convert.main("),
    "tools/translate.py": ("tests/integrations/openmmlab/test_translation.py", "translate.main("),
    "tools/evaluate_images.py": ("tests/evaluation/test_images.py", "images.main("),
    "tools/analyze.py": ("tests/integrations/test_analyze.py", "main("),
    "tools/reproduce.py": ("tests/reproduction/test_running.py", 'main(["run"'),
    "-m ilm_plugins": ("tests/integrations/test_report.py", '"-m", "ilm_plugins"'),
    "pip install": ("tests/test_packaging.py", "wheel"),
    "make": ("Makefile", ""),
}


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
    entry = next((name for name in RUN_BY if name in command), None)
    assert entry, f"{page}: no test is known to run {command!r}"
    test, call = RUN_BY[entry]
    assert call in (ROOT / test).read_text("utf-8"), f"{test} does not run {entry}"


#: What tools need before they look at their command line.
NEEDS = {
    "tools/analyze.py": "matplotlib",
    "tools/evaluate_images.py": "PIL",
    "tools/make_shapes.py": "shapely",
    "tools/translate.py": "mmengine",
}
OF_TOOLS = [(page, command) for page, command in commands() if "tools/" in command]


class Parsed(Exception):
    """A command line was read."""


def parsed(command, monkeypatch):
    """What a tool makes of its command line."""
    python, tool, *options = shlex.split(command)
    assert python == "python"
    if tool in NEEDS:
        pytest.importorskip(NEEDS[tool], reason=f"{tool} needs {NEEDS[tool]}")
    monkeypatch.setattr(sys, "argv", [tool, *options])
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def then_stop(*args, parse=parse):
            raise Parsed(parse(*args))

        monkeypatch.setattr(argparse.ArgumentParser, name, then_stop)
    with pytest.raises(Parsed) as found:
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
    ],
)
def test_commands_that_tools_do_not_understand_are_found(command, monkeypatch):
    with pytest.raises((SystemExit, AssertionError)):
        check_overrides(parsed(command, monkeypatch))


def test_readmes_yaml_gives_a_box_head_and_an_fpn(tmp_path):
    pytest.importorskip("detectron2", reason="needs detectron2")
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    (text,) = blocks(README, "yaml")
    (tmp_path / "readme.yaml").write_text(text)
    cfg = get_cfg()
    cfg.merge_from_file(
        str(ROOT / "configs" / "detectron2" / "shapes" / "mask_rcnn_R_18_FPN_gn.yaml")
    )
    cfg.merge_from_file(str(tmp_path / "readme.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    convs, fcs = model.roi_heads.box_head.conv_norm_relus, model.roi_heads.box_head.fcs
    assert [type(conv.norm) for conv in convs] == [ILMGroupNorm] * 4 and len(fcs) == 1
    norm = model.backbone.fpn_output2.norm
    assert type(norm) is ExemplarNorm and norm.reduction == 16


def test_readmes_norm_cfg_gives_a_segmenter(tmp_path):
    pytest.importorskip("mmseg", reason="needs OpenMMLab")
    from ilm_plugins.integrations.convert import build_model

    (text,) = (text for text in blocks(README, "python") if "custom_imports" in text)
    base = ROOT / "configs" / "mmseg" / "shapes" / "fcn_r18-d8_shapes_bn.py"
    (tmp_path / "readme.py").write_text(f"_base_ = {str(base)!r}\n{text}")
    model = build_model(str(tmp_path / "readme.py"))
    for part in (model.backbone, model.decode_head, model.auxiliary_head):
        found = {type(m) for m in part.modules() if "Norm" in type(m).__name__}
        assert found == {ExemplarNorm}, part
    assert model.decode_head.convs[0].norm.reduction == 32
