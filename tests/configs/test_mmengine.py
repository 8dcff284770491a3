"""Every shipped config of mmpretrain, mmdet and mmseg: what is built equals the papers' words."""

from collections import Counter, defaultdict
from fnmatch import fnmatch

import pytest

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

import numpy as np
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import PixelData
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from cases import wide
from ilm_plugins import NORMS
from ilm_plugins.experiments.papers import published
from ilm_plugins.experiments.papers.paper_runs import open_row
from ilm_plugins.frameworks.openmmlab.config import OpenMMEngineConfig
from ilm_plugins.layers import parse_call
from mmengine_configs import configs, described, load, norms, skeleton
from recipe import recipe

ALL = [f"{framework}/{config}" for framework in ("mmdet", "mmseg") for config in configs(framework)]
#: The rows of the papers' tables that train or test a classifier.
ROWS = [
    cell
    for cell in published.cells()
    if (cell.config or "").startswith(("configs/mmpretrain/en/", "configs/mmpretrain/ilm/"))
]
#: The last word of a config's name, or the norm of a row -> the class of its norms.
CLASSES = {key.lower(): layer for key, layer in NORMS.items()} | {
    **{"bn": nn.BatchNorm2d, "syncbn": SyncBatchNorm, "in": nn.InstanceNorm2d},
    **{"gn": nn.GroupNorm, "ln": nn.GroupNorm},  # with one group, which the recipe tells
}
#: Names of files -> how many norms the parts of the model have.
PLACES = {
    "mmpretrain/*/*resnet50_*": {"backbone": 53},
    "mmpretrain/ilm/resnet101_*": {"backbone": 104},
    "mmpretrain/en/shufflenet*": {"backbone": 56},
    "mmpretrain/en/bn-inception*": {"backbone": 69},
    **{f"mmpretrain/en/resnet{n}_*": {"backbone": n - 1} for n in (20, 56, 110)},
    "mmseg/fcn*": {"backbone": 53, "decode_head": 1, "auxiliary_head": 1},
    "mmseg/deeplabv3*": {"backbone": 53, "decode_head": 6, "auxiliary_head": 1},
    "mmseg/shapes/*": {"backbone": 20, "decode_head": 1, "auxiliary_head": 1},
    "mmdet/mask*": {"backbone": 53, "neck": 8, "roi_head": 8},
    "mmdet/shapes/*": {"backbone": 20, "neck": 8, "roi_head": 6},
}
#: Of each kind of model one, a row or a file, which takes a training step.
KINDS = (
    "ilm-1 ILM+GN",
    "en-2 ShuffleNetV2 x0.5/SSN",
    "mmseg/fcn_r50-d8_ade20k_en.py",
    wide("en-2 ResNet50/AANet"),
    wide("en-3 Inception v2/SN"),
    wide("mmdet/mask-rcnn_r50_fpn_gn_batch2_ilmgn.py"),
    wide("mmseg/deeplabv3_r50-d8_cityscapes_sn.py"),
)


def by_base():
    """The configs with one and the same base, by its name: variants of the norm."""
    found = defaultdict(list)
    for config in ALL:
        found[config.rsplit("_", 1)[0]].append(config)
    return [pytest.param(variants, id=base) for base, variants in found.items()]


def check(config, cfg, kind, expected):
    """Compare norms and settings of a config below configs/ with those that are expected."""
    kind, model = CLASSES[kind], skeleton(cfg)
    found = {part: type(layer) for part, layer in norms(model).items()}
    # In mmdet the box head varies, and all other norms are GN.
    box = {n: found.pop(n) for n in [*found] if n.startswith("roi_head.bbox_head.")}
    if cfg.default_scope == "mmdet":
        assert set(box.values()) == {kind}
        assert len(box) == 4
        kind = nn.GroupNorm
    assert set(found.values()) == {kind}
    (places,) = (count for files, count in PLACES.items() if fnmatch(config, files))
    assert Counter(part.split(".")[0] for part in norms(model)) == places
    assert all(layer.affine for layer in norms(model).values())
    built = described(cfg)
    assert {word: built.get(word) for word in expected} == expected
    # Where iterations are counted, MMEngine would log all validations at the epoch 0.
    by_epoch = cfg.get("log_processor", {}).get("by_epoch", True)
    assert cfg.default_hooks.logger.get("log_metric_by_epoch", True) == by_epoch
    assert cfg.default_hooks.checkpoint.get("by_epoch", True) == by_epoch


