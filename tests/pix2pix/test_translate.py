"""Translation of a folder by a trained generator: sizes, halves of pairs, and what is refused."""

import shutil
import sys

import pytest

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")
pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

import torch
from mmengine.config import Config
from PIL import Image

import fresh
from ilm_plugins.cli import train_net
from ilm_plugins.frameworks.openmmlab.checkpoints import settings
from ilm_plugins.pix2pix import metrics, translate
from workers import Harmful


@pytest.fixture
def masks(tmp_path):
    """Three images of two sizes, one of which the depth allows."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for i, size in enumerate([(64, 64), (64, 64), (100, 70)]):
        Image.effect_noise(size, 80).convert("RGB").save(folder / f"{i}.png")
    return folder


@pytest.fixture
def argv(trained, masks, tmp_path):
    return [str(trained / "epoch_2.pth"), str(masks), str(tmp_path / "out")]


@pytest.fixture
def refused(capsys):
    """A function that returns the one line of a command that fails."""

    def run(argv):
        assert translate.main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert ": error: " in line
        return line

    return run


def test_a_folder_is_translated_batched_and_padded(argv, masks, tmp_path, capsys):
    *argv, out = argv
    for folder, options in ((out, []), (f"{out}-2", ["--batch-size", "2"])):
        assert translate.main([*argv, folder, *options]) == 0
        assert "2: 100 x 70 padded to 128 x 128, and cropped back" in capsys.readouterr().out
    for name, shape in (("0", (3, 64, 64)), ("1", (3, 64, 64)), ("2", (3, 70, 100))):
        one, two = (metrics.read(f"{folder}/{name}.png").int() for folder in (out, f"{out}-2"))
        assert one.shape == shape and (one - two).abs().max() <= 1
    model = translate.load_model(argv[0])
    expected = model.generator(metrics.read(masks / "0.png")[None] / 127.5 - 1)[0]
    assert torch.equal(metrics.read(f"{out}/0.png"), ((expected + 1) * 127.5).round().byte())


def test_halves_of_pairs_are_translated_as_in_evaluation(
    root, command, argv, trained, datasets, tmp_path
):
    checkpoint, _, out = argv
    folder = datasets / "shapes" / "pairs" / "validation"
    tool = [sys.executable, str(root / "tools" / "translate.py")]
    words = [*tool, checkpoint, str(folder), out, "--half", "right"]
    fresh.run(words, check=True)
    evaluated = shutil.copytree(trained, tmp_path / "evaluated")
    assert train_net.main(command("--eval-only", "--resume", out=evaluated)) == 0
    for path in (evaluated / "test" / "output").iterdir():
        assert torch.equal(metrics.read(path), metrics.read(f"{out}/{path.name}"))


@pytest.mark.parametrize(
    ("place", "word", "words"),
    [
        (0, "/none.pth", "checkpoint '/none.pth' does not exist"),
        (1, "/nowhere", "/nowhere: no such folder"),
        (2, "/dev/null/x", "output folder '/dev/null/x' cannot be written"),
        (3, "--batch-size=0", "--batch-size 0; give at least 1"),
        (3, "--device=cuda:77", "--device cuda:77: "),
    ],
)
def test_mistakes_of_translating(argv, refused, place, word, words):
    argv[place : place + 1] = [word]
    assert words in refused(argv)


def test_originals_are_never_overwritten(argv, masks, tmp_path, refused, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(masks)
    before = {path: path.read_bytes() for path in masks.iterdir()}
    for output in (masks, tmp_path / "link", tmp_path / "link" / ".." / "masks", "~/masks"):
        line = refused([*argv[:2], str(output)])
        assert line.endswith(f"error: OUTPUT {str(output)!r} is INPUT; give another folder")
    assert {path: path.read_bytes() for path in masks.iterdir()} == before


def test_unreadable_images_are_named_before_translating(argv, masks, refused, tmp_path):
    (masks / "1.png").write_text("none")
    assert "1 of 3 images cannot be used" in refused(argv)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_runs_no_code(argv, refused, tmp_path):
    trap, argv[0] = tmp_path / "ran", str(tmp_path / "evil.pth")
    torch.save({"state_dict": {}, "meta": Harmful(trap)}, argv[0])
    assert "holds os.makedirs, which may run code" in refused(argv)
    assert not trap.exists()
    assert "is not a checkpoint of a Pix2Pix" in refused([*argv, "--unsafe"])
    assert trap.exists()


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A folder that code makes which is never to run, where torch's variable lets code run."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "ran"


def test_code_in_what_a_checkpoint_says_of_its_model_is_not_run(argv, refused, tmp_path, trap):
    """Neither as Python nor as a type's name, nor by an import; nor where torch's variable asks."""
    call = f"__import__('os').makedirs({str(trap)!r}, exist_ok=True)"
    (tmp_path / "evil.py").write_text(call)
    contents = torch.load(argv[0], weights_only=False)
    text, argv[0] = contents["meta"]["cfg"], str(tmp_path / "evil.pth")

    def save(text, **others):
        torch.save({**contents, "meta": {"cfg": text}, **others}, argv[0])

    makes = f"dict(type='os.makedirs', name={str(trap)!r}, exist_ok=True)"
    for evil, words in (
        (f"{text}\n{call}\n", "is not a setting"),
        (f"{text}\nx = [{call}]\n", "has more than literals"),
        (f"{text}\nmodel = {makes}\n", "names 'os.makedirs'"),
        (f"{text}\nmodel = dict(type='Pix2Pix', generator={makes})\n", "names 'os.makedirs'"),
        (f"{text}\nmodel = dict(_scope_='evil')\n", "names None"),
    ):
        save(evil)
        line = refused(argv)
        assert f"'{argv[0]}'" in line and words in line and line.endswith("--unsafe")
    save(text, extra=Harmful(trap))
    assert "holds os.makedirs, which may run code" in refused(argv)
    assert not (tmp_path / "out").exists()

    save(f"{text}\ncustom_imports = dict(imports=['evil'])\n")
    assert translate.main(argv) == 0 and len(list((tmp_path / "out").iterdir())) == 3
    assert not trap.exists()
    assert translate.main([*argv, "--unsafe"]) == 0
    assert trap.exists()


def test_settings_are_what_mmengine_reads(root):
    """In all that its text of a config has, such as keys that are no names."""
    cfg = Config.fromfile(root / "configs" / "pix2pix" / "shapes_ilmin_in.py")
    cfg.paramwise_cfg = {"custom_keys": {"down.0": {"lr_mult": -0.5}}, "rest": [{"a.b": ()}, None]}
    expected = Config.fromstring(cfg.pretty_text, ".py").to_dict()
    assert settings(cfg.pretty_text) == expected and "dict({" in cfg.pretty_text
