"""Standardize each input image over all its values, with detectron2.

It undoes a change of brightness and contrast, for any norm, in training, tests and predictors:

    python -m ilm_plugins train --import examples/standardize_detectron2.py --config-file my.yaml \
        MODEL.META_ARCHITECTURE StandardizedRCNN MODEL.PIXEL_MEAN "[0, 0, 0]" \
        MODEL.PIXEL_STD "[1, 1, 1]"
"""

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN


@META_ARCH_REGISTRY.register()
class StandardizedRCNN(GeneralizedRCNN):
    """Faster and Mask R-CNN on images of mean 0 and deviation 1."""

    def preprocess_image(self, batched_inputs):
        inputs = []
        for one in batched_inputs:
            image = one["image"].to(self.device).float()
            deviation = image.std(correction=0).clamp_min(1e-6)
            inputs.append({**one, "image": (image - image.mean()) / deviation})
        return super().preprocess_image(inputs)
