"""ResNet with attention-augmented convolutions: Bello et al., ICCV 2019 (arXiv 1904.09925).

It derives from mmpretrain's ResNet. Name this module in a config's ``custom_imports``.
"""

import torch
from mmengine.registry import MODELS
from mmpretrain.models.backbones import ResNet
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from ilm_plugins.errors import UserError

#: Attention heads, and channels of each head's queries and keys: the paper's minimum, 20. Its
#: kappa = 0.2 would give each head fewer, of at most 512 channels.
HEADS, KEYS = 8, 20
#: upsilon: part of a convolution's outputs that are attention, rounded down to a multiple of HEADS.
VALUES = 0.1


class AugmentedConv2d(nn.Module):
    """A 3 x 3 convolution, a part of whose output channels are self-attention over the map.

    (N, C, H, W) becomes (N, C, H / stride, W / stride), rounded up. The logit of a query q at
    (i, j) for the key k at (a, b) is q (k + r_height[a - i] + r_width[b - j]) / sqrt(KEYS), with
    embeddings r of relative positions that the heads share. A 1 x 1 convolution joins the
    heads. The channels of the 3 x 3 convolution come first, the channels of attention last.

    Average pooling first halves the input of attention ``halvings`` times, to at most ``size`` x
    ``size`` positions; the output of attention is upsampled to the convolution's size.
    """

    def __init__(self, channels: int, stride: int, halvings: int, size: int) -> None:
        super().__init__()
        values = int(VALUES * channels) // HEADS * HEADS
        self.halvings, self.size = halvings, size
        self.split = [HEADS * KEYS, HEADS * KEYS, values]
        self.conv = nn.Conv2d(channels, channels - values, 3, stride, 1, bias=False)
        self.project = nn.Conv2d(channels, sum(self.split), 1, bias=False)
        self.join = nn.Conv2d(values, values, 1, bias=False)
        self.height = nn.Parameter(KEYS**-0.5 * torch.randn(2 * size - 1, KEYS))
        self.width = nn.Parameter(KEYS**-0.5 * torch.randn(2 * size - 1, KEYS))

    def forward(self, x: Tensor) -> Tensor:
        convolved = self.conv(x)
        for _ in range(self.halvings):
            x = avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        attended = self.join(self.attend(*self.project(x).split(self.split, 1)))
        if attended.shape[-2:] != convolved.shape[-2:]:
            attended = interpolate(attended, convolved.shape[-2:], mode="bilinear")
        return torch.cat([convolved, attended], 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of all heads, (N, values, H, W), of channels that heads divide."""
        q, k, v = (t.unflatten(1, (HEADS, -1)) for t in (q * KEYS**-0.5, k, v))
        logits = torch.einsum("nmcij,nmcab->nmijab", q, k)
        rows = self.between(self.height, q.shape[-2])
        logits = logits + torch.einsum("nmcij,iac->nmija", q, rows).unsqueeze(-1)
        columns = self.between(self.width, q.shape[-1])
        logits = logits + torch.einsum("nmcij,jbc->nmijb", q, columns).unsqueeze(-2)
        weights = logits.flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])
        return torch.einsum("nmijab,nmcab->nmcij", weights, v).flatten(1, 2)

    def between(self, embeddings: Tensor, length: int) -> Tensor:
        """Return the embedding of each position relative to each other: (length, length, KEYS)."""
        if length > self.size:
            raise ValueError(
                f"AAResNet: attention over {length} pixels, but embeddings for "
                f"{self.size}; give a larger image_size"
            )
        at = torch.arange(length, device=embeddings.device)
        return embeddings[at - at[:, None] + self.size - 1]


@MODELS.register_module()
class AAResNet(ResNet):
    """AA-ResNet: mmpretrain's ResNet of bottlenecks whose last three stages have AugmentedConv2d.

    AugmentedConv2d replaces each 3 x 3 convolution there. With kappa = 0.2 and upsilon = 0.1,
    ResNet-50 has 25.81 M parameters, and 25.8 M in the paper. Attention halves the maps of the
    first of these stages, 28 x 28 for images of 224 pixels. That is our reading: it gives 4.23e9
    multiply-adds, full maps 4.74e9, and EN's Table 2 prints 4.167e9. ``image_size`` is the largest
    height and width of an image, a multiple of 32.
    """

    def __init__(self, depth: int, image_size: int = 224, **options) -> None:
        if {*options.get("dilations", ())} - {1}:
            raise UserError(
                f"AAResNet: dilations={options['dilations']} are not implemented; leave them out"
            )
        super().__init__(depth, **options)
        for stage, name in enumerate(self.res_layers[1:]):
            for block in getattr(self, name):
                stride, size = block.conv2.stride[0], image_size // (8 * 2**stage)
                halvings = 1 if stride == 2 else 0
                if stage == 0:
                    halvings += 1
                    size //= 2
                block.conv2 = AugmentedConv2d(block.mid_channels, stride, halvings, size)
        self._freeze_stages()  # the new layers, too
