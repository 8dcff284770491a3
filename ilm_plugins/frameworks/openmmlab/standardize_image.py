"""Standardize each input image, as a transform of OpenMMLab's pipelines."""

import numpy as np
from mmcv.transforms import TRANSFORMS, BaseTransform


@TRANSFORMS.register_module()
class StandardizeImage(BaseTransform):
    """Replace an image, (H, W, C), by (image - mean) / deviation of all its values, in float32.

    It undoes any change of brightness and contrast, ``a * image + b`` with a > 0. Give the model's
    ``data_preprocessor`` ``mean=None, std=None``. An image of one value becomes 0.
    """

    def transform(self, results: dict) -> dict:
        image = results["img"].astype(np.float32)
        deviation = image.std(dtype=np.float64)
        results["img"] = ((image - image.mean(dtype=np.float64)) / (deviation or 1.0)).astype(
            np.float32
        )
        return results
