"""The layers as their authors' released code computes them, written from the papers' descriptions.

Each step is one torch operation on whole maps: mean and variance are computed apart, statistics are
repeated to all channels, and the input is standardized, scaled and shifted one after the other.
Variances are unbiased, as in the authors' code.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ilm_plugins.layers.attentive import AttentiveNorm
from ilm_plugins.layers.autoencoder import AutoencoderNorm
from ilm_plugins.layers.exemplar import ExemplarNorm
from ilm_plugins.layers.mixture import MixtureNorm
from ilm_plugins.layers.switchable import SwitchNorm


def forward(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """Compute ``layer(x)`` for x of (N, C, H, W) without fusion, and with unbiased variances."""
    if isinstance(layer, AutoencoderNorm):
        return _autoencoder_norm(layer, x)
    if isinstance(layer, AttentiveNorm):
        return _attentive_norm(layer, x)
    return _exemplar_norm(layer, x) if isinstance(layer, ExemplarNorm) else _switch_norm(layer, x)


def _group_statistics(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of each group of channels, (N, num_groups) each."""
    groups = x.reshape(x.shape[0], num_groups, -1)
    return groups.mean(2), groups.var(2)


def _to_channels(values: Tensor, x: Tensor) -> Tensor:
    """Repeat (N, G) values of groups to the C channels of x: (N, C, 1, 1)."""
    repeated = values.unsqueeze(2).repeat(1, 1, x.shape[1] // values.shape[1])
    return repeated.reshape(values.shape[0], x.shape[1], 1, 1)


def _autoencoder_norm(layer: AutoencoderNorm, x: Tensor) -> Tensor:
    key_mean, key_var = _group_statistics(x, layer.num_key_groups)
    from_mean = F.linear(F.relu(F.linear(key_mean, layer.encode.weight)), layer.decode_mean.weight)
    from_var = F.linear(F.relu(F.linear(key_var, layer.encode.weight)), layer.decode_var.weight)
    if layer.mean_drives == "omega":
        from_mean, from_var = from_var, from_mean
    omega = _to_channels(torch.sigmoid(from_var), x) + layer.weight.view(1, -1, 1, 1)
    beta = _to_channels(torch.tanh(from_mean), x) + layer.bias.view(1, -1, 1, 1)
    mean, var = (_to_channels(t, x) for t in _group_statistics(x, layer.num_groups))
    x = (x - mean) / (var + layer.eps).sqrt()
    return x * omega + beta


def _attentive_norm(layer: AttentiveNorm, x: Tensor) -> Tensor:
    flat = x.reshape(*x.shape[:2], -1)
    features = flat.mean(2) / (flat.var(2) + 1e-3).sqrt()
    attentions = F.hardsigmoid(F.linear(features, layer.attention.weight, layer.attention.bias))
    weight, bias = attentions @ layer.pairs.weight, attentions @ layer.pairs.bias
    x = F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
    return x * weight[:, :, None, None] + bias[:, :, None, None]


def _in_ln_bn_statistics(layer: MixtureNorm, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return three means and three variances, of IN, LN and BN, and update running statistics."""
    flat = x.reshape(*x.shape[:2], -1)
    mean_in, var_in = flat.mean(2, keepdim=True), flat.var(2, keepdim=True)
    square = var_in + mean_in**2
    mean_ln = mean_in.mean(1, keepdim=True)
    var_ln = square.mean(1, keepdim=True) - mean_ln**2
    mean_bn = mean_in.mean(0, keepdim=True)
    var_bn = square.mean(0, keepdim=True) - mean_bn**2
    if layer.training:
        with torch.no_grad():
            layer.running_mean.lerp_(mean_bn.flatten(), layer.momentum)
            layer.running_var.lerp_(var_bn.flatten(), layer.momentum)
    means, variances = (mean_in, mean_ln, mean_bn), (var_in, var_ln, var_bn)
    return [m.unsqueeze(3) for m in means], [v.unsqueeze(3) for v in variances]


def _switch_norm(layer: SwitchNorm, x: Tensor) -> Tensor:
    means, variances = _in_ln_bn_statistics(layer, x)
    mean_ratios, var_ratios = layer.ratios()
    mean = sum(r * m for r, m in zip(mean_ratios, means, strict=True))
    var = sum(r * v for r, v in zip(var_ratios, variances, strict=True))
    x = (x - mean) / (var + layer.eps).sqrt()
    return x * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


def _exemplar_norm(layer: ExemplarNorm, x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    means, variances = _in_ln_bn_statistics(layer, x)
    pooled = F.adaptive_avg_pool2d(x, 1)
    pairs = list(zip(means, variances, strict=True))
    rows = torch.stack([((pooled - m) / (v + layer.eps).sqrt()).view(n, c) for m, v in pairs], 1)
    reduce = layer.reduce.weight
    z = F.conv1d(rows.reshape(-1, c, 1), reduce, groups=len(reduce)).view(n, len(pairs), -1)
    v = torch.bmm(z, z.transpose(1, 2)).flatten(1)
    hidden = torch.tanh(F.linear(v, layer.expand.weight, layer.expand.bias))
    ratios = F.linear(hidden, layer.ratio.weight, layer.ratio.bias).softmax(1)
    y = 0
    for k, (mean, var) in enumerate(pairs):
        standardized = (x - mean) / (var + layer.eps).sqrt()
        weight, bias = layer.weight[k].view(1, -1, 1, 1), layer.bias[k].view(1, -1, 1, 1)
        y = y + weight * ratios[:, k].view(n, 1, 1, 1) * standardized + bias
    return y
