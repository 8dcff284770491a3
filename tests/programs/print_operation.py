"""Print the autograd function of a layer's output."""

import torch

import ilm_plugins

print(ilm_plugins.ILMGroupNorm(64)(torch.ones(1, 64, 3, 3)).grad_fn)
