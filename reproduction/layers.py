"""Variants of the layers that are rows of the papers' tables, each with a key of its own.

A config names this module in ``custom_imports``. Torch computes the networks of EN's variants.
"""

import torch
from torch import nn

import ilm_plugins
from ilm_plugins import AssocNorm, ExemplarNorm, ILMGroupNorm, ILMInstanceNorm, ILMLayerNorm
from ilm_plugins.layers import Projection, project
from ilm_plugins.ops import Exemplar


class ReLUExemplarNorm(ExemplarNorm, nn.GroupNorm):
    """EN with ReLU between the two linear maps of the ratios (Table 9, c)."""

    def predict_ratios(self, mean, normalized_means, t):
        features = self.correlate(normalized_means, t).flatten(1)
        hidden = torch.relu(project(features, t.expand_weight, t.expand_bias))
        return project(hidden, t.ratio_weight, t.ratio_bias).softmax(1)


class SingleAffineExemplarNorm(ExemplarNorm, nn.GroupNorm):
    """EN with one weight and bias (C) for all normalizers (Table 9, d)."""

    def __init__(self, num_channels, *args, **options):
        super().__init__(num_channels, *args, **options)
        self.weight = nn.Parameter(self.weight.detach()[0].clone())
        self.bias = nn.Parameter(self.bias.detach()[0].clone())

    def rescale(self, mean, var, weight, bias, *others):
        return super().rescale(mean, var, weight[None], bias[None], *others)


class _WithoutReduction(Exemplar):
    """The tensors of EN without the grouped convolution's."""

    __slots__ = ()
    parameters = tuple(name for name in Exemplar.parameters if name != "reduce.weight")


class WithoutConvolutionExemplarNorm(ExemplarNorm, nn.GroupNorm):
    """EN whose ratios come from the correlations of all C normalized means (Table 9, b)."""

    network = _WithoutReduction

    def __init__(self, num_channels, *args, **options):
        super().__init__(num_channels, *args, **options)
        del self.reduce

    def correlate(self, normalized_means, t):
        return project(normalized_means, normalized_means.unsqueeze(1))


class MLPExemplarNorm(ExemplarNorm, nn.GroupNorm):
    """EN whose ratios come from the spatial means by two linear maps, C -> C/r -> K (Table 9, a).

    ``activation``, between them, is "tanh" or "relu"; ``expansion`` has no effect.
    """

    network = _WithoutReduction

    def __init__(self, num_channels, *args, activation="tanh", **options):
        super().__init__(num_channels, *args, **options)
        self.activation = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        del self.reduce
        k, self.hidden = len(self.normalizers), num_channels // self.reduction
        like = {"device": self.weight.device, "dtype": self.weight.dtype}
        self.expand = Projection(num_channels, self.hidden, bias=True, **like)
        self.ratio = Projection(self.hidden, k, bias=True, init="zeros", **like)

    def predict_ratios(self, mean, normalized_means, t):
        hidden = self.activation(project(mean, t.expand_weight, t.expand_bias))
        return project(hidden, t.ratio_weight, t.ratio_bias).softmax(1)


class _NormalStart:
    """An auto-encoder that starts normally distributed, as the papers of ILM and AssocNorm say."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        for projection in self.children():
            nn.init.normal_(projection.weight)


class NormalILMGroupNorm(_NormalStart, ILMGroupNorm, nn.GroupNorm):
    """ILM+GN by Section 4.1.1."""


class NormalILMInstanceNorm(_NormalStart, ILMInstanceNorm, nn.GroupNorm):
    """ILM+IN by Section 4.1.1."""


class NormalILMLayerNorm(_NormalStart, ILMLayerNorm, nn.GroupNorm):
    """ILM+LN by Section 4.1.1."""


class NormalAssocNorm(_NormalStart, AssocNorm, nn.GroupNorm):
    """AssocNorm by its Section 4."""


VARIANTS = {
    "ENReLU": ReLUExemplarNorm,
    "ENSingleAffine": SingleAffineExemplarNorm,
    "ENWithoutConvolution": WithoutConvolutionExemplarNorm,
    "ENMLP": MLPExemplarNorm,
    "ILMGNNormal": NormalILMGroupNorm,
    "ILMINNormal": NormalILMInstanceNorm,
    "ILMLNNormal": NormalILMLayerNorm,
    "AssocNormNormal": NormalAssocNorm,
}
for _key, _layer in VARIANTS.items():
    ilm_plugins.register(_key, _layer)
