"""Miniatures: overrides that train a config briefly on a few generated images of 64 x 64 pixels."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import train_net
from ..data import ensure_shapes

if TYPE_CHECKING:
    from mmengine.config import Config

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

    The images are written first, if they are missing. A backbone starts from random weights.

    Args:
        config: config file of detectron2, mmpretrain, mmseg, mmdet or pix2pix.
        folder: folder of the generated images.

    Returns:
        KEY=VALUE for MMEngine; for detectron2, KEY and VALUE in turn.
    """
    detectron2 = train_net.framework_of(config) == "detectron2"
    return (
        _detectron2_overrides(config, folder) if detectron2 else _mmengine_overrides(config, folder)
    )


def _detectron2_overrides(config: str, folder: Path) -> list[str]:
    """Return :func:`overrides` for a config of detectron2: keys and values in turn."""
    from ..frameworks.detectron2.run_folder import shortened

    _ensure_shapes(folder)
    data = ["DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)"]
    return [*shortened(config, 2), *data, "MODEL.ROI_HEADS.NUM_CLASSES", "4", *SMALL_DETECTRON2]


def _mmengine_overrides(config: str, folder: Path) -> list[str]:
    """Return :func:`overrides` for a config of MMEngine: KEY=VALUE each."""
    from ..frameworks.openmmlab.run_folder import LOADERS, load, shortened

    cfg = load(config)
    loaders = [name for name in LOADERS if cfg.get(name) is not None]
    kinds = {
        "mmpretrain": _classification_data,
        "mmseg": _segmentation_data,
        "mmdet": _detection_data,
    }
    options = kinds.get(cfg.default_scope, _pix2pix_data)(cfg, loaders, Path(folder))
    for loader in loaders:
        options += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
        options.append(f"{loader}.batch_size={min(4, cfg[loader].batch_size)}")
    if cfg.get("train_cfg") is not None:
        options += shortened(config, 2)
        options += ["train_cfg.val_interval=2", "default_hooks.logger.interval=1"]
    if cfg.model.get("backbone", {}).get("init_cfg"):
        options.append("model.backbone.init_cfg=None")
    if cfg.model.get("data_preprocessor", {}).get("size"):
        options.append(f"model.data_preprocessor.size={(SIDE, SIDE)}")
    if cfg.get("tta_pipeline"):
        options.append(f"tta_pipeline={_shrink_sizes(cfg.tta_pipeline)!r}")
    return options


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


def _split(loader: str) -> str:
    """Return the split, "training" or "validation", that a loader such as test_dataloader reads."""
    return "training" if loader.startswith("train") else "validation"


def _dataset_override(loader: str, **options) -> str:
    """Return the override that replaces a loader's whole data set config by ``options``."""
    return f"{loader}.dataset={ {'_delete_': True, **options}!r}"


def write_packed(folder: Path, splits: Sequence[str], number: int = 16) -> None:
    """Write ``folder/SPLIT.npz`` for each split, in the format of :mod:`ilm_plugins.data.packed`.

    Each archive has ``number`` images of 32 x 32 pixels and one random colour each, in ten classes.
    An existing archive is left as it is.
    """
    import numpy as np
    from PIL import Image

    from ..data.packed import KEYS

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        files = []
        for colour in rng.integers(256, size=(number, 3)).tolist():
            file = io.BytesIO()
            Image.new("RGB", (32, 32), tuple(colour)).save(file, "JPEG")
            files.append(file.getvalue())
        values = (
            np.frombuffer(b"".join(files), np.uint8),
            np.cumsum([0, *map(len, files)]),
            np.arange(number) % 10,
            np.array(list("abcdefghij")),
        )
        if not (folder / f"{split}.npz").is_file():
            np.savez(folder / f"{split}.npz", **dict(zip(KEYS, values, strict=True)))


def _classification_data(cfg: "Config", loaders: list[str], folder: Path) -> list[str]:
    """Return overrides by which mmpretrain's loaders read generated, labelled images.

    Args:
        cfg: the config.
        loaders: names of its data loaders, such as "train_dataloader".
        folder: folder of the generated images, which are written if missing.
    """
    folder = folder / "labelled"
    write_packed(folder, ("training", "validation"))
    options = []
    for loader in loaders:
        data = cfg[loader].dataset
        # PackedImages returns decoded images.
        steps = [t for t in data.get("dataset", data).pipeline if t.type != "LoadImageFromFile"]
        archive = {"type": "PackedImages", "data_root": str(folder), "split": _split(loader)}
        options.append(_dataset_override(loader, **archive, pipeline=_shrink_sizes(steps)))
    return options


def _ensure_shapes(folder: Path) -> Path:
    """Write `shapes`, 64 x 64 pixels, to ``folder/shapes`` if it is missing; return that folder."""
    ensure_shapes(folder / "shapes", num_training=8, num_validation=4, size=SIDE)
    return folder / "shapes"


def _pix2pix_data(cfg: "Config", loaders: list[str], folder: Path) -> list[str]:
    """Return overrides that shrink pix2pix's networks and read pairs of `shapes`.

    For the arguments see :func:`_classification_data`.
    """
    shapes = _ensure_shapes(folder)
    options = [f"model.generator.size={SIDE}", "model.generator.width=16"]
    options += ["model.discriminator.width=16", "model.discriminator.layers=2"]
    options.append(f"train_dataloader.dataset.load_size={SIDE + 8}")
    for loader in loaders:
        data = f"{loader}.dataset"
        options += [f"{data}.data_root={str(shapes)!r}", f"{data}.size={SIDE}"]
        options += [f"{data}.data_prefix.pair_path='pairs/{_split(loader)}'"]
        options.append(f"{data}.images=(None,None)")
    return options


def _segmentation_data(cfg: "Config", loaders: list[str], folder: Path) -> list[str]:
    """Return overrides by which mmseg's loaders read images and semantic masks of `shapes`.

    For the arguments see :func:`_classification_data`.
    """
    shapes = _ensure_shapes(folder)
    classes = ("background", "circle", "square", "triangle", "star")
    options = []
    for loader in loaders:
        split = _split(loader)
        options.append(
            _dataset_override(
                loader,
                type="BaseSegDataset",
                data_root=str(shapes),
                metainfo={"classes": classes},
                data_prefix={
                    "img_path": f"images/{split}",
                    "seg_map_path": f"annotations/{split}",
                },
                pipeline=_shrink_sizes(cfg[loader].dataset.pipeline),
            )
        )
    return options


def _detection_data(cfg: "Config", loaders: list[str], folder: Path) -> list[str]:
    """Return overrides for mmdet's loaders, heads and evaluators to use `shapes` in COCO format.

    For the arguments see :func:`_classification_data`.
    """
    shapes = _ensure_shapes(folder)
    options = [f"model.roi_head.{head}_head.num_classes=4" for head in ("bbox", "mask")]
    for loader in loaders:
        file = f"annotations/instances_{_split(loader)}.json"
        options.append(
            _dataset_override(
                loader,
                type="CocoDataset",
                data_root=str(shapes),
                metainfo={"classes": ("circle", "square", "triangle", "star")},
                ann_file=file,
                data_prefix={"img": f"images/{_split(loader)}/"},
                pipeline=_shrink_sizes(cfg[loader].dataset.pipeline),
            )
        )
        if not loader.startswith("train"):
            evaluator = loader.replace("dataloader", "evaluator")
            options.append(f"{evaluator}.ann_file={str(shapes / file)!r}")
    return options
