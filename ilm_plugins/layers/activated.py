"""A norm and the modules that timm's norms run after it."""

from torch import nn


class NormWithActivation(nn.Sequential):
    """A norm, then dropout and activation, in place of one of timm's norms that has both inside."""
