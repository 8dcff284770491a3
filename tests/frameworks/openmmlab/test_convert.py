"""Checkpoints of OpenMMLab for models with other norms: the same outputs, and fine-tuning."""

import pytest
import torch

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

from mmdet.structures import DetDataSample
from mmengine.model import revert_sync_batchnorm
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm

from ilm_plugins import ExemplarNorm, ILMGroupNorm, surgery
from ilm_plugins.checkpoints import read, write
from ilm_plugins.cli import convert, train_net
from ilm_plugins.cli.convert import build_model
from ilm_plugins.data.images import open_images
from ilm_plugins.reproduction import miniature
from runs import MMENGINE_CONFIG, write_class_folders
from swaps import change, randomized

FOLDER = "configs/mmdet/shapes/mask-rcnn_r18_fpn_gn_shapes"
NORMS = [f"roi_head.bbox_head.shared_convs.{i}.gn" for i in range(4)]


def run(*words):
    return convert.main([str(word) for word in words])


def train(root, datasets, norm, out, *opts):
    """One iteration of the small Mask R-CNN; its checkpoint."""
    config = str(root / f"{FOLDER}_{norm}.py")
    few = [*miniature.overrides(config, datasets), "train_cfg.max_iters=1", f"work_dir={out}"]
    assert train_net.main(["--config-file", config, "--num-gpus", "0", *few, *opts]) == 0
    return out / "iter_1.pth"


def write_config(path, norm):
    """A config of the small segmenter with another norm."""
    path.write_text(MMENGINE_CONFIG.replace('dict(type="ILMGN", num_groups=4)', norm))
    return path


BN, EN = 'dict(type="BN")', 'dict(type="EN", reduction=8)'


@pytest.fixture
def configs(tmp_path):
    """Configs of the small segmenter with BN and with EN."""
    return [write_config(tmp_path / f"{name}.py", norm) for name, norm in (("bn", BN), ("en", EN))]


def save(model, path):
    write({"state_dict": model.state_dict(), "meta": {"epoch": 1}}, path)
    return path


@torch.no_grad()
def outputs(model, picture):
    """Boxes and scores of an image, and the box head's scores of all proposals."""
    found = {}
    hook = model.roi_head.bbox_head.register_forward_hook(
        lambda module, inputs, output: found.update(logits=output[0], deltas=output[1])
    )
    sample = DetDataSample(
        metainfo={"img_shape": (64, 64), "ori_shape": (64, 64), "scale_factor": (1.0, 1.0)}
    )
    data = {"inputs": [picture], "data_samples": [sample]}
    (result,) = model.eval().test_step(data)
    hook.remove()
    found |= {name: result.pred_instances[name] for name in ("bboxes", "scores")}
    assert len(found["scores"]) > 0
    return found


@pytest.mark.wide
def test_a_gn_checkpoint_evaluates_the_same_and_fine_tunes(root, datasets, tmp_path, capsys):
    trained = train(root, datasets, "gn", tmp_path / "gn", "param_scheduler=None")
    converted = tmp_path / "ilmgn.pth"
    capsys.readouterr()
    assert run(trained, converted, "--config-file", root / f"{FOLDER}_ilmgn.py") == 0
    printed = capsys.readouterr().out
    names = "".join(f"    {name}\n" for name in NORMS)
    assert f"converted, GN or IN -> ILMGroupNorm (4):\n{names}" in printed
    assert "left" not in printed and "missing" not in printed
    dropped = printed.split("this format cannot store it): ")[1].splitlines()[0].split(", ")
    assert {"optimizer", "message_hub", "meta.cfg"} <= {*dropped}
    contents = read(converted)
    classes, expected = (c["meta"]["dataset_meta"]["classes"] for c in (contents, read(trained)))
    assert classes == expected

    plain, model = (build_model(str(root / f"{FOLDER}_{norm}.py")) for norm in ("gn", "ilmgn"))
    plain.load_state_dict(read(trained)["state_dict"])
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    before = outputs(plain, picture)
    model.load_state_dict(contents["state_dict"])
    assert all(type(model.get_submodule(name)) is ILMGroupNorm for name in NORMS)
    after = outputs(model, picture)
    assert max(change(value, after[name]) for name, value in before.items()) <= 1e-6

    tuned = train(root, datasets, "ilmgn", tmp_path / "tuned", f"load_from={converted}")
    state = read(tuned)["state_dict"]
    assert any(state[f"{name}.decode_var.weight"].any() for name in NORMS)
    assert all(state[f"{name}.omega_offset"] == 0.5 for name in NORMS)
    start = contents["state_dict"]["backbone.conv1.weight"]
    assert (state["backbone.conv1.weight"] - start).abs().max() < 0.1


def test_batchnorm_is_found_under_the_name_of_its_type(configs, tmp_path, capsys):
    bn, en = configs
    plain = randomized(build_model(str(bn))).eval()
    assert run(save(plain, tmp_path / "bn.pth"), tmp_path / "en.pth", "--config-file", en) == 0
    printed = capsys.readouterr().out
    assert "left" not in printed and "missing" not in printed
    assert "    backbone.layer1.0.gn1\n" in printed and "    decode_head.convs.0.gn\n" in printed
    model = build_model(str(en)).eval()
    model.load_state_dict(read(tmp_path / "en.pth")["state_dict"])
    assert type(model.backbone.gn1) is ExemplarNorm
    x = torch.randn(1, 3, 64, 64)
    assert change(plain._forward(x), model._forward(x)) <= 1e-6


