"""Draw what segmenters predict: python tools/draw_masks.py CONFIG PICTURE NAME=RUN_DIR ...

CONFIG is an MMEngine config whose test images are drawn; RUN_DIR is the folder of a training, such
as OUTPUT/NORM/seed0 of a comparison. The picture has a row for each image: the photo, its
annotation, and each model's classes.
"""

import argparse
from pathlib import Path

import numpy as np
import seaborn
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from ilm_plugins.checkpoints import load_weights
from ilm_plugins.experiments.reports.style import OKABE_ITO
from ilm_plugins.frameworks import run_record
from ilm_plugins.frameworks.folders import last_checkpoint
from ilm_plugins.frameworks.openmmlab.openmmlab_config import build_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_DIR")
    parser.add_argument("--images", type=int, default=3, help="number of rows (default: 3)")
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    init_default_scope("mmseg")
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    # The images are spread over the sequence, without its ends.
    places = np.linspace(0, len(dataset) - 1, args.images + 2).astype(int)[1:-1]
    samples = [dataset[i] for i in places]
    truths = [sample["data_samples"] for sample in samples]
    columns = {
        "photo": [np.array(Image.open(truth.img_path)) for truth in truths],
        "annotation": [truth.gt_sem_seg.data[0].numpy() for truth in truths],
    }
    for run in args.runs:
        name, _, folder = run.partition("=")
        columns[name] = predict(Path(folder), samples)
    draw(columns, dataset.metainfo["classes"]).savefig(args.picture, dpi=130)


def predict(folder: Path, samples: list[dict]) -> list[np.ndarray]:
    """Return the classes that a run's last checkpoint predicts for samples."""
    # Evaluations may have left other configs in the folder.
    config = folder / Path(run_record.read(folder)["config"]).name
    # The modules of CONFIG are imported; a saved config may name modules that have moved.
    model = build_model(Config.fromfile(config, import_custom_modules=False))
    model = revert_sync_batchnorm(model).eval()
    load_weights(model, last_checkpoint(folder))
    results = [model.test_step(pseudo_collate([sample]))[0] for sample in samples]
    return [result.pred_sem_seg.data[0].numpy() for result in results]


def draw(columns: dict[str, list[np.ndarray]], classes: list[str]) -> Figure:
    """Draw a row for each image and a column for each name, with a legend of the classes."""
    rows = len(columns["photo"])
    names = [*OKABE_ITO, "#B0E0A0"]
    if len(classes) > len(names):
        names = seaborn.color_palette("husl", len(classes))
    colours = ListedColormap(names[: len(classes)]).with_extremes(over="white")
    fig = Figure((1.6 * len(columns), 1.3 * rows + 0.8), layout="constrained")
    axes = fig.subplots(rows, len(columns), squeeze=False)
    for column, (name, pictures) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize=9)
        for axis, picture in zip(column, pictures, strict=True):
            axis.imshow(
                picture, colours, vmin=-0.5, vmax=len(classes) - 0.5, interpolation="nearest"
            )
            axis.set_axis_off()
    patches = [Patch(color=colours(i), label=name) for i, name in enumerate(classes)]
    fig.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return fig


if __name__ == "__main__":
    main()