@pytest.mark.parametrize("variants", by_base())
def test_variants_of_a_base_are_the_papers(variants):
    for config in variants:
        expected = {} if "/shapes/" in config else recipe(*config.split("/", 1))
        assert len(expected) >= 14 or "/shapes/" in config
        check(config, load(config), config.removesuffix(".py").rsplit("_", 1)[1], expected)


def number(name):
    """The one with which a row's name ends: "r 16"; or None."""
    last = name.rsplit(" ", 1)[-1]
    return int(last) if last.isdigit() else None


#: Table -> the norm of rows whose name has none; the name of a row -> its norm.
OF_TABLE = {
    **dict.fromkeys(("ilm-7", "ilm-fig4"), "ILM+GN"),
    **dict.fromkeys(("assoc-5", "assoc-fig5"), "AssocNorm"),
    **dict.fromkeys(("en-7", "en-8", "en-9"), "EN"),
}
OTHER_NAMES = {"GN": "GN", "SN": "SN", **dict.fromkeys(("SENet", "AANet", "SyncBN"), "BN")}
#: Table -> what a row's name says in the words of recipes.
CHANGES = {
    "ilm-4": lambda name: {"batch": number(name), "images a GPU": number(name)},
    "ilm-7": lambda name: {} if name == "GN" else {"activations": name.strip("()").split(", ")},
    "ilm-fig4": lambda name: {"key group size": 1} if name.endswith("IN") else {},
    # One for each channel, so that their number is not the same in all layers.
    "assoc-fig5": lambda name: {"key groups": None} if name.endswith("IN") else {},
    "assoc-5": lambda name: {"combine": name},
    "en-5": lambda name: {
        "classes": 100 if name.startswith("CIFAR-100") else 10,
        "depth": int(name.partition("/")[0].rpartition("ResNet")[2]),
    },
    # "EN 4.4: 8 GPU with 32 images per GPU to pre-train"; the rate is that of He et al., 3.4.
    "en-6": lambda name: {"batch": 256, "learning rate": 0.1},
    "en-7": lambda name: {"expansion": number(name)},
    "en-8": lambda name: {"reduction": number(name)},
    "en-9": lambda name: {
        "EN": {},
        # With 1/32 of the channels in its hidden layer, which is EN's reduction (Section 4.5).
        "2-layer MLP": {"ratio network": ["mlp", "tanh"]},
        "w/o convolution": {"ratio network": ["no_conv", "tanh"]},
        "ReLU": {"ratio network": ["conv", "relu"]},
        "single gamma, beta": {"single affine": True},
    }[name],
}
CHANGES["assoc-3"] = CHANGES["ilm-4"]


@pytest.mark.parametrize("cell", ROWS, ids=lambda cell: cell.id)
def test_a_row_is_the_papers(cell):
    config = cell.config.removeprefix("configs/")
    norm = cell.name.partition("/")[2] or cell.name.partition(", ")[0]
    norm = OTHER_NAMES.get(norm, OF_TABLE.get(cell.table, norm))
    changes = CHANGES.get(cell.table, lambda name: {})(cell.name)
    expected = recipe("mmpretrain", f"{config.partition('/')[2]} {norm}") | changes
    assert len(expected) >= 14
    check(config, open_row(cell).config, norm.replace("+", "").lower(), expected)


