"""Miniatures: configs that train on a few generated images of 64 x 64 pixels."""

from pathlib import Path
from typing import Any

import numpy as np

from ..data.shapes import SHAPES, ensure_shapes

SIDE = 64
#: detectron2: two images of 64 x 64 a batch, no loader processes, random weights.
SMALL_DETECTRON2 = (
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "MODEL.WEIGHTS", ""),
)
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
#: Settings of transforms and models that are image sizes in pixels.
SIZES = {"crop_size", "scale", "scales", "img_scale", "size", "load_size"}


def shrink(cfg: Any, folder: Path) -> None:
    """Change a config to generated images, which are written below ``folder`` if missing.

    Backbones start from random weights; the length stays.
    """
    ensure_shapes(folder / "shapes", num_training=8, num_validation=4, size=SIDE)
    if "DATASETS" in cfg:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("shapes_val",)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(SHAPES)
        cfg.merge_from_list(list(SMALL_DETECTRON2))
        return
    for name in (name for name in LOADERS if cfg.get(name)):
        loader, training = cfg[name], name.startswith("train")
        real = loader.dataset.get("dataset", loader.dataset).to_dict()
        dataset = _dataset(real, folder, "training" if training else "validation")
        loader.dataset = dataset
        loader.update(num_workers=0, persistent_workers=False, batch_size=min(4, loader.batch_size))
        evaluator = cfg.get(name.replace("dataloader", "evaluator")) or {}
        if "ann_file" in evaluator:
            evaluator["ann_file"] = str(Path(dataset["data_root"], dataset["ann_file"]))
    cfg.default_hooks.logger.interval = 1
    for head in ("bbox_head", "mask_head") if cfg.default_scope == "mmdet" else ():
        cfg.model.roi_head[head].num_classes = len(SHAPES)
    if cfg.model.get("backbone", {}).get("init_cfg"):
        cfg.model.backbone.init_cfg = None
    cfg.model = _shrunk(cfg.model)
    if cfg.get("tta_pipeline"):
        cfg.tta_pipeline = _shrunk(cfg.tta_pipeline)


def _dataset(real: dict[str, Any], folder: Path, split: str) -> dict[str, Any]:
    """Return the config of a data set of generated images, with a real one's pipeline shrunk."""
    root, pipeline = str(folder / "shapes"), _shrunk(real.get("pipeline", []))
    prefix = real.get("data_prefix")
    prefix = prefix if isinstance(prefix, dict) else {}
    if "pair_path" in prefix:
        found = {**_shrunk(real), "data_root": root, "data_prefix": {"pair_path": f"pairs/{split}"}}
        found.pop("images", None)
        return found
    if "seg_map_path" in prefix:
        return {
            "type": "BaseSegDataset",
            "data_root": root,
            "metainfo": {"classes": ("background", *SHAPES)},
            "data_prefix": {"img_path": f"images/{split}", "seg_map_path": f"annotations/{split}"},
            "pipeline": pipeline,
        }
    if "img" in prefix:
        return {
            "type": "CocoDataset",
            "data_root": root,
            "metainfo": {"classes": tuple(SHAPES)},
            "ann_file": f"annotations/instances_{split}.json",
            "data_prefix": {"img": f"images/{split}/"},
            "pipeline": pipeline,
        }
    _write_labelled(folder / "labelled" / split)
    if pipeline[0]["type"] != "LoadImageFromFile":  # CIFAR's own reader decodes
        pipeline = [{"type": "LoadImageFromFile"}, *pipeline]
    found = {"type": "CustomDataset", "data_root": str(folder / "labelled"), "data_prefix": split}
    return {**found, "pipeline": pipeline}


def _write_labelled(folder: Path) -> None:
    """Write 16 images of 32 x 32 pixels and one random colour each, in folders of ten classes."""
    from PIL import Image

    colours = np.random.default_rng(0).integers(256, size=(16, 3)).tolist()
    for i, colour in enumerate(colours):
        file = folder / "abcdefghij"[i % 10] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), tuple(colour)).save(file)


def _shrunk(value: Any, name: str = "") -> Any:
    """Return a copy of a part of a config in which image sizes above 64 pixels are 64.

    Only integers under a key of SIZES are sizes; ``name`` is the key of the part.
    """
    if isinstance(value, dict):
        return {key: _shrunk(inner, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_shrunk(inner, name) for inner in value)
    return min(value, SIDE) if name in SIZES and isinstance(value, int) else value
