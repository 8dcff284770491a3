"""Backbones from the papers that no framework includes, on mmcv 2 and MMEngine.

They are registered in MMEngine's ``MODELS``: a config that names this package in ``custom_imports``
has them as ``backbone``. ``aa_resnet``, which derives from mmpretrain's ResNet, is a module of its
own.
"""

from .bn_inception import BNInception
from .cifar_resnet import CifarResNet

__all__ = ["BNInception", "CifarResNet"]
