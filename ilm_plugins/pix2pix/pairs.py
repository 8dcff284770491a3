"""Pairs of images: the input of a translation and its target.

Two layouts::

    FOLDER/name.jpg                             input and target side by side, in either order
    INPUTS/name.png, TARGETS/name.jpg           two folders, matched by name without its ending
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from ..images import list_images, read_image

#: Which half is the input: "right-to-left" translates the right half into the left one.
DIRECTIONS = ("right-to-left", "left-to-right")


def image_files(folder: str | os.PathLike) -> dict[str, Path]:
    """Return name without ending -> file of the images directly in a folder, sorted by name."""
    files = list_images(Path(folder).expanduser())
    by_name = {p.stem: p for p in files}
    if len(by_name) < len(files):
        twice = next(p for p in files if by_name[p.stem] != p)
        raise UserError(f"{folder}: two files are named {twice.stem}; rename one")
    return by_name


def matched_files(inputs: str | os.PathLike, targets: str | os.PathLike) -> dict[str, tuple]:
    """Return name -> (input, target) of two folders whose files have the same names."""
    sources, results = image_files(inputs), image_files(targets)
    unmatched = sorted(str(({**results, **sources})[n]) for n in sources.keys() ^ results.keys())
    if unmatched:
        raise UserError(f"{len(unmatched)} images have no counterpart: {', '.join(unmatched[:20])}")
    return {name: (path, results[name]) for name, path in sources.items()}


def crop_half(image: Image.Image, side: str) -> Image.Image:
    """Crop the "left" or the "right" half of an image, W // 2 pixels wide."""
    width = image.width // 2
    left = 0 if side == "left" else width
    return image.crop((left, 0, left + width, image.height))


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """Convert an RGB image, (H, W, 3) uint8, to (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def jitter(
    images: Sequence[Image.Image], size: int, load_size: int, flip: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Resize images to load_size, then crop (size, size, 3) at random and flip, all alike."""
    top, left = rng.integers(0, load_size - size, size=2, endpoint=True)
    flipped = rng.random() < flip
    resized = (image.resize((load_size, load_size), Image.Resampling.BICUBIC) for image in images)
    crops = (np.asarray(image)[top : top + size, left : left + size] for image in resized)
    return [crop[:, ::-1] if flipped else crop for crop in crops]


class PairedImages(Dataset):
    """Pairs of square images: "input" and "target", (3, size, size) RGB uint8, and "name"."""

    def __init__(
        self,
        data_root: str = "",
        data_prefix: dict | None = None,  # only pair_path, or input_path and target_path
        direction: str = DIRECTIONS[0],  # of pairs side by side
        # First and end, in the order of names; as a dict, of the folder of a name alone.
        images: Sequence[int | None] | Mapping[str, Sequence[int | None]] = (None, None),
        size: int = 256,
        load_size: int | None = None,  # before a random crop and flip; None for neither
        flip: float = 0.5,  # its probability
        # Overrides for a second dataset, whose mean target is scored as a baseline.
        mean_of: dict | None = None,
    ) -> None:
        if direction not in DIRECTIONS:
            raise UserError(f"direction is {direction!r}; choose one of {', '.join(DIRECTIONS)}")
        if load_size is not None and load_size < size:
            raise UserError(f"load_size={load_size} is below size={size}; enlarge it")
        root, folders = Path(data_root), dict(data_prefix or {"pair_path": ""})
        if folders.keys() == {"pair_path"}:
            files = image_files(root / folders["pair_path"])
            pairs = {name: (path,) for name, path in files.items()}
        elif folders.keys() == {"input_path", "target_path"}:
            pairs = matched_files(root / folders["input_path"], root / folders["target_path"])
        else:
            raise UserError(
                f"data_prefix has {', '.join(folders) or 'nothing'}; give only pair_path, or "
                "input_path and target_path"
            )
        if isinstance(images, Mapping):
            images = images.get(root.name, (None, None))
        self.pairs = [*pairs.items()][slice(*images)]
        if not self.pairs:
            raise UserError(f"images={tuple(images)} leaves none of the {len(pairs)} pairs")
        self.direction, self.size = direction, size
        self.load_size, self.flip = load_size, flip
        self.metainfo = {"name": "PairedImages"}
        if mean_of is not None:
            own = {"data_root": data_root, "data_prefix": data_prefix, "direction": direction}
            others = PairedImages(**{**own, "size": size, **mean_of})
            targets = torch.stack([others[i]["target"] for i in range(len(others))])
            self.metainfo["mean_image"] = targets.double().mean(0).round().to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        name, files = self.pairs[index]
        images = [read_image(file) for file in files]
        if len(images) == 1:
            images = [crop_half(images[0], side) for side in self.direction.split("-to-")]
        if self.load_size is None:
            size = (self.size, self.size)
            images = [image.resize(size, Image.Resampling.BICUBIC) for image in images]
        else:
            # torch's generator, which MMEngine seeds in every process.
            rng = np.random.default_rng(torch.randint(2**62, ()).item())
            images = jitter(images, self.size, self.load_size, self.flip, rng)
        given, target = map(to_tensor, images)
        return {"input": given, "target": target, "name": name}
