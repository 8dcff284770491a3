"""Backbones that the papers train and no OpenMMLab package ships, on mmcv 2 and MMEngine.

Imported, and thereby registered in MMEngine's ``MODELS``, by the hook in
``integrations/openmmlab``; they need no package of models.
"""

from .bn_inception import BNInception
from .cifar_resnet import CifarResNet

__all__ = ["BNInception", "CifarResNet"]
