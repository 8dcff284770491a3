"""What the configs of this folder add to OpenMMLab: AugMix, and a memory format."""

import torch
from mmcv.transforms import TRANSFORMS, BaseTransform
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torchvision.transforms import v2


@TRANSFORMS.register_module()
class AugMix(BaseTransform):
    """Replace an image, (H, W, 3) uint8, by torchvision's ``AugMix`` of it, of severity 3.

    Its nine operations leave out brightness, color, contrast and sharpness, and treat all channels
    alike, so that their order does not matter. AugMix's paper trains on three such images with a
    consistency loss; here one takes the image's place.
    """

    def __init__(self) -> None:
        self.mix = v2.AugMix(all_ops=False)

    def transform(self, results: dict) -> dict:
        image = torch.from_numpy(results["img"].copy()).permute(2, 0, 1)
        results["img"] = self.mix(image).permute(1, 2, 0).contiguous().numpy()
        return results


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Train in torch's memory format ``channels_last``, in which a CPU computes faster."""

    def before_run(self, runner) -> None:
        runner.model.to(memory_format=torch.channels_last)
