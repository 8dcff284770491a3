"""Optimizers that continue from the state of a run with another memory layout."""

import pytest
import torch
from torch import nn

from cases import channels_last
from ilm_plugins.frameworks.optimizers import keep_layouts


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "contiguous"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_fused_step_after_loading_is_the_plain_one(kind, last):
    torch.manual_seed(0)
    weight, *gradients = torch.randn(3, 8, 4, 3, 3)
    options = {"lr": 0.1} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    plain, fused = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    first = kind([plain], **options)
    plain.grad = gradients[0]
    first.step()
    # The checkpoint of a run in the other layout.
    state = first.state_dict()
    layout = torch.Tensor.contiguous if last else channels_last
    moments = {k: layout(v.clone()) if v.ndim else v.clone() for k, v in state["state"][0].items()}
    fused.data = (channels_last if last else torch.clone)(plain.detach())
    resumed = keep_layouts(kind([fused], fused=True, **options))
    group = {**resumed.state_dict()["param_groups"][0]}
    resumed.load_state_dict({"state": {0: moments}, "param_groups": [group]})
    assert all(v.stride() == fused.stride() for v in resumed.state[fused].values() if v.ndim)
    for parameter, optimizer in ((plain, first), (fused, resumed)):
        parameter.grad = torch.empty_like(parameter).copy_(gradients[1])
        optimizer.step()
    torch.testing.assert_close(fused.data, plain.data)
