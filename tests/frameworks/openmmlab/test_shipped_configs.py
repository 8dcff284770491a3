"""The package's configs as bases of MMEngine's."""

import pytest

pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from ilm_plugins import ExemplarNorm

EN = "mmseg/shapes/fcn_r18-d8_shapes_en.py"


def derived(base, folder):
    (folder / "mine.py").write_text(f"_base_ = {base!r}\nmodel = dict(test_cfg=dict(stride=1))\n")
    return Config.fromfile(folder / "mine.py")


def test_a_config_derives_from_one_of_ours(root, tmp_path):
    path = str(root / "configs" / EN)
    cfg = derived(f"ilm_plugins::{EN}", tmp_path)
    assert cfg.to_dict() == derived(path, tmp_path).to_dict()
    assert get_config(f"ilm_plugins::{EN}").to_dict() == Config.fromfile(path).to_dict()
    # Its modules are those of mmseg: a scope of our own would not have them.
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert any(isinstance(module, ExemplarNorm) for module in model.modules())


def test_bases_of_other_packages_are_what_they_were(tmp_path):
    pytest.importorskip("mmdet", reason="needs mmdet")
    cfg = derived("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py", tmp_path)
    assert cfg.model["_scope_"] == "mmdet"
