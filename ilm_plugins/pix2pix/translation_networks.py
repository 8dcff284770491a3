"""pix2pix: Isola et al., Image-to-Image Translation with Conditional Adversarial Networks.

A U-Net generator, a PatchGAN discriminator, and an MMEngine model of both. Architecture and
training follow the paper's appendix 6 (here "the appendix"); ``norm_cfg`` selects the norms.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..layers import OptionError
from .pairs import to_tensor

#: torch's norms by mmcv's keys, which need no mmcv.
TORCH_NORMS = {"BN": nn.BatchNorm2d, "GN": nn.GroupNorm, "IN": nn.InstanceNorm2d}

#: At batch size 1 the appendix's batch norm is instance norm, with scale and shift.
INSTANCE_NORM = {"type": "IN", "affine": True}

_LEAK = 0.2


def build_norm(norm_cfg: dict | None, channels: int) -> nn.Module:
    """Build the norm of an MMEngine ``norm_cfg``, or the identity for None."""
    if norm_cfg is None:
        return nn.Identity()
    options = dict(norm_cfg)
    kind = options.pop("type")
    requires_grad = options.pop("requires_grad", True)
    layer = TORCH_NORMS.get(kind) or (MODELS.get(kind) if isinstance(kind, str) else kind)
    if layer is None:
        raise KeyError(f"{kind} is not in the registry of models")
    norm = layer(num_channels=channels, **options) if kind == "GN" else layer(channels, **options)
    return norm.requires_grad_(requires_grad)


def _conv_and_norm(
    conv: type[nn.Module], in_channels: int, channels: int, norm_cfg: dict | None, stride: int = 2
) -> list[nn.Module]:
    """Return a 4 x 4 convolution, padded by 1, and its norm; without norm, a bias and Identity."""
    bias = norm_cfg is None
    convolution = conv(in_channels, channels, 4, stride, padding=1, bias=bias)
    return [convolution, build_norm(norm_cfg, channels)]


def _initialize(module: nn.Module) -> None:
    """Draw weights of convolutions from N(0, 0.02) and zero their biases, as in the appendix."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class SteadyDropout(nn.Dropout):
    """Dropout that is active in evaluation, too, with one mask for all inputs of a shape."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        same = torch.Generator().manual_seed(0)
        kept = torch.rand(x.shape[1:], generator=same) >= self.p
        return x * (kept / (1 - self.p)).to(x)


class UNetGenerator(nn.Module):
    """The U-Net of the appendix: C64-C128-C256-C512-...-C512 down, and the mirror image up.

    Every layer is a 4 x 4 convolution of stride 2, with skip connections. The first layer, the last
    and the innermost layer down, whose output is one pixel, have a bias and no norm. 54.4 M
    parameters at 256 x 256. As in the paper, dropout is the only noise, and active in evaluation,
    too; there it has the same mask for all images.

    Shape: (N, in_channels, H, W) to (N, out_channels, H, W) in -1..1; H and W are multiples of
    ``size``.

    Args:
        in_channels, out_channels: channels of the input and output images.
        width: channels of the first layer; the next three layers double them.
        size: side in pixels of images that the log2(size) layers down reduce to one pixel; a power
            of 2, at least 4.
        norm_cfg: config of the norms; None for no norms.
        dropout: probability of dropout in the three innermost layers up; 0 for no dropout.

    Raises:
        OptionError: the size is invalid; on a forward pass, a side of the input is not a multiple
            of ``size``.
        KeyError: the type of ``norm_cfg`` is unknown.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 64,
        size: int = 256,
        norm_cfg: dict | None = INSTANCE_NORM,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        depth = int(math.log2(max(size, 1)))
        if size < 4 or size != 2**depth:
            raise OptionError(f"UNetGenerator: size={size}; give a power of 2, at least 4")
        self.size = size
        widths = [width * min(2**i, 8) for i in range(depth)]
        self.down = nn.ModuleList()
        for i, channels in enumerate(widths):
            activation = nn.LeakyReLU(_LEAK) if i else nn.Identity()
            norm = norm_cfg if 0 < i < depth - 1 else None
            layers = _conv_and_norm(nn.Conv2d, in_channels, channels, norm)
            self.down.append(nn.Sequential(activation, *layers))
            in_channels = channels
        self.up = nn.ModuleList()
        for i, channels in enumerate([*reversed(widths[:-1]), out_channels]):
            last = i == depth - 1
            drops = dropout > 0 and i < 3 and not last
            drop = SteadyDropout(dropout) if drops else nn.Identity()
            norm = None if last else norm_cfg
            layers = _conv_and_norm(nn.ConvTranspose2d, in_channels, channels, norm)
            self.up.append(nn.Sequential(nn.ReLU(), *layers, drop))
            in_channels = 2 * channels
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % self.size or x.shape[3] % self.size:
            raise OptionError(
                f"UNetGenerator: {x.shape[2]} x {x.shape[3]} pixels, but size={self.size} takes "
                "multiples of it; resize or pad the images, or reduce the size"
            )
        skipped = []
        for block in self.down:
            x = block(x)
            skipped.append(x)
        skipped.pop()
        for block in self.up:
            x = block(x)
            if skipped:
                x = torch.cat([x, skipped.pop()], 1)
        return x.tanh()


