"""Every row of the papers' tables on OpenMMLab: what is built equals the papers' words."""

import pytest

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

from equations.cases import wide
from helpers.config_checks import check, check_step
from helpers.mmengine_configs import ROOT, configs, load
from helpers.recipes import recipe
from ilm_plugins.layers import parse_call
from reproduction.papers import published
from reproduction.papers.paper_runs import open_row

#: The rows of the papers' tables that train or test a classifier.
ROWS = [
    cell
    for cell in published.cells()
    if (cell.config or "").startswith(
        tuple(f"reproduction/configs/mmpretrain/{paper}/" for paper in ("en", "ilm"))
    )
]
#: The configs that write predictions for a benchmark's server.
SERVER = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "reproduction" / "configs").glob("*/*test*.py")
)
#: Names of files -> how many norms the parts of the model have.
PLACES = {
    "mmpretrain/*/*resnet50_*": {"backbone": 53},
    "mmpretrain/ilm/resnet101_*": {"backbone": 104},
    "mmpretrain/en/shufflenet*": {"backbone": 56},
    "mmpretrain/en/bn-inception*": {"backbone": 69},
    **{f"mmpretrain/en/resnet{n}_*": {"backbone": n - 1} for n in (20, 56, 110)},
}


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
        "2-layer MLP": {"variant": "MLP"},
        "w/o convolution": {"variant": "WithoutConvolution"},
        "ReLU": {"variant": "ReLU"},
        "single gamma, beta": {"variant": "SingleAffine"},
    }[name],
}
CHANGES["assoc-3"] = CHANGES["ilm-4"]


@pytest.mark.parametrize("cell", ROWS, ids=lambda cell: cell.id)
def test_a_row_is_the_papers(cell):
    config = cell.config.removeprefix("reproduction/configs/")
    norm = cell.name.partition("/")[2] or cell.name.partition(", ")[0]
    norm = OTHER_NAMES.get(norm, OF_TABLE.get(cell.table, norm))
    changes = CHANGES.get(cell.table, lambda name: {})(cell.name)
    expected = recipe("mmpretrain", f"{config.partition('/')[2]} {norm}") | changes
    assert len(expected) >= 14
    check(config, open_row(cell).config, norm.replace("+", "").lower(), expected, PLACES)


def trained(config):
    """The config of the training whose model is tested for a server."""
    name = config.removeprefix("reproduction/configs/")
    return name.replace("-test_", "_").replace("_test-dev_", "_")


@pytest.mark.parametrize("config", SERVER)
def test_a_config_for_a_server_differs_from_its_base_in_the_test_alone(config):
    cfg, base = load(config), load(trained(config))
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
            assert row.config == f"reproduction/configs/mmpretrain/en/{begin}.py"
            kind = norm.removeprefix("sync")
            assert parse_call(row.norm or "BN")[0].lower() == kind
            assert init.checkpoint == f"checkpoints/{begin}_8xb32_{kind}.pth"


@pytest.mark.parametrize(
    "name",
    [
        "ilm-1 ILM+GN",
        "en-2 ShuffleNetV2 x0.5/SSN",
        wide("en-2 ResNet50/AANet"),
        wide("en-3 Inception v2/SN"),
    ],
)
def test_a_classifier_takes_a_training_step(name):
    check_step(open_row(published.find_cell(name)).config)
