"""Miniatures: overrides that train a config briefly on a few generated images of 64 x 64 pixels."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli import train_net
from ..data import SHAPES, ensure_shapes

SIDE = 64
#: detectron2: two images of 64 x 64 a batch, no loader processes, random weights.
SMALL_DETECTRON2 = (
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "MODEL.WEIGHTS", ""),
)
#: Options of transforms, and of a model's padding, that are image sizes in pixels.
SIZES = {"crop_size", "scale", "scales", "img_scale", "size"}


def overrides(config: str, folder: Path) -> list[str]:
    """Return overrides with which a config trains for two epochs or iterations on generated images.

    The images are written first, if they are missing: to ``folder/labelled`` for mmpretrain, to
    ``folder/shapes`` for all others. A backbone starts from random weights.

    Args:
        config: path of a config of detectron2, mmpretrain, mmseg, mmdet or pix2pix.
        folder: folder of the generated images; overrides have its path as it is given.

    Returns:
        KEY=VALUE for MMEngine; for detectron2, KEY and VALUE in turn.

    Raises:
        UserError: the config file does not exist, or is neither .yaml nor .py.
        ValueError, FileExistsError: ``folder/shapes`` has other contents; see
            :func:`~ilm_plugins.data.shapes.write_shapes`.
    """
    if train_net.framework_of(config) == "detectron2":
        return _detectron2_overrides(config, folder)
    return _mmengine_overrides(config, folder)


def _detectron2_overrides(config: str, folder: Path) -> list[str]:
    """Return :func:`overrides` for a config of detectron2: keys and values in turn."""
    from ..frameworks.detectron2.run_folder import length_overrides

    _ensure_shapes(folder)
    data = ["DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)"]
    return [
        *length_overrides(config, 2),
        *data,
        "MODEL.ROI_HEADS.NUM_CLASSES",
        "4",
        *SMALL_DETECTRON2,
    ]


def _mmengine_overrides(config: str, folder: Path) -> list[str]:
    """Return :func:`overrides` for a config of MMEngine: KEY=VALUE each; write missing images.

    A config without ``train_cfg`` gets overrides for its tests alone.
    """
    from ..frameworks.openmmlab.run_folder import LOADERS, length_overrides, load

    cfg, options = load(config), []
    for loader in (name for name in LOADERS if cfg.get(name) is not None):
        split = "training" if loader.startswith("train") else "validation"
        dataset = _dataset(cfg[loader].dataset, cfg.default_scope, folder, split)
        options += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
        options.append(f"{loader}.batch_size={min(4, cfg[loader].batch_size)}")
        options.append(f"{loader}.dataset={ {'_delete_': True, **dataset}!r}")
        evaluator = loader.replace("dataloader", "evaluator")
        if "ann_file" in (cfg.get(evaluator) or {}):
            file = Path(dataset["data_root"], dataset["ann_file"])
            options.append(f"{evaluator}.ann_file={str(file)!r}")
    if cfg.get("train_cfg") is not None:
        options += length_overrides(config, 2)
        options += ["train_cfg.val_interval=2", "default_hooks.logger.interval=1"]
    if cfg.default_scope == "mmdet":
        options += [f"model.roi_head.{head}_head.num_classes=4" for head in ("bbox", "mask")]
    if cfg.model.type == "Pix2Pix":
        options += [f"model.generator.size={SIDE}", "model.generator.width=16"]
        options += ["model.discriminator.width=16", "model.discriminator.layers=2"]
    if cfg.model.get("backbone", {}).get("init_cfg"):
        options.append("model.backbone.init_cfg=None")
    if cfg.model.get("data_preprocessor", {}).get("size"):
        options.append(f"model.data_preprocessor.size={(SIDE, SIDE)}")
    if cfg.get("tta_pipeline"):
        options.append(f"tta_pipeline={_shrink_sizes(cfg.tta_pipeline)!r}")
    return options


def _dataset(real: dict, scope: str, folder: Path, split: str) -> dict[str, Any]:
    """Return the config of a data set of generated images, which are written if missing.

    Its pipeline has smaller sizes, and for mmpretrain no step that loads files.

    Args:
        real: config of the data set of real images, whose pipeline it gets; not used for pix2pix,
            whose data sets have no pipeline.
        scope: MMEngine's scope of the config: mmpretrain, mmseg or mmdet; any other for pix2pix.
        folder: folder of all generated images.
        split: "training" or "validation".
    """
    if scope == "mmpretrain":
        write_packed(folder / "labelled", (split,))
        # PackedImages returns decoded images.
        steps = real.get("dataset", real)["pipeline"]
        steps = [step for step in steps if step["type"] != "LoadImageFromFile"]
        options = {"type": "PackedImages", "data_root": str(folder / "labelled"), "split": split}
        return {**options, "pipeline": _shrink_sizes(steps)}
    root = str(_ensure_shapes(folder))
    if scope == "mmseg":
        return {
            "type": "BaseSegDataset",
            "data_root": root,
            "metainfo": {"classes": ("background", *SHAPES)},
            "data_prefix": {
                "img_path": f"images/{split}",
                "seg_map_path": f"annotations/{split}",
            },
            "pipeline": _shrink_sizes(real["pipeline"]),
        }
    if scope == "mmdet":
        return {
            "type": "CocoDataset",
            "data_root": root,
            "metainfo": {"classes": tuple(SHAPES)},
            "ann_file": f"annotations/instances_{split}.json",
            "data_prefix": {"img": f"images/{split}/"},
            "pipeline": _shrink_sizes(real["pipeline"]),
        }
    options = {"type": "PairedImages", "data_root": root, "size": SIDE}
    options["load_size"] = SIDE + 8 if split == "training" else None
    return {**options, "data_prefix": {"pair_path": f"pairs/{split}"}}


def _ensure_shapes(folder: Path) -> Path:
    """Write `shapes`, 64 x 64 pixels, to ``folder/shapes`` if it is missing; return that folder."""
    ensure_shapes(folder / "shapes", num_training=8, num_validation=4, size=SIDE)
    return folder / "shapes"


def write_packed(folder: Path, splits: Sequence[str], number: int = 16) -> None:
    """Write ``folder/SPLIT.npz`` for each split, in the format of :mod:`ilm_plugins.data.packed`.

    Each archive has ``number`` images of 32 x 32 pixels and one random colour each, in ten classes;
    the colours are the same in each call. The folder is made if missing. An existing archive is
    left as it is.
    """
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        files = []
        for colour in rng.integers(256, size=(number, 3)).tolist():
            file = io.BytesIO()
            Image.new("RGB", (32, 32), tuple(colour)).save(file, "JPEG")
            files.append(file.getvalue())
        if not (folder / f"{split}.npz").is_file():
            np.savez(
                folder / f"{split}.npz",
                jpeg=np.frombuffer(b"".join(files), np.uint8),
                offsets=np.cumsum([0, *map(len, files)]),
                labels=np.arange(number) % 10,
                classes=np.array(list("abcdefghij")),
            )


def _shrink_sizes(value: Any, name: str = "") -> Any:
    """Return a copy of a data pipeline in which image sizes above 64 pixels are 64.

    Args:
        value: the pipeline, or a part of it.
        name: the key under which the part stands; only integers under a key of SIZES are sizes.
    """
    if isinstance(value, dict):
        return {key: _shrink_sizes(inner, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_shrink_sizes(inner, name) for inner in value)
    large = name in SIZES and isinstance(value, int) and value > SIDE
    return SIDE if large else value
