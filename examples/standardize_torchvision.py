"""Standardize each input image over all its values, in place of Normalize, with torchvision.

It undoes a change of brightness and contrast, for any norm.
"""

import torch
from torchvision.transforms import v2


def standardize(image: torch.Tensor) -> torch.Tensor:
    """Return (image - mean) / deviation of all values; an image of one value becomes 0."""
    image = image.float()
    return (image - image.mean()) / image.std(correction=0).clamp_min(1e-6)


training = v2.Compose(
    [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToImage(), standardize]
)
testing = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), standardize])
