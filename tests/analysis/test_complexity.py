"""Counts of operations."""

import pytest
import torch
from torch import nn

from ilm_plugins import NORMS, AttentiveNorm, ExemplarNorm, ILMGroupNorm, SwitchNorm
from ilm_plugins.analysis.complexity import flops

pytest.importorskip("fvcore", reason="needs fvcore")


@pytest.mark.parametrize("name", NORMS)
def test_a_layer_counts_as_a_group_norm_and_its_network(name):
    x, layer = torch.randn(3, 64, 5, 4), NORMS[name](64)
    assert flops(layer, x) == flops(nn.GroupNorm(32, 64), x) + 3 * layer.network_flops()


def test_networks():
    assert SwitchNorm(64).network_flops() == 0
    assert AttentiveNorm(64, num_affine=3).network_flops() == 3 * 3 * 64
    assert ILMGroupNorm(64).network_flops() == 2 * 2 * 4 + 2 * 4 * 2  # N = 4, M = 2
    # reduce, correlate, expand, ratio; C = 64, r = 32, K = 3, pi = 50
    assert ExemplarNorm(64).network_flops() == 3 * 64 + 9 * 2 + 9 * 150 + 150 * 3
    assert ExemplarNorm(64, ratio_net="no_conv").network_flops() == 9 * 64 + 9 * 150 + 150 * 3
    assert ExemplarNorm(64, ratio_net="mlp").network_flops() == 64 * 2 + 2 * 3