def test_what_the_file_lacks_is_printed(configs, tmp_path, capsys):
    bn, en = configs
    en.write_text(en.read_text().replace("num_convs=1", "num_convs=2"))
    file = save(build_model(str(bn)), tmp_path / "bn.pth")
    assert run(file, tmp_path / "en.pth", "--config-file", en) == 0
    added = build_model(str(en)).decode_head.convs[1].state_dict()
    names = [name for name in added if not name.endswith("num_batches_tracked")]
    listed = "".join(f"    decode_head.convs.1.{name}\n" for name in names)
    assert f"missing ({len(names)}):\n{listed}note, " in capsys.readouterr().out


@pytest.mark.parametrize("plain_first", [False, True])
def test_a_segmenter_of_sync_batchnorm_is_converted_in_place(tmp_path, plain_first):
    config = write_config(tmp_path / "config.py", 'dict(type="SyncBN")')
    model = randomized(build_model(str(config))).eval()
    norms = [name for name, m in model.named_modules() if isinstance(m, SyncBatchNorm)]
    assert len(norms) == 21
    if plain_first:
        model = revert_sync_batchnorm(model)
    x = torch.randn(1, 3, 64, 64)
    expected = model._forward(x)
    model, report = surgery.convert(model, "EN", reduction=8)
    assert [*report.converted] == norms and not report.left
    assert all(type(model.get_submodule(name)) is ExemplarNorm for name in norms)
    assert change(expected, model._forward(x)) <= 1e-6
    model, report = surgery.revert(model)
    assert [*report.converted] == norms and not report.left
    assert change(expected, model._forward(x)) <= 1e-6


def test_a_backbone_alone(configs, tmp_path, capsys):
    """As pretrained ones are: BatchNorm's names become those of EN, and its weights are loaded."""
    bn, en = configs
    plain = randomized(build_model(str(bn))).eval().backbone
    words = [save(plain, tmp_path / "bn.pth"), tmp_path / "en.pth", "--config-file", en]
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert "INPUT is not of the whole model, but of its backbone; give --part backbone" in error
    assert run(*words, "--part", "neck") == 2
    assert "--part neck: AttributeError: " in capsys.readouterr().err
    assert run(*words[:2], "--to", "EN", "--part", "backbone") == 2
    assert "needs --config-file" in capsys.readouterr().err
    assert run(*words, "--part", "backbone") == 0
    init = (
        f"model.backbone.init_cfg={{'type': 'Pretrained', 'checkpoint': '{tmp_path / 'en.pth'}'}}"
    )
    model = build_model(str(en), [init]).eval()
    model.backbone.init_weights()
    assert type(model.backbone.gn1) is ExemplarNorm
    x = torch.randn(1, 3, 64, 64)
    for before, after in zip(plain(x), model.backbone(x), strict=True):
        assert change(before, after) <= 1e-6


def test_mistakes_in_configs(tmp_path, capsys):
    write({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "in.pth")
    for text, words in (
        ("_base_ = []\nlr = 3\n", "does not define model"),
        ("model = dict(type='NoSuchModel')\n", "cannot be built: KeyError: 'NoSuchModel"),
    ):
        (tmp_path / "config.py").write_text(text)
        options = ["--config-file", tmp_path / "config.py"]
        assert run(tmp_path / "in.pth", tmp_path / "out.pth", *options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and words in error


RESNET20 = "configs/mmpretrain/en/resnet20_cifar10_{}.py"


def test_running_statistics_of_images(root, tmp_path, capsys):
    pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
    bn, sn = (str(root / RESNET20.format(norm)) for norm in ("bn", "sn"))
    folder = write_class_folders(tmp_path, each=2, height=32)
    plain = randomized(build_model(bn))
    words = "--config-file", sn, "--recalibrate", folder, "--batch-size", 2
    assert run(save(plain, tmp_path / "bn.pth"), tmp_path / "sn.pth", *words) == 0
    printed = capsys.readouterr().out
    assert "converted, BN -> SwitchNorm, running statistics of 2 batches (19):" in printed
    model = build_model(sn).eval()
    state = read(tmp_path / "sn.pth")["state_dict"]
    model.load_state_dict(state)
    maps = []
    model.backbone.stem.conv.register_forward_hook(lambda _, __, output: maps.append(output))
    for batch in open_images(folder).batches(2):
        pixels = torch.stack([torch.tensor(image).permute(2, 0, 1) for image in batch])
        model(**model.data_preprocessor({"inputs": pixels.float()}))
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    torch.testing.assert_close(state["backbone.stem.gn.running_mean"], mean, rtol=1e-5, atol=1e-5)
    var = torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0)
    torch.testing.assert_close(state["backbone.stem.gn.running_var"], var, rtol=1e-5, atol=1e-5)

    # Of a checkpoint that fits already, too.
    words = *words[:-1], 4
    assert run(tmp_path / "sn.pth", tmp_path / "again.pth", *words) == 0
    assert "converted, running statistics of 1 batch (19):" in capsys.readouterr().out
    del state["backbone.stem.conv.weight"]
    write(state, tmp_path / "part.pth")
    assert run(tmp_path / "part.pth", tmp_path / "none.pth", *words) == 2
    error = capsys.readouterr().err
    assert "INPUT has no matching backbone.stem.conv.weight" in error and error.count("\n") == 1
