"""Fourteen corruptions of small images, as CIFAR-10-C defines them at severity 3 of 5.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", 2019, with the numbers of CIFAR-10-C. Each function takes an image, (H, W, 3) RGB
from 0 to 1, and a random generator, and returns the image before values are cut off at 0 and 1.
Glass blur copies pixels, as the published code does, whose text swaps them. Three differ from the
published images: motion blur and snow's streaks are summed here, not by ImageMagick; zoom blur
zooms about the exact center. Frost is left out, because it needs photos of frost.
"""

import io
import zlib
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage

Corruption = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def gaussian_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise of deviation .08."""
    return image + rng.normal(scale=0.08, size=image.shape)


def shot_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Count photons, 100 on average where a value is 1."""
    return rng.poisson(100 * image) / 100


def impulse_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace 3 % of the values by 0 or 1."""
    drawn = rng.uniform(size=image.shape)
    return np.where(drawn < 0.015, 0, np.where(drawn > 0.985, 1, image))


def defocus_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by a disk of radius .5, a pixel, that is itself blurred by deviation .6 over 3 x 3."""
    disk = np.zeros((5, 5))
    disk[2, 2] = 1
    return cv2.filter2D(image, -1, cv2.GaussianBlur(disk, (3, 3), 0.6))


def glass_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by deviation .4, take each pixel from at most a row and a column before it, blur."""
    rows, columns = np.indices(image.shape[:2]) + rng.integers(-1, 1, (2, *image.shape[:2]))
    return _gaussian(_gaussian(image)[rows.clip(0), columns.clip(0)])


def motion_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur along a direction within 45 degrees of the horizontal, radius 6, deviation 2."""
    return _streaked(image, 6, 2, rng.uniform(-45, 45))


def zoom_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Average the image, counted twice, and its zooms by 1.01 to 1.15."""
    zoomed = [_zoomed(image, 1 + step / 100) for step in range(16)]
    return (image + sum(zoomed)) / 17


def snow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brighten by a tenth, and add blurred flakes and the same flakes turned by half a turn."""
    flakes = _zoomed(rng.normal(0.15, 0.3, image.shape[:2]), 1.75)
    flakes = np.where(flakes < 0.55, 0, np.minimum(flakes, 1))[..., np.newaxis]
    flakes = _streaked(flakes, 10, 4, rng.uniform(-135, -45))
    gray = image @ (0.299, 0.587, 0.114)
    white = np.maximum(image, 1.5 * gray[..., np.newaxis] + 0.5)
    return 0.9 * image + 0.1 * white + flakes + np.rot90(flakes, 2)


def fog(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add .75 times a plasma from 0 to 1, and scale the image's largest value back to itself."""
    size = 1 << (max(image.shape[:2]) - 1).bit_length()
    haze = 0.75 * _plasma(size, rng)[: image.shape[0], : image.shape[1], np.newaxis]
    return (image + haze) * image.max() / (image.max() + 0.75)


def brightness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add .15 to V of HSV, at most to 1."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + 0.15, 1)
    return np.where(value > 0, image * brighter / np.where(value > 0, value, 1), brighter)


def contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrink each channel's distances from its mean to .4."""
    mean = image.mean(axis=(0, 1))
    return mean + 0.4 * (image - mean)


def elastic(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move three points of an affine map by up to 6 % of the size, each pixel by a smooth field.

    The field is uniform noise from -1 to 1, blurred by 6 % of the size, times 8 % of the size.
    """
    height, width = image.shape[:2]
    reach, blur, strength = (share * height for share in (0.06, 0.06, 0.08))
    center, third = np.array([width // 2, height // 2]), min(height, width) // 3
    points = (center + third * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = points + rng.uniform(-reach, reach, points.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(points, moved)
    image = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    noise = rng.uniform(-1, 1, (2, height, width))
    field = [strength * ndimage.gaussian_filter(one, blur, truncate=3) for one in noise]
    places = np.indices((height, width)) + field
    channels = (
        ndimage.map_coordinates(image[..., i], places, order=1, mode="reflect") for i in range(3)
    )
    return np.stack([*channels], axis=2)


def pixelate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Resize to .85 of the size and back, by the mean over boxes."""
    height, width = image.shape[:2]
    small = _picture(image).resize((int(0.85 * width), int(0.85 * height)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


def jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compress by JPEG of quality 58."""
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=58)
    return np.asarray(Image.open(file)) / 255


#: Name of a corruption -> the function; the groups are noise, blur, weather, digital.
CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, fog, brightness),
        *(contrast, elastic, pixelate, jpeg),
    )
}


def corrupt(image: np.ndarray, name: str, index: int) -> np.ndarray:
    """Return a corrupted image, (H, W, 3) RGB uint8; what is drawn depends on name and index."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), index])
    corrupted = CORRUPTIONS[name](image / 255, rng)
    return (np.clip(corrupted, 0, 1) * 255).round().astype(np.uint8)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray((image * 255).round().astype(np.uint8))


def _gaussian(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image, (0.4, 0.4, 0), mode="nearest")


def _zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """Zoom about the center by linear interpolation."""
    height, width = image.shape[:2]
    shift = [(1 - factor) * (size - 1) / 2 for size in (width, height)]
    matrix = np.array([[factor, 0, shift[0]], [0, factor, shift[1]]])
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)


def _streaked(image: np.ndarray, radius: int, deviation: float, angle: float) -> np.ndarray:
    """Average each pixel with pixels in one direction, by half a Gaussian; edges are repeated."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    rows = np.round(steps * np.sin(np.radians(angle))).astype(int)
    columns = np.round(steps * np.cos(np.radians(angle))).astype(int)
    height, width = image.shape[:2]
    reach = 2 * radius
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = np.zeros_like(image)
    for weight, row, column in zip(weights / weights.sum(), rows, columns, strict=True):
        part = padded[reach + row : reach + row + height, reach + column : reach + column + width]
        total += weight * part
    return total


def _plasma(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a map from 0 to 1 by the diamond-square algorithm, with edges that join.

    Each halving of the step divides the noise by 2.5**2.
    """
    values, step, reach = np.zeros((size, size)), size, 1.0
    while step > 1:
        half = step // 2
        corners = values[::step, ::step]
        below = np.roll(corners, -1, axis=0)
        squares = (corners + np.roll(corners, -1, axis=1) + below + np.roll(below, -1, axis=1)) / 4
        values[half::step, half::step] = squares + rng.uniform(-reach, reach, squares.shape)
        for axis in (0, 1):  # the middles of the edges in a row, and in a column
            centers = values[half::step, half::step]
            mean = corners + np.roll(corners, -1, axis=1 - axis)
            mean = (mean + centers + np.roll(centers, 1, axis=axis)) / 4
            place = (slice(0, None, step), slice(half, None, step))
            values[place[:: 1 - 2 * axis]] = mean + rng.uniform(-reach, reach, mean.shape)
        step, reach = half, reach / 2.5**2
    values -= values.min()
    return values / values.max()