class PatchDiscriminator(nn.Module):
    """The PatchGAN of the appendix: C64-C128-C256-C512, and a logit for each patch.

    With three layers of stride 2, a logit's receptive field is 70 x 70 pixels. The first layer and
    the last have no norm; convolutions without a norm have a bias. 2.77 M parameters.

    Shape: input (N, A, H, W) and image (N, B, H, W), A + B = in_channels, to logits
    (N, 1, H / 2**layers - 2, W / 2**layers - 2).

    Args:
        in_channels: channels of input and image together.
        width: channels of the first layer; the next three layers double them.
        layers: layers of stride 2, at least 1; 3 is the paper's 70 x 70 PatchGAN.
        norm_cfg: config of the norms; None for no norms.
    """

    def __init__(
        self,
        in_channels: int = 6,
        width: int = 64,
        layers: int = 3,
        norm_cfg: dict | None = INSTANCE_NORM,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for i in range(layers + 1):
            channels, stride = width * min(2**i, 8), 2 if i < layers else 1
            norm = norm_cfg if i else None
            blocks += _conv_and_norm(nn.Conv2d, in_channels, channels, norm, stride)
            blocks.append(nn.LeakyReLU(_LEAK))
            in_channels = channels
        self.layers = nn.Sequential(*blocks, nn.Conv2d(in_channels, 1, 4, padding=1))
        _initialize(self)

    def forward(self, inputs: Tensor, images: Tensor) -> Tensor:
        return self.layers(torch.cat([inputs, images], 1))


class PairPreprocessor(BaseDataPreprocessor):
    """Turns a batch, lists of (3, H, W) uint8 of one size, into arguments of Pix2Pix.forward."""

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        target = data.get("target")
        return {
            "inputs": to_signed(data["input"]),
            "targets": None if target is None else to_signed(target),
            "names": data.get("name"),
        }


def to_signed(images: Tensor | Sequence[Tensor]) -> Tensor:
    """Scale images of 0..255, (N, C, H, W) or a list of (C, H, W), to (N, C, H, W) in -1..1."""
    images = images if isinstance(images, Tensor) else torch.stack(list(images))
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Pix2Pix(BaseModel):
    """A generator G trained with an L1 loss and against a discriminator D; Section 3 of the paper.

    A step first trains D(input, image), on half of its loss on real and generated images, then G on
    D's cross entropy of (input, G(input)) as real + ``lambda_l1 * mean(|target - G(input)|)``, with
    images in -1..1. Losses are computed in float32 whatever the precision of the networks.

    In checkpoints of MMEngine's ``EMAHook``, ``state_dict`` has the averaged weights.

    Args:
        generator, discriminator: configs of the networks. The generator has the attribute
            ``size``, as :class:`UNetGenerator` does.
        lambda_l1: weight of the L1 loss.
    """

    def __init__(self, generator: dict, discriminator: dict, lambda_l1: float = 100.0) -> None:
        super().__init__(PairPreprocessor())
        self.generator = MODELS.build(generator)
        self.discriminator = MODELS.build(discriminator)
        self.lambda_l1 = lambda_l1

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        names: Sequence[str] | None = None,
        mode: str = "tensor",
    ) -> Tensor | list[dict]:
        """Translate inputs (N, 3, H, W) in -1..1; for "predict", return a dict for each image.

        The dict has the image's name, and input, output and target as (3, H, W) uint8 on the CPU.
        """
        outputs = self.translate(inputs)
        if mode == "tensor":
            return outputs
        columns = {"input": inputs, "output": outputs, "target": targets}
        columns = {k: to_bytes(v).cpu() for k, v in columns.items() if v is not None}
        columns["name"] = names or [str(i) for i in range(len(inputs))]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def translate(self, inputs: Tensor) -> Tensor:
        """Translate (N, 3, H, W) images in -1..1, of any H and W, to images of the same shape.

        Inputs are padded, right and below, to multiples of the generator's size by repeating their
        last column and row; outputs are cropped back.
        """
        height, width = inputs.shape[2:]
        size = _unwrap(self.generator).size
        padding = (0, -width % size, 0, -height % size)
        if any(padding):
            inputs = F.pad(inputs, padding, mode="replicate")
        return self.generator(inputs)[:, :, :height, :width]

    def state_dict(self, *args, **options) -> dict[str, Tensor]:
        """Return the state, whose names are the same with networks in DistributedDataParallel."""
        state = super().state_dict(*args, **options)
        for name in [name for name in state if ".module." in name]:
            state[name.replace(".module.", ".", 1)] = state.pop(name)
        return state

    def preprocess_images(self, images: Sequence[np.ndarray]) -> dict:
        """Return the batch for ``test_step`` of inputs, (H, W, 3) RGB uint8, all of one size."""
        return {"input": [to_tensor(image) for image in images]}

    def train_step(self, data: dict, optim_wrapper: OptimWrapperDict) -> dict[str, Tensor]:
        """Update the discriminator, then the generator; return their losses, not yet weighted."""
        batch = self.data_preprocessor(data, training=True)
        inputs, targets = batch["inputs"], batch["targets"]
        generator_optimizer = optim_wrapper["generator"]
        discriminator_optimizer = optim_wrapper["discriminator"]
        with generator_optimizer.optim_context(self.generator):
            outputs = self.generator(inputs)

        with discriminator_optimizer.optim_context(self.discriminator):
            real = self.discriminator(inputs, targets)
            fake = self.discriminator(inputs, outputs.detach())
        losses = {"loss_D_real": _gan_loss(real, 1.0), "loss_D_fake": _gan_loss(fake, 0.0)}
        discriminator_optimizer.update_params((losses["loss_D_real"] + losses["loss_D_fake"]) / 2)

        # The bare discriminator: DistributedDataParallel would wait for gradients of parameters.
        discriminator = _unwrap(self.discriminator)
        with generator_optimizer.optim_context(self.generator):
            fake = _call_with_fixed_parameters(discriminator, inputs, outputs)
        losses["loss_G_GAN"] = _gan_loss(fake, 1.0)
        losses["loss_G_L1"] = F.l1_loss(outputs.float(), targets)
        generator_optimizer.update_params(
            losses["loss_G_GAN"] + self.lambda_l1 * losses["loss_G_L1"]
        )
        return {name: loss.detach() for name, loss in losses.items()}


def _gan_loss(logits: Tensor, label: float) -> Tensor:
    """Return the cross entropy of logits and a label, 1 for real or 0 for generated."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def _unwrap(network: nn.Module) -> nn.Module:
    return network.module if is_model_wrapper(network) else network


def _call_with_fixed_parameters(network: nn.Module, *inputs: Tensor) -> Tensor:
    """Call a network so that gradients flow to its inputs but not to its parameters."""
    fixed = {name: p.detach() for name, p in network.named_parameters()}
    return functional_call(network, fixed, inputs)


for network in (UNetGenerator, PatchDiscriminator, Pix2Pix):
    MODELS.register_module(module=network)
