"""Metrics of image translation, of two RGB images (3, H, W) of 0..255 each.

For a dataset, each metric is the mean over its images::

    rmse   root of the mean squared difference over all pixels and channels, in grey levels
    ssim   Wang et al., IEEE TIP 2004: Gaussian window of 11 x 11 pixels, sigma 1.5, K1 = .01,
           K2 = .03, data range 255; mean over the three channels and all pixels, the image
           reflected at its borders
    lpips  Zhang et al., CVPR 2018: AlexNet, version 0.1, images scaled to -1..1; needs a local file
           with the weights of AlexNet
    l1     mean absolute difference over all pixels and channels, in grey levels

Lower is better for rmse, lpips and l1, higher for ssim.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checkpoints

#: A function of an output and its target, (3, H, W) each, to a number.
Measure = Callable[[Tensor, Tensor], float]


def rmse(output: Tensor, target: Tensor) -> float:
    return F.mse_loss(output.float(), target.float()).sqrt().item()


def l1(output: Tensor, target: Tensor) -> float:
    return F.l1_loss(output.float(), target.float()).item()


def ssim(output: Tensor, target: Tensor) -> float:
    from torchmetrics.functional.image import structural_similarity_index_measure

    # The paper's window and constants are torchmetrics' defaults; borders are reflected.
    pair = output[None].float(), target[None].float()
    return structural_similarity_index_measure(*pair, data_range=255.0).item()


def lpips(weights: str | os.PathLike) -> Measure:
    """Return LPIPS by a local file of torchvision's AlexNet, such as alexnet-owt-7be5be79.pth."""
    from torchmetrics.functional.image.lpips import _LPIPS  # it has the weights of linear layers

    state = checkpoints.read(weights)
    network = _LPIPS(net="alex", pnet_rand=True)
    # torchvision's features.3.weight is slice2.3.weight in torchmetrics.
    sources = {name: f"features.{name.partition('.')[2]}" for name in network.net.state_dict()}
    network.net.load_state_dict({n: state[old] for n, old in sources.items() if old in state})

    @torch.no_grad()
    def measure(output: Tensor, target: Tensor) -> float:
        return network(*(x[None].float() / 127.5 - 1 for x in (output, target))).item()

    return measure


def measures(lpips_weights: str | os.PathLike | None = None) -> dict[str, Measure]:
    """Return name -> function of all metrics; of LPIPS only with a file of AlexNet's weights."""
    chosen: dict[str, Measure] = {"rmse": rmse, "ssim": ssim, "l1": l1}
    return chosen if lpips_weights is None else {**chosen, "lpips": lpips(lpips_weights)}
