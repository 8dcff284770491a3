"""Every shipped mmseg config: what it builds, the numbers of its recipe, and a step of training."""

from collections import Counter
from functools import partial

import pytest

pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from ilm_plugins import ExemplarNorm
from ilm_plugins.cli import train_net
from ilm_plugins.data import SHAPES, shapes
from ilm_plugins.frameworks.openmmlab import run_folder
from ilm_plugins.frameworks.openmmlab.train import load_config
from ilm_plugins.layers.projection import Projection
from ilm_plugins.reproduction import registry
from mmengine_configs import (
    build_model,
    claimed,
    load,
    norms,
    run,
    sizes,
    skeleton,
    step,
    training,
)
from recipes import ROOT, configs, recipe

ALL = configs("mmseg")
PAPERS = [config for config in ALL if "shapes" not in config]
SERVER = [config for config in ALL if "cityscapes-test" in config]
every_config = pytest.mark.parametrize("config", ALL)
every_paper = pytest.mark.parametrize("config", PAPERS)

#: Of each kind one, for a training step in the everyday suite.
KINDS = (
    *(f"fcn_r50-d8_ade20k_{norm}.py" for norm in ("sn", "en")),
    "deeplabv3_r50-d8_cityscapes_en.py",
    "shapes/fcn_r18-d8_shapes_bn.py",
)


@every_config
def test_the_file_names_norm_is_everywhere(config):
    model = skeleton(load("mmseg", config))
    layers = norms(model)
    assert {type(layer) for layer in layers.values()} == {claimed(config)}
    heads = 6 if "deeplabv3" in config else 1
    backbone = 20 if "shapes" in config else 53
    places = Counter(name.split(".")[0] for name in layers)
    assert places == {"backbone": backbone, "decode_head": heads, "auxiliary_head": 1}


@every_paper
def test_the_recipe_is_the_papers(config):
    cfg = load("mmseg", config)
    model = skeleton(cfg)
    found = {**training(cfg, model), **sizes(cfg)}
    layers = norms(model).values()
    assert cfg.param_scheduler.end == found["iterations"]
    found["groups"] = sorted({m.num_groups for m in layers if type(m) is nn.GroupNorm})
    found["statistics momentum"] = sorted({getattr(m, "momentum", None) for m in layers})
    for option in ("reduction", "expansion"):
        found[option] = sorted({getattr(m, option) for m in layers if type(m) is ExemplarNorm})
    backbone, decode, deep = model.backbone, model.decode_head, model.auxiliary_head
    found |= {
        "classes": model.num_classes,
        "depth": backbone.depth,
        "dilations": list(backbone.dilations),
        "output stride": 4 * int(np.prod(backbone.strides)),
        "align corners": decode.align_corners,
        "deep supervision": [deep.in_index, deep.channels, deep.loss_decode.loss_weight],
        "head": [getattr(decode, "num_convs", None), decode.channels],
    }
    expected = recipe("mmseg", config)
    assert len(expected) >= 20
    assert {name: found[name] for name in expected} == expected


@every_paper
def test_the_network_is_the_papers(config):
    model = skeleton(load("mmseg", config))
    backbone, deep = model.backbone, model.auxiliary_head
    # An ordinary stem, and dilations that begin in a stage's second block.
    assert (backbone.conv1.kernel_size, backbone.conv1.stride) == ((7, 7), (2, 2))
    stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    assert [s[0].conv2.dilation[0] for s in stages] == [1, 1, 1, 2]
    assert [s[1].conv2.dilation[0] for s in stages] == [1, 1, 2, 4]
    assert deep.in_channels == 1024 and model.decode_head.in_channels == 2048
    heads = [deep] if "deeplabv3" in config else [deep, model.decode_head]
    for part in heads:
        convs = [m for m in part.modules() if isinstance(m, nn.Conv2d)]
        assert {(c.kernel_size[0], c.out_channels) for c in convs} == {
            (3, 512),
            (1, model.num_classes),
        }
        assert part.dropout is None
    assert all(part.loss_decode.avg_non_ignore for part in (deep, model.decode_head))


@every_paper
def test_backbones_start_from_imagenet(config):
    init = load("mmseg", config).model.backbone.init_cfg
    norm = config.removesuffix(".py").rsplit("_", 1)[1]
    assert init.type == "Pretrained"
    trained, name = registry.find_cell(f"en-6 backbone/{norm}"), norm.removeprefix("sync")
    assert trained.config == f"configs/mmpretrain/en/resnet50_imagenet_{name}.py"
    assert init.checkpoint == f"checkpoints/resnet50_imagenet_8xb32_{name}.pth"
    # As tools/reproduce.py takes it, so that both ways start from one recipe.
    override = dict(word.split("=") for word in run_folder.start_overrides(init.checkpoint))
    assert override["model.backbone.init_cfg.prefix"] == repr(init.prefix)
    cells = [c for c in registry.cells() if c.config == f"configs/mmseg/{config}" and not c.tests]
    assert [cell.starts_from for cell in cells] == [trained.id] * ("test" not in config)


