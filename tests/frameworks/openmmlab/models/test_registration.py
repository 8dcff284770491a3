"""The backbones' and the data set's keys, whatever is imported first."""

import sys

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.registry import MODELS, Registry
from mmpretrain.registry import DATASETS
from mmpretrain.registry import MODELS as OF_MMPRETRAIN

import fresh
from ilm_plugins.frameworks.openmmlab import norms
from ilm_plugins.frameworks.openmmlab.datasets import PackedImages
from ilm_plugins.frameworks.openmmlab.models import backbones


def test_mmpretrain_finds_them():
    assert OF_MMPRETRAIN.get("BNInception") is MODELS.get("BNInception") is backbones.BNInception
    assert OF_MMPRETRAIN.get("CifarResNet") is backbones.CifarResNet
    assert DATASETS.get("PackedImages") is PackedImages


RELOAD = """
from importlib import reload
from ilm_plugins.frameworks import openmmlab
from ilm_plugins.frameworks.openmmlab.models import backbones
from ilm_plugins.frameworks.openmmlab.models import cifar_resnet
from ilm_plugins.frameworks.openmmlab.models import bn_inception
for module in (bn_inception, cifar_resnet, backbones):
    reload(module)
openmmlab.arm()
"""


@pytest.mark.parametrize(
    "order",
    [
        "import ilm_plugins, mmcv.cnn",
        pytest.param("import mmcv.cnn, ilm_plugins", marks=pytest.mark.wide),
        "from ilm_plugins.frameworks.openmmlab.models.backbones import BNInception" + RELOAD,
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


def test_another_packages_key_stays_with_a_warning():
    registry = Registry("model")
    theirs = type("CifarResNet", (), {"__module__": "theirs"})
    registry.register_module(name="CifarResNet", module=theirs)
    mine = {"CifarResNet": backbones.CifarResNet}
    with pytest.warns(UserWarning, match=r"has CifarResNet \(theirs\.CifarResNet\) already"):
        norms.register(registry, classes=mine)
    assert registry.get("CifarResNet") is theirs
    norms.register(registry, force=True, classes=mine)
    assert registry.get("CifarResNet") is backbones.CifarResNet
