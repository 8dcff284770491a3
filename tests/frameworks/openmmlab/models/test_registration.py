"""The backbones' and the data set's keys, whatever is imported first."""

import sys

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.registry import MODELS
from mmpretrain.registry import DATASETS
from mmpretrain.registry import MODELS as OF_MMPRETRAIN

import fresh
from ilm_plugins.frameworks.openmmlab import models
from ilm_plugins.frameworks.openmmlab.datasets import PackedImages


def test_mmpretrain_finds_them():
    assert OF_MMPRETRAIN.get("BNInception") is MODELS.get("BNInception") is models.BNInception
    assert OF_MMPRETRAIN.get("CifarResNet") is models.CifarResNet
    assert DATASETS.get("PackedImages") is PackedImages


RELOAD = """
from importlib import reload
from ilm_plugins.frameworks import openmmlab
from ilm_plugins.frameworks.openmmlab import models
from ilm_plugins.frameworks.openmmlab.models import bn_inception, cifar_resnet
for module in (bn_inception, cifar_resnet, models):
    reload(module)
openmmlab.install_import_hooks()
"""


@pytest.mark.parametrize(
    "order",
    [
        "import ilm_plugins, mmcv.cnn",
        pytest.param("import mmcv.cnn, ilm_plugins", marks=pytest.mark.wide),
        "from ilm_plugins.frameworks.openmmlab.models import BNInception" + RELOAD,
    ],
    ids=["ours first", "theirs first", "ours alone, and reloaded"],
)
def test_in_any_order_of_import(order):
    code = f"{order}\nfrom mmengine.registry import MODELS\nprint(MODELS.get('BNInception'))"
    command = [sys.executable, "-c", code]
    done = fresh.run(command)
    assert "ilm_plugins.frameworks.openmmlab.models.bn_inception.BNInception" in done.stdout, (
        done.stderr
    )
    assert "which stays" not in done.stderr


def test_data_sets_may_be_imported_in_the_middle_of_mmpretrains_models():
    """As mmpretrain.models does itself where transformers is installed."""
    code = """
import ilm_plugins, wrapt
first = "mmpretrain.models.backbones"
wrapt.register_post_import_hook(lambda _: __import__("mmpretrain.datasets"), first)
import mmpretrain.models
from mmpretrain.registry import DATASETS, MODELS
print(DATASETS.get("PackedImages"), MODELS.get("CropFlipPreprocessor"))
"""
    done = fresh.run([sys.executable, "-c", code])
    assert "PackedImages" in done.stdout and "CropFlipPreprocessor" in done.stdout, done.stderr
