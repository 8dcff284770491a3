"""The test of a detectron2 config: its evaluators."""

import inspect

from detectron2 import evaluation
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...errors import UserError

#: Metadata ``evaluator_type`` of a dataset -> its evaluators, as in train_net.py of detectron2 and
#: of its project Panoptic-DeepLab.
EVALUATORS = {
    "coco": [evaluation.COCOEvaluator],
    "coco_panoptic_seg": [
        evaluation.SemSegEvaluator,
        evaluation.COCOEvaluator,
        evaluation.COCOPanopticEvaluator,
    ],
    "lvis": [evaluation.LVISEvaluator],
    "pascal_voc": [evaluation.PascalVOCDetectionEvaluator],
    "sem_seg": [evaluation.SemSegEvaluator],
    "cityscapes_instance": [evaluation.CityscapesInstanceEvaluator],
    "cityscapes_sem_seg": [evaluation.CityscapesSemSegEvaluator],
    "cityscapes_panoptic_seg": [
        evaluation.COCOPanopticEvaluator,
        evaluation.CityscapesSemSegEvaluator,
        evaluation.CityscapesInstanceEvaluator,
    ],
}


def check_evaluator(name: str) -> None:
    """Raise UserError unless a dataset has one of the known evaluator types."""
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise UserError(
            f"dataset {name!r} has the evaluator_type {kind!r}; register it with one of "
            f"{', '.join(EVALUATORS)}, or train without a test: DATASETS.TEST '()'"
        )


def build_evaluator(name: str, cfg: CfgNode) -> evaluation.DatasetEvaluators:
    """Return the evaluators of a registered dataset, each with the options that it accepts."""
    options = {
        "output_dir": f"{cfg.OUTPUT_DIR}/inference",
        "kpt_oks_sigmas": cfg.TEST.KEYPOINT_OKS_SIGMAS,
    }
    evaluators = []
    for build in EVALUATORS[MetadataCatalog.get(name).evaluator_type]:
        taken = options.keys() & inspect.signature(build).parameters
        evaluators.append(build(name, **{key: options[key] for key in taken}))
    return evaluation.DatasetEvaluators(evaluators)
