"""Draw EN's Figures 1a and 4 to 8 from tables of ``python -m reproduction analyze ratios``.

Run it as: python -m reproduction.paper_figures OUTPUT.png ratios_by_image.csv ...

Of one table: the mean ratios by layer (Fig. 4), and the images by their ratios in all layers, by
t-SNE (Fig. 8). Of several, one for each checkpoint in the order of the training: the mean ratios by
layer over the training (Fig. 5), and by class (Figs. 1a, 6). A table has the ratios of each image
in each layer, in columns LAYER/NORMALIZER.
"""

import sys
from pathlib import Path

import pandas as pd
import seaborn as sns
from sklearn.manifold import TSNE

#: The largest number of layers in a picture of classes.
LAYERS = 6


def read(paths: list[str]) -> pd.DataFrame:
    """Return a row for each ratio: checkpoint, image, class, layer, normalizer and value."""
    tables = [pd.read_csv(path).assign(checkpoint=i) for i, path in enumerate(paths)]
    long = pd.concat(tables).melt(["checkpoint", "image", "class"], var_name="name")
    long[["layer", "normalizer"]] = long.pop("name").str.rsplit("/", n=1, expand=True)
    return long


def by_layer(long: pd.DataFrame) -> sns.FacetGrid:
    options = {"kind": "line", "x": "layer", "y": "value", "hue": "normalizer", "errorbar": "sd"}
    return sns.relplot(long, aspect=3, **options).tick_params("x", rotation=90)


def dynamics(long: pd.DataFrame) -> sns.FacetGrid:
    options = {"kind": "line", "x": "checkpoint", "y": "value", "errorbar": None}
    if long["class"].nunique() < 2:
        return sns.relplot(long, col="layer", col_wrap=5, hue="normalizer", height=2, **options)
    layers = long["layer"].unique()
    shown = long[long["layer"].isin(layers[:: -(-len(layers) // LAYERS)])]
    return sns.relplot(shown, row="layer", col="normalizer", hue="class", height=2, **options)


def embedded(long: pd.DataFrame) -> pd.DataFrame:
    """Return the place of each image, x and y, by the ratios in all layers."""
    points = long.pivot(index=["image", "class"], columns=["layer", "normalizer"], values="value")
    perplexity = min(30.0, (len(points) - 1) / 3)
    places = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(points)
    return pd.DataFrame(places, points.index, ["x", "y"]).reset_index()


def main() -> None:
    output, *paths = sys.argv[1:]
    long = read(paths)
    if len(paths) > 1:
        dynamics(long).savefig(output)
        return
    by_layer(long).savefig(output)
    points = sns.relplot(embedded(long), x="x", y="y", hue="class")
    points.savefig(Path(output).with_stem(f"{Path(output).stem}_map"))


if __name__ == "__main__":
    main()
