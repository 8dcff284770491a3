"""configs/metafile.yml, which lists the papers' configs for OpenMMLab's tools, from papers.json."""

import re
from pathlib import Path

from ..papers import published
from ..papers.published import Cell

#: Framework -> what its models do, in the words of OpenMMLab's Model Index.
TASKS = {
    "mmdet": "Instance Segmentation",
    "mmseg": "Semantic Segmentation",
    "pix2pix": "Image-to-Image Translation",
}
#: Part of a config's name -> the dataset of the paper's figures.
DATASETS = {
    "ade20k": "ADE20K",
    "batch2": "COCO test",
    "batch16": "COCO test",
    "cityscapes": "Cityscapes test",
    "facades": "Facades",
}
#: Another reading of the figure of RMSE.
LEFT_OUT = {"RMSE of RGB vectors"}


def metafile(text: str) -> str:
    """Return the file's text with the papers and models of papers.json in place of its own."""
    head, begin, _ = text.partition("\nCollections:\n")
    papers = dict.fromkeys(published.tables()[cell.table].paper for cell in models())
    return "".join([head, begin, *map(_collection, papers), "Models:\n", *map(_model, models())])


def models() -> list[Cell]:
    """Return each of MMEngine's configs in configs/ with a paper's figures, by its first row."""
    cells: dict[str, Cell] = {}
    for cell in published.cells():
        of_mmengine = re.fullmatch(r"configs/.*\.py", cell.config or "")
        is_changed = cell.norm or cell.overrides
        if of_mmengine and not is_changed and not cell.tests and any(cell.paper):
            cells.setdefault(cell.config, cell)
    return [*cells.values()]


def _collection(paper: str) -> str:
    found = published.papers()[paper]
    paper = f'{{Title: {found.title}, URL: "{found.url}"}}'
    return f"  - {{Name: {found.name}, Paper: {paper}}}\n"


def _model(cell: Cell) -> str:
    table = published.tables()[cell.table]
    # A name is the path below the framework's folder: two papers have a ResNet-50 with BN.
    framework, *below = Path(cell.config).relative_to("configs").with_suffix("").parts
    dataset = next(DATASETS[part] for part in below[-1].split("_") if part in DATASETS)
    figures = ", ".join(
        f"{measure} of the paper: {value}"
        for measure, value in zip(table.measures, cell.paper, strict=True)
        if value is not None and measure not in LEFT_OUT
    )
    result = f"Task: {TASKS[framework]}, Dataset: {dataset}, Metrics: {{{figures}}}"
    return f"""\
  - Name: {"_".join(below)}
    In Collection: {published.papers()[table.paper].name}
    Config: {cell.config}
    Results: [{{{result}}}]
"""
