"""What all MMEngine configs log."""

import pytest

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

from mmengine_configs import load
from recipes import configs


@pytest.mark.parametrize("framework", ["mmdet", "mmpretrain", "mmseg", "pix2pix"])
def test_validations_are_logged_at_their_iteration(framework):
    """Where iterations are counted, MMEngine would log all of them at the epoch 0 by default."""
    found = {}
    for config in configs(framework):
        cfg = load(framework, config)
        by_epoch = cfg.get("log_processor", {}).get("by_epoch", True)
        found[config] = cfg.default_hooks.logger.get("log_metric_by_epoch", True) == by_epoch
    assert found and all(found.values()), found
