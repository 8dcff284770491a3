"""detectron2's evaluators by the ``evaluator_type`` in a data set's metadata."""

from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

#: Metadata ``evaluator_type`` of a data set -> its evaluators.
EVALUATORS = {
    "coco": [COCOEvaluator],
    "coco_panoptic_seg": [SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator],
    "lvis": [LVISEvaluator],
    "pascal_voc": [PascalVOCDetectionEvaluator],
    "sem_seg": [SemSegEvaluator],
    "cityscapes_instance": [CityscapesInstanceEvaluator],
    "cityscapes_panoptic_seg": [
        COCOPanopticEvaluator,
        CityscapesSemSegEvaluator,
        CityscapesInstanceEvaluator,
    ],
    "cityscapes_sem_seg": [CityscapesSemSegEvaluator],
}
#: Evaluators whose constructors have no argument ``output_dir``.
WITHOUT_OUTPUT = {
    PascalVOCDetectionEvaluator,
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
}