@pytest.mark.parametrize("sync", [True, False])
def test_the_synchronized_config_differs_in_sync_alone(sync):
    config = "fcn_r50-d8_ade20k_en.py"
    shipped = load("mmseg", config.replace("_en", "_sync_en") if sync else config)
    assert {layer.sync for layer in norms(skeleton(shipped)).values()} == {sync}
    for part in ("backbone", "decode_head", "auxiliary_head"):
        shipped.model[part].norm_cfg.pop("sync", None)
    assert shipped.model == load("mmseg", config).model


def test_torchvisions_weights_are_an_override():
    text = (ROOT / "configs/mmseg/_base_/norms/syncbn.py").read_text()
    words = [w.strip(".") for w in text.split() if w.startswith("model.backbone.init_cfg.")]
    config = ROOT / "configs/mmseg/fcn_r50-d8_ade20k_syncbn.py"
    argv = ["--config-file", str(config), "--num-gpus", "0", *words]
    init = load_config(train_net.parser().parse_args(argv)).model.backbone.init_cfg
    assert (init.checkpoint, init.prefix) == ("torchvision://resnet50", None)


@every_paper
def test_weight_decay_is_that_of_convolutions_and_linear_maps(config):
    """That recipe's: no decay of norms, of biases and of SN's logits."""
    cfg = load("mmseg", config)
    model = skeleton(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    maps = (nn.Conv2d, nn.Linear, Projection)
    expected = {id(m.weight) for m in model.modules() if isinstance(m, maps)}
    assert decayed == expected


def test_a_user_inherits_it_with_a_changed_data_root(tmp_path):
    config = "fcn_r50-d8_ade20k_en.py"
    (tmp_path / "mine.py").write_text(
        f"_base_ = {str(ROOT / 'configs/mmseg' / config)!r}\n"
        "data = dict(dataset=dict(data_root='/mine'))\n"
        "train_dataloader = val_dataloader = test_dataloader = data\n"
    )
    mine, shipped = Config.fromfile(tmp_path / "mine.py"), load("mmseg", config)
    for split in ("train", "val", "test"):
        loader = mine[f"{split}_dataloader"].to_dict()
        assert loader["dataset"].pop("data_root") == "/mine"
        theirs = shipped[f"{split}_dataloader"].to_dict()
        theirs["dataset"].pop("data_root")
        assert loader == theirs
    assert mine.model == shipped.model


@pytest.mark.parametrize(
    "config", [*KINDS, *(pytest.param(c, marks=pytest.mark.long) for c in ALL if c not in KINDS)]
)
def test_it_trains(config):
    cfg = load("mmseg", config)
    cfg.model.backbone.init_cfg = None
    model = revert_sync_batchnorm(build_model(cfg))
    # Of different sizes, as on ADE20K.
    samples = [
        SegDataSample(
            gt_sem_seg=PixelData(data=torch.randint(model.num_classes, (1, *size))),
            metainfo={"img_shape": size},
        )
        for size in ((48, 64), (64, 56))
    ]
    images = [torch.randint(256, (3, *s.img_shape), dtype=torch.uint8) for s in samples]
    losses = step(model, {"inputs": images, "data_samples": samples})
    assert {"decode.loss_ce", "aux.loss_ce"} <= set(losses)
    assert all(np.isfinite(value) for value in losses.values())
    assert all(layer.weight.grad.any() for layer in norms(model).values())


def test_ade20k_ignores_what_has_no_label(datasets):
    cfg = load("mmseg", "fcn_r50-d8_ade20k_en.py")
    init_default_scope("mmseg")
    root = datasets / "shapes"  # lies in ADE20K's folders, 0 being no class there
    mask = np.array(Image.open(root / "annotations/training/000000.png")).astype(int)
    for pipeline in (cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline):
        dataset = {**cfg.train_dataloader.dataset, "data_root": str(root), "pipeline": pipeline}
        samples = DATASETS.build(dataset)[0]["data_samples"]
        for sample in samples if isinstance(samples, list) else [samples]:
            assert np.array_equal(sample.gt_sem_seg.data[0], np.where(mask, mask - 1, 255))


def test_ade20k_is_tested_at_multiples_of_the_backbones_stride(datasets):
    cfg = load("mmseg", "fcn_r50-d8_ade20k_en.py")
    init_default_scope("mmseg")
    sizes = []
    for pipeline in (cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline):
        options = {"data_root": str(datasets / "shapes"), "pipeline": pipeline}
        inputs = DATASETS.build({**cfg.train_dataloader.dataset, **options})[0]["inputs"]
        sizes += [tuple(t.shape[1:]) for t in (inputs if isinstance(inputs, list) else [inputs])]
    assert sizes == [(size, size) for size in (456, 304, 400, 504, 600)]


@pytest.mark.parametrize("norm", [pytest.param("bn", marks=pytest.mark.wide), "en"])
def test_shapes_in_a_few_steps(norm, datasets, tmp_path):
    config = f"mmseg/shapes/fcn_r18-d8_shapes_{norm}.py"
    (figures,) = run(config, datasets / "shapes", tmp_path)
    assert {"aAcc", "mIoU", "mAcc"} < figures.keys()


def test_shapes_are_generated_on_first_use(tmp_path, monkeypatch):
    few = partial(shapes.write_shapes, num_training=2, num_validation=1, size=64)
    monkeypatch.setattr(shapes, "write_shapes", few)
    cfg = load("mmseg", "shapes/fcn_r18-d8_shapes_en.py")
    init_default_scope("mmseg")
    for loader, count in ((cfg.train_dataloader, 2), (cfg.val_dataloader, 1)):
        data = DATASETS.build({**loader.dataset, "data_root": str(tmp_path / "shapes")})
        assert len(data) == count and data.metainfo["classes"] == ("background", *SHAPES)
        assert data[0]["inputs"].shape[1:] == (64, 64)


@pytest.mark.long
def test_en_learns_shapes(tmp_path):
    shapes.write_shapes(tmp_path)
    config = "mmseg/shapes/fcn_r18-d8_shapes_en.py"
    (figures,) = run(config, tmp_path / "shapes", tmp_path / "out", iterations=400)
    assert figures["mIoU"] >= 50


@pytest.mark.long
def test_ade20k_on_real_images(real_coco, tmp_path):
    opts = ["model.backbone.init_cfg=None"]
    opts += ["train_dataloader.dataset.pipeline.2.scales=[(200,60),(200,120)]"]
    opts += [f"{split}_dataloader.dataset.indices=2" for split in ("val", "test")]
    root, tests = real_coco / "coco_in_ade_layout", [(), ("--tta",)]
    found = run("mmseg/fcn_r50-d8_ade20k_en.py", root, tmp_path, *opts, iterations=4, tests=tests)
    assert all(0 <= figures["mIoU"] <= 100 for figures in found)


@pytest.mark.parametrize(
    "scales, train_id, label_id",
    [("single", 13, 26), pytest.param("multi", 0, 7, marks=pytest.mark.wide)],
)
def test_cityscapes_test_set_in_the_servers_format(scales, train_id, label_id, tmp_path):
    server = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="needs cityscapesscripts",
    )
    for city in ("berlin", "bonn"):
        folder = tmp_path / "leftImg8bit" / "test" / city
        folder.mkdir(parents=True)
        image = np.random.default_rng(0).integers(256, size=(32, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{city}_000000_000019_leftImg8bit.png")
    (tmp_path / "gtFine" / "test").mkdir(parents=True)
    # A model that sees one class everywhere.
    bias = torch.zeros(19).index_fill(0, torch.tensor(train_id), 9)
    head = {"weight": torch.zeros(19, 512, 1, 1), "bias": bias}
    state = {f"decode_head.conv_seg.{name}": value for name, value in head.items()}
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    config = ROOT / "configs/mmseg/fcn_r50-d8_cityscapes-test_en.py"
    (metric,) = load("mmseg", config).test_evaluator
    assert metric.output_dir == "output/fcn_r50-d8_cityscapes-test_en"
    loader = "test_dataloader"
    argv = [
        *("--config-file", str(config), "--num-gpus", "0", "--eval-only"),
        *(["--tta"] if scales == "multi" else []),
        *(f"load_from={tmp_path / 'model.pth'}", f"work_dir={tmp_path / 'out'}"),
        *(f"{loader}.dataset.data_root={tmp_path}", "model.backbone.init_cfg=None"),
        *(f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"),
        f"{loader}.dataset.pipeline.1.scale=(64,32)",
        f"test_evaluator.0.output_dir={tmp_path / 'results'}",
    ]
    assert train_net.main(argv) == 0
    files = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert files == [f"{city}_000000_000019_leftImg8bit.png" for city in ("berlin", "bonn")]
    for city, name in zip(("berlin", "bonn"), files, strict=True):
        written = Image.open(tmp_path / "results" / name)
        assert written.size == (64, 32)
        labels = np.array(written)
        assert labels.dtype == np.uint8 and labels.ndim == 2
        assert (labels == label_id).all()
        # The server finds a prediction by its name's beginning.
        server.args.predictionPath, server.args.predictionWalk = str(tmp_path / "results"), None
        truth = f"gtFine/test/{city}/{city}_000000_000019_gtFine_labelIds.png"
        assert server.getPrediction(server.args, truth) == str(tmp_path / "results" / name)


@pytest.mark.parametrize("config", SERVER)
def test_server_configs_differ_from_their_bases_in_the_test_alone(config):
    cfg, base = load("mmseg", config), load("mmseg", config.replace("-test", ""))
    differing = {key for key in base if cfg[key] != base[key]}
    assert differing == {"test_dataloader", "test_evaluator", "tta_pipeline"}
    for pipeline in (cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline):
        assert "LoadAnnotations" not in str(pipeline)
    assert cfg.test_dataloader.dataset.data_prefix.img_path == "leftImg8bit/test"
    (metric,) = cfg.test_evaluator
    assert metric.type == "CityscapesMetric" and metric.format_only and metric.keep_results
