"""Maps of the images in two dimensions, by what layers make of them."""

import torch
from torch import Tensor

from ..errors import UserError

METHODS = ("pca", "tsne")


def embed(features: Tensor, method: str = "pca", seed: int = 0) -> tuple[Tensor, tuple[str, str]]:
    """Features in two dimensions.

    Args:
        features: (N, D), at least three of them; NaN is taken for the mean.
        method: "pca", principal components; or "tsne", which needs scikit-learn.
        seed: for t-SNE.

    Returns:
        (N, 2), and what to write at the axes.

    Raises:
        UserError: there are too few features, or scikit-learn is not installed.
    """
    if len(features) < 3:
        raise UserError(f"{len(features)} images are too few for a map; give at least 3")
    mean = features.nanmean(0).nan_to_num()
    centered = torch.where(features.isnan(), 0, features - mean).double()
    return pca(centered) if method == "pca" else tsne(centered, seed)


def pca(centered: Tensor) -> tuple[Tensor, tuple[str, str]]:
    """The first two principal components, each with the sign of its largest loading positive."""
    _, deviations, directions = torch.linalg.svd(centered, full_matrices=False)
    directions, shares = directions[:2], deviations.square() / deviations.square().sum()
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    labels = (f"principal component {i + 1} ({shares[i]:.0%} of the variance)" for i in range(2))
    return centered @ (directions * largest.sign()).T, tuple(labels)


def tsne(centered: Tensor, seed: int) -> tuple[Tensor, tuple[str, str]]:
    """t-SNE: van der Maaten and Hinton, JMLR 2008; started from the principal components."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UserError(
            "t-SNE needs scikit-learn, which is not installed; run pip install "
            "'ilm_plugins[analysis]', or take --embedding pca"
        ) from error
    perplexity = min(30.0, (len(centered) - 1) / 3)
    found = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(
        centered.numpy()
    )
    return torch.from_numpy(found).double(), ("t-SNE 1", "t-SNE 2")


def share_between_classes(features: Tensor, labels: Tensor) -> float:
    """Of the features' (N, D) total variance, the share that lies between classes: 0 to 1."""
    centered = torch.where(features.isnan(), 0, features - features.nanmean(0)).double()
    within = sum(
        (centered[labels == label] - centered[labels == label].mean(0)).square().sum()
        for label in labels.unique()
    )
    total = centered.square().sum()
    return float(1 - within / total) if total > 0 else 0.0
