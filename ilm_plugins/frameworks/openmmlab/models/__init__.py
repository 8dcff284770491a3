"""Backbones from the papers that no framework includes, on mmcv 2 and MMEngine.

They are registered in MMEngine's ``MODELS``, hence valid as ``backbone`` in any config. This
package imports mmcv, hence ilm_plugins imports it only after mmcv; and ``aa_resnet``, which derives
from mmpretrain's ResNet, only after mmpretrain.
"""

from mmengine.registry import MODELS

from ..norms import register
from .bn_inception import BNInception
from .cifar_resnet import CifarResNet

__all__ = ["BNInception", "CifarResNet"]

register(MODELS, classes={"BNInception": BNInception, "CifarResNet": CifarResNet})
