"""Miniatures: configs that train on a few generated images of 64 x 64 pixels."""

from pathlib import Path
from typing import Any

from ...frameworks.variants import Variants
from ..data.shapes import SHAPES, ensure_shapes

SIDE = 64
#: detectron2: two images of 64 x 64 a batch, no loader processes, random weights.
SMALL_DETECTRON2 = (
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "MODEL.WEIGHTS", ""),
)
#: Settings of transforms and models that are image sizes in pixels.
SIZES = {"crop_size", "scale", "scales", "img_scale", "size", "load_size"}


def shrink(row: Variants, folder: Path) -> None:
    """Change a config to generated images, which are written below ``folder`` if missing."""
    ensure_shapes(folder / "shapes", num_training=8, num_validation=4, size=SIDE)
    cfg = row.config
    if row.opened.framework == "detectron2":
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("shapes_val",)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(SHAPES)
        cfg.merge_from_list(list(SMALL_DETECTRON2))
        return
    root = str(folder / "shapes")
    for name, (loader, evaluator) in row.loaders().items():
        split = "training" if name == "train" else "validation"
        real = _shrunk(loader.dataset.get("dataset", loader.dataset).to_dict())
        loader.dataset = {**_dataset(real, split), "data_root": root}
        loader.update(num_workers=0, persistent_workers=False, batch_size=min(4, loader.batch_size))
        if "ann_file" in evaluator:
            evaluator["ann_file"] = f"{root}/{loader.dataset['ann_file']}"
    cfg.default_hooks.logger.interval = 1
    if cfg.default_scope == "mmdet":
        for head in ("bbox_head", "mask_head"):
            cfg.model.roi_head[head].num_classes = len(SHAPES)
    if cfg.model.get("backbone", {}).get("init_cfg"):
        cfg.model.backbone.init_cfg = None
    cfg.model = _shrunk(cfg.model)
    if cfg.get("tta_pipeline"):
        cfg.tta_pipeline = _shrunk(cfg.tta_pipeline)


def _dataset(real: dict[str, Any], split: str) -> dict[str, Any]:
    """Return the config of a dataset of generated images with the pipeline of a real one."""
    prefix, pipeline, images = real.get("data_prefix"), real.get("pipeline"), f"images/{split}"
    prefix = prefix if isinstance(prefix, dict) else ()
    if "pair_path" in prefix:
        real.pop("images", None)
        return {**real, "data_prefix": {"pair_path": f"pairs/{split}"}}
    if "seg_map_path" in prefix:
        return {
            "type": "BaseSegDataset",
            "metainfo": {"classes": ("background", *SHAPES)},
            "data_prefix": {"img_path": images, "seg_map_path": f"annotations/{split}"},
            "pipeline": pipeline,
        }
    if "img" in prefix:
        return {
            "type": "CocoDataset",
            "metainfo": {"classes": tuple(SHAPES)},
            "ann_file": f"annotations/instances_{split}.json",
            "data_prefix": {"img": images},
            "pipeline": pipeline,
        }
    if pipeline[0]["type"] != "LoadImageFromFile":  # CIFAR's own reader decodes
        pipeline = [{"type": "LoadImageFromFile"}, *pipeline]
    # The folders of images are the classes.
    return {"type": "CustomDataset", "data_prefix": "images", "pipeline": pipeline}


def _shrunk(value: Any, name: str = "") -> Any:
    """Return a copy of a part of a config, whose key is ``name``, with sizes of at most SIDE."""
    if isinstance(value, dict):
        return {key: _shrunk(inner, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_shrunk(inner, name) for inner in value)
    return min(value, SIDE) if name in SIZES and isinstance(value, int) else value
