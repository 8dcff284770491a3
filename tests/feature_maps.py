"""What a run of tools/train_net.py computes feature maps in: layouts and types."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook


@contextmanager
def convolutions(training=True):
    """List (is channels last, is under autocast to bfloat16) of what 2d convolutions compute.

    Maps of one channel or one pixel, which have both layouts, are left out.
    """
    found = []

    def note(module, inputs, output):
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or module.training != training:
            return
        assert module.weight.dtype == torch.float32
        last = output.is_contiguous(memory_format=torch.channels_last)
        if last and output.is_contiguous():
            return
        cast = torch.is_autocast_enabled("cpu")
        assert type(module) is not nn.Conv2d or cast == (output.dtype == torch.bfloat16)
        found.append((last, cast))

    handle = register_module_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


#: Options of tools/train_net.py -> what all entries of :func:`convolutions` are.
OPTIONS = {
    ("--channels-last",): (True, False),
    ("--amp",): (False, True),
    ("--amp", "--channels-last"): (True, True),
}
