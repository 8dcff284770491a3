"""Metrics of image translation: RMSE, SSIM, LPIPS and L1 between outputs and targets.

Each compares two RGB images of 0..255; the result of a data set is the mean over its images.
torchmetrics (:mod:`torchmetrics.functional`) computes SSIM and LPIPS; it is imported when first
used::

    rmse   root of the mean squared difference over all pixels and channels, in grey levels;
           over the RGB vectors of all pixels, by the squared norm of their difference, it is
           sqrt(3) times as large
    ssim   Wang et al., IEEE TIP 2004: Gaussian window of 11 x 11 pixels, sigma 1.5, K1 = .01,
           K2 = .03, data range 255; mean over the three channels and all pixels, the image
           reflected at its borders
    lpips  Zhang et al., CVPR 2018: AlexNet, version 0.1, images scaled to -1..1; needs a local file
           with the weights of AlexNet
    l1     mean absolute difference over all pixels and channels, in grey levels

Lower is better for rmse, lpips and l1, higher for ssim.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checkpoints
from ..data.images import read_image
from ..errors import UserError, missing
from .pairs import to_tensor

NO_WEIGHTS = "not computed: LPIPS needs the weights of AlexNet; give a local file of them"

#: A function of two images, (3, H, W) uint8 each, to a number.
Measure = Callable[[Tensor, Tensor], float]


def rmse(output: Tensor, target: Tensor) -> float:
    """Root mean squared difference of two images, (3, H, W), in grey levels of 0..255."""
    return F.mse_loss(output.float(), target.float()).sqrt().item()


def l1(output: Tensor, target: Tensor) -> float:
    """Mean absolute difference of two images, (3, H, W), in grey levels of 0..255."""
    return F.l1_loss(output.float(), target.float()).item()


def ssim(output: Tensor, target: Tensor) -> float:
    """Structural similarity, at most 1, of two images, (3, H, W) in 0..255; see the module.

    Raises:
        UserError: a side has fewer than the window's 11 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(output.shape[1:]) < 11:
        raise UserError(f"SSIM needs 11 x 11 pixels or more, got {tuple(output.shape[1:])}")
    # The paper's window and constants are torchmetrics' defaults.
    pair = output[None].float(), target[None].float()
    return structural_similarity_index_measure(*pair, data_range=255.0).item()


def lpips(weights: str | os.PathLike) -> Measure:
    """Build the LPIPS metric from a local file of weights, without a download.

    Args:
        weights: torchvision's checkpoint of AlexNet (alexnet-owt-7be5be79.pth). torchmetrics has
            the weights of the linear layers.

    Returns:
        A function of two images, (3, H, W) uint8 in 0..255, to their distance, computed on the CPU
        without gradients. It raises UserError for images of fewer than 31 x 31 pixels.

    Raises:
        UserError: the file is missing, or not a checkpoint of AlexNet; or torchvision is not
            installed.
    """
    from torchmetrics.functional.image.lpips import _LPIPS

    if importlib.util.find_spec("torchvision") is None:  # torchmetrics builds its AlexNet
        raise missing("LPIPS", "torchvision")
    try:
        state = checkpoints.read(weights)
        network = _LPIPS(net="alex", pnet_rand=True)
        # torchvision's features.3.weight is slice2.3.weight in torchmetrics.
        names = {name: name.partition(".")[2] for name in network.net.state_dict()}
        network.net.load_state_dict({k: state[f"features.{name}"] for k, name in names.items()})
    except Exception as error:  # an invalid file can raise anything
        raise UserError(
            f"{weights}: not a checkpoint of torchvision's AlexNet ({type(error).__name__}: "
            f"{' '.join(str(error).removesuffix(checkpoints.TRUST).split())[:200]})"
        ) from error

    @torch.no_grad()
    def measure(output: Tensor, target: Tensor) -> float:
        if min(output.shape[1:]) < 31:
            raise UserError(f"LPIPS needs 31 x 31 pixels or more, got {tuple(output.shape[1:])}")
        return network(*(x[None].float() / 127.5 - 1 for x in (output, target))).item()

    return measure


#: Metrics without a file of weights, by name.
MEASURES: dict[str, Measure] = {"rmse": rmse, "ssim": ssim, "l1": l1}
NAMES = ("rmse", "ssim", "lpips", "l1")


def measures(
    names: Sequence[str] = NAMES, lpips_weights: str | os.PathLike | None = None
) -> dict[str, Measure]:
    """Return name -> function of metrics; LPIPS is left out if ``lpips_weights`` is None.

    Args:
        names: any of "rmse", "ssim", "lpips" and "l1".
        lpips_weights: torchvision's checkpoint of AlexNet; None leaves out LPIPS without an error.

    Returns:
        The functions in the order of ``names``, but LPIPS last.

    Raises:
        UserError: a metric is unknown, torchmetrics is not installed, or LPIPS is asked for and the
            file of its weights is missing or invalid.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UserError(f"unknown metric {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    if importlib.util.find_spec("torchmetrics") is None:
        raise missing("comparing images", "torchmetrics")
    chosen = {name: MEASURES[name] for name in names if name in MEASURES}
    if "lpips" in names and lpips_weights is not None:
        chosen["lpips"] = lpips(lpips_weights)
    return chosen


def compare(
    pairs: Iterable[tuple[Tensor, Tensor]], chosen: dict[str, Measure]
) -> dict[str, float | int]:
    """Average each metric over pairs of images.

    Args:
        pairs: output and target, uint8, both of the same shape (3, H, W); at least one pair.
        chosen: name -> function of the metrics; see :func:`measures`.

    Returns:
        Name -> mean, and the number of pairs as "images".

    Raises:
        UserError: with "ssim", an image has a side below 11 pixels.
    """
    rows = [[measure(*pair) for measure in chosen.values()] for pair in pairs]
    means = np.mean(rows, axis=0).tolist()
    return {**dict(zip(chosen, means, strict=True)), "images": len(rows)}


def read(path: str | os.PathLike) -> Tensor:
    """Read an image file as (3, H, W) RGB uint8."""
    return to_tensor(read_image(path))


def mean_image(images: Iterable[Tensor]) -> Tensor:
    """Return the mean of images pixel by pixel, rounded to uint8.

    Of all constant outputs it has the least mean squared error.

    Args:
        images: at least one, all of one shape (3, H, W), uint8.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image in images:
        total, count = total + image.double(), count + 1
    return (total / count).round().to(torch.uint8)
