"""Compare EN with BN's two remedies without a new layer, in a segmenter with mmseg:

    python -m ilm_plugins compare my_fcn.py BN EN --seeds 0 1 2 3 4 \
        --import examples/arms_mmseg.py \
        --arm BN+standardized BN 'model.data_preprocessor.type=StandardizedImages
            model.data_preprocessor.mean=None model.data_preprocessor.std=None' \
        --arm BN+test-statistics BN 'val_cfg.type=TestStatisticsVal
            test_cfg.type=TestStatisticsTest'

mmpretrain's configs have ``data_preprocessor`` in place of ``model.data_preprocessor``.
"""

import copy

from mmengine.registry import LOOPS
from mmengine.runner import TestLoop, ValLoop
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS
from torch.optim.swa_utils import update_bn


@MODELS.register_module()
class StandardizedImages(SegDataPreProcessor):
    """Replaces each image by (image - mean) / deviation of all its values."""

    def forward(self, data, training=False):
        images = [image.float() for image in data["inputs"]]
        inputs = [(x - x.mean()) / x.std(correction=0).clamp_min(1e-6) for x in images]
        return super().forward({**data, "inputs": inputs}, training)


class TestStatistics:
    """A loop whose BatchNorms have the statistics of its images."""

    def run(self):
        model = self.runner.model
        of_training = copy.deepcopy(model.state_dict())
        batches = (model.data_preprocessor(batch)["inputs"] for batch in self.dataloader)
        update_bn(batches, model)
        try:
            return super().run()
        finally:
            model.load_state_dict(of_training)


@LOOPS.register_module()
class TestStatisticsVal(TestStatistics, ValLoop):
    pass


@LOOPS.register_module()
class TestStatisticsTest(TestStatistics, TestLoop):
    pass
