"""Compare EN with BN's two remedies without a new layer, in a detector with detectron2:

    python -m ilm_plugins compare my.yaml BN EN --seeds 0 1 2 3 4 \
        --import examples/standardize_detectron2.py --import examples/arms_detectron2.py \
        --arm BN+standardized BN 'MODEL.META_ARCHITECTURE StandardizedRCNN
            MODEL.PIXEL_MEAN [0,0,0] MODEL.PIXEL_STD [1,1,1]' \
        --arm BN+test-statistics BN 'MODEL.META_ARCHITECTURE TestStatisticsRCNN'
"""

from detectron2.data import build_detection_test_loader
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from fvcore.nn.precise_bn import BN_MODULE_TYPES, update_bn_stats


@META_ARCH_REGISTRY.register()
class TestStatisticsRCNN(GeneralizedRCNN):
    """Faster and Mask R-CNN whose BatchNorms have the test images' statistics in a test."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.cfg, self.of_training = cfg, None

    def train(self, mode=True):
        if self.of_training is not None:  # a test has ended, or another one begins
            self.load_state_dict(self.of_training)
            self.of_training = None
        return super().train(mode)

    def inference(self, *args, **options):
        if self.of_training is None:
            self.of_training = {name: one.clone() for name, one in self.state_dict().items()}
            for module in self.modules():
                if isinstance(module, BN_MODULE_TYPES):
                    module.train()
            loader = build_detection_test_loader(self.cfg, self.cfg.DATASETS.TEST[0])
            update_bn_stats(self, loader, len(loader))
            for module in self.modules():
                module.training = False
        return super().inference(*args, **options)
