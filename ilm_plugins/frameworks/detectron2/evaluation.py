"""The test of a detectron2 config: its classes, its metrics' names, its evaluators."""

import inspect

from detectron2 import evaluation
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from ...errors import UserError
from ..config import OpenConfig

#: A dataset's ``evaluator_type`` -> patterns of the metrics' names, * for any characters.
METRICS = {
    "coco": ["bbox/AP*", "segm/AP*", "keypoints/AP*", "box_proposals/AR*"],
    "lvis": ["bbox/AP*", "segm/AP*", "box_proposals/AR*"],
    "pascal_voc": ["bbox/AP*"],
    "sem_seg": ["sem_seg/*IoU*", "sem_seg/*ACC*"],
}
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


def metric_names(opened: OpenConfig) -> list[str] | None:
    """Return patterns of the metrics of a yaml config's test; None if a metric is unknown."""
    cfg = opened.config
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if not model.__module__.startswith("detectron2."):  # one's own may give masks without MASK_ON
        return None
    kinds = [MetadataCatalog.get(name).get("evaluator_type") for name in cfg.DATASETS.TEST]
    if not {*kinds} <= METRICS.keys():
        return None
    absent = {"segm"} if not cfg.MODEL.MASK_ON else set()
    absent |= {"keypoints"} if not cfg.MODEL.KEYPOINT_ON else set()
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        absent |= {"bbox", "segm", "keypoints"}
    else:
        absent |= {"box_proposals"}
    names = [name for kind in kinds for name in METRICS[kind]]
    return [name for name in names if name.partition("/")[0] not in absent] or None


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