@pytest.mark.parametrize("config", [c for c in ALL if "-test_" in c or "_test-dev_" in c])
def test_a_config_for_a_server_differs_from_its_base_in_the_test_alone(config):
    cfg, base = load(config), load(config.replace("-test_", "_").replace("_test-dev_", "_"))
    differing = {key for key in base if cfg[key] != base[key]}
    assert differing - {"tta_pipeline"} == {"test_dataloader", "test_evaluator"}
    data, evaluator = cfg.test_dataloader.dataset, cfg.test_evaluator
    (metric,) = evaluator if isinstance(evaluator, list) else [evaluator]
    folder = data.data_prefix.get("img") or data.data_prefix.img_path
    assert metric.format_only
    assert folder in ("test2017/", "leftImg8bit/test")


def test_backbones_of_segmenters_start_from_the_rows_that_train_them():
    rows, begin = published.tables()["en-6"].cells, "resnet50_imagenet"
    rows = {name.lower(): row for name, row in rows.items()}
    for config in configs("mmseg"):
        norm = config.removesuffix(".py").rsplit("_", 1)[1]
        init = load(f"mmseg/{config}").model.backbone.get("init_cfg")
        if init is not None:
            row = rows[f"backbone/{norm}"]
            assert row.config == f"configs/mmpretrain/en/{begin}.py"
            kind = norm.removeprefix("sync")
            assert parse_call(row.norm or "BN")[0].lower() == kind
            assert init.checkpoint == f"checkpoints/{begin}_8xb32_{kind}.pth"


@pytest.mark.parametrize("config", KINDS)
def test_it_takes_a_training_step(config):
    is_file = config.endswith(".py")
    cfg = load(config) if is_file else open_row(published.find_cell(config)).config
    cfg.model.backbone.init_cfg = None
    if cfg.model.backbone.get("depth") == 101:
        cfg.model.backbone.depth = 50  # of the same blocks
    if "roi_head" in cfg.model:
        cfg.model.train_cfg.rcnn.sampler.num = 8
    model = revert_sync_batchnorm(OpenMMEngineConfig("", cfg, "cpu").build_model()).train()
    if cfg.default_scope == "mmdet":
        shapes = [(3, 64, 96), (3, 96, 64)]
        items = {"num_items": [2, 1], "num_classes": 4, "with_mask": True}
        batch = demo_mm_inputs(image_shapes=shapes, **items)
    else:
        sample = DataSample().set_gt_label(1)
        if cfg.default_scope == "mmseg":
            labels = PixelData(data=torch.randint(model.num_classes, (1, 32, 32)))
            sample = SegDataSample(gt_sem_seg=labels, metainfo={"img_shape": (32, 32)})
        images = list(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8))
        batch = {"inputs": images, "data_samples": [sample, sample.clone()]}
    before = [p.detach().clone() for p in model.parameters()]
    log = model.train_step(batch, OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4)))
    assert all(torch.as_tensor(value).isfinite() for value in log.values()), log
    moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def test_ade20k_has_255_for_no_label_and_sizes_of_multiples_of_8(datasets):
    cfg = load("mmseg/fcn_r50-d8_ade20k_en.py")
    init_default_scope("mmseg")
    root = datasets / "shapes"  # lies in ADE20K's folders, 0 being no class there
    mask = np.array(Image.open(root / "annotations/training/000000.png")).astype(int)
    dataset = {**cfg.train_dataloader.dataset, "data_root": str(root)}
    one = DATASETS.build({**dataset, "pipeline": cfg.test_dataloader.dataset.pipeline})[0]
    labels = one["data_samples"].gt_sem_seg.data[0]
    assert np.array_equal(labels, np.where(mask, mask - 1, 255))
    many = DATASETS.build({**dataset, "pipeline": cfg.tta_pipeline})[0]
    found = [image.shape[1] for image in (one["inputs"], *many["inputs"])]
    assert found == [456, 304, 400, 504, 600]
