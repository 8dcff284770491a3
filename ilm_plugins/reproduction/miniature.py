"""Miniatures: configs on a few generated images of 64 x 64 pixels, as overrides."""

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
#: Of transforms and of a model's padding.
SIZES = {"crop_size", "scale", "scales", "img_scale", "size"}


def overrides(config: str, folder: Path) -> list[str]:
    """Overrides that train for two epochs or iterations; a backbone starts from random weights.

    Args:
        config: of detectron2, mmpretrain, mmseg, mmdet or pix2pix.
        folder: where the images are written, unless they are there.
    """
    detectron2 = train_net.framework_of(config) == "detectron2"
    return _of_detectron2(config, folder) if detectron2 else _of_mmengine(config, folder)


def _of_detectron2(config: str, folder: Path) -> list[str]:
    from ..frameworks.detectron2.run_folder import shortened

    _shapes(folder)
    data = ["DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)"]
    return [*shortened(config, 2), *data, "MODEL.ROI_HEADS.NUM_CLASSES", "4", *SMALL_DETECTRON2]


def _of_mmengine(config: str, folder: Path) -> list[str]:
    from ..frameworks.openmmlab.run_folder import LOADERS, load, shortened

    cfg = load(config)
    loaders = [name for name in LOADERS if cfg.get(name) is not None]
    kinds = {"mmpretrain": _labelled, "mmseg": _segmented, "mmdet": _detected}
    options = kinds.get(cfg.default_scope, _paired)(cfg, loaders, Path(folder))
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
        options.append(f"tta_pipeline={_small(cfg.tta_pipeline)!r}")
    return options


def _small(value: Any, name: str = "") -> Any:
    """A pipeline with the sizes of a miniature."""
    if isinstance(value, dict):
        return {key: _small(inner, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_small(inner, name) for inner in value)
    large = name in SIZES and isinstance(value, int) and value > SIDE
    return SIDE if large else value


def _split(loader: str) -> str:
    return "training" if loader.startswith("train") else "validation"


def _replaced(loader: str, **options) -> str:
    return f"{loader}.dataset={ {'_delete_': True, **options}!r}"


def write_packed(folder: Path, splits: Sequence[str], number: int = 16) -> None:
    """Write archives of ``number`` images of one random colour each, in ten classes.

    An archive that is there stays.
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


def _labelled(cfg: "Config", loaders: list[str], folder: Path) -> list[str]:
    """Images in archives, of mmpretrain."""
    folder = folder / "labelled"
    write_packed(folder, ("training", "validation"))
    options = []
    for loader in loaders:
        data = cfg[loader].dataset
        # Images come decoded out of an archive.
        steps = [t for t in data.get("dataset", data).pipeline if t.type != "LoadImageFromFile"]
        archive = {"type": "PackedImages", "data_root": str(folder), "split": _split(loader)}
        options.append(_replaced(loader, **archive, pipeline=_small(steps)))
    return options


def _shapes(folder: Path) -> Path:
    ensure_shapes(folder / "shapes", num_training=8, num_validation=4, size=SIDE)
    return folder / "shapes"


def _paired(cfg: "Config", loaders: list[str], folder: Path) -> list[str]:
    shapes = _shapes(folder)
    options = [f"model.generator.size={SIDE}", "model.generator.width=16"]
    options += ["model.discriminator.width=16", "model.discriminator.layers=2"]
    options.append(f"train_dataloader.dataset.load_size={SIDE + 8}")
    for loader in loaders:
        data = f"{loader}.dataset"
        options += [f"{data}.data_root={str(shapes)!r}", f"{data}.size={SIDE}"]
        options += [f"{data}.data_prefix.pair_path='pairs/{_split(loader)}'"]
        options.append(f"{data}.images=(None,None)")
    return options


def _segmented(cfg: "Config", loaders: list[str], folder: Path) -> list[str]:
    shapes = _shapes(folder)
    classes = ("background", "circle", "square", "triangle", "star")
    options = []
    for loader in loaders:
        split = _split(loader)
        options.append(
            _replaced(
                loader,
                type="BaseSegDataset",
                data_root=str(shapes),
                metainfo={"classes": classes},
                data_prefix={
                    "img_path": f"images/{split}",
                    "seg_map_path": f"annotations/{split}",
                },
                pipeline=_small(cfg[loader].dataset.pipeline),
            )
        )
    return options


def _detected(cfg: "Config", loaders: list[str], folder: Path) -> list[str]:
    shapes = _shapes(folder)
    options = [f"model.roi_head.{head}_head.num_classes=4" for head in ("bbox", "mask")]
    for loader in loaders:
        file = f"annotations/instances_{_split(loader)}.json"
        options.append(
            _replaced(
                loader,
                type="CocoDataset",
                data_root=str(shapes),
                metainfo={"classes": ("circle", "square", "triangle", "star")},
                ann_file=file,
                data_prefix={"img": f"images/{_split(loader)}/"},
                pipeline=_small(cfg[loader].dataset.pipeline),
            )
        )
        if not loader.startswith("train"):
            evaluator = loader.replace("dataloader", "evaluator")
            options.append(f"{evaluator}.ann_file={str(shapes / file)!r}")
    return options
