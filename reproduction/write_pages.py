"""Write files and tables into the documentation's pages: python -m reproduction.write_pages.

The results are the CSV files in ``records/``. A page keeps its text; only the lines between a
marker and ``<!-- end -->`` are written again:

    <!-- file: PATH -->         a file, as a block of code
    <!-- table: ID -->          a table of the results
    <!-- rows: papers -->       how many rows of the papers' tables were run
    <!-- differences: all -->   the study's differences from the plain norm
    <!-- answers: all -->       answers to the questions of questions.json
    <!-- summary: comparisons --> how many of both are above or below 0, by norm
    <!-- conditions: NAME -->   mIoU of a comparison's models, by norm and kind of test images
    <!-- contrast: TABLE -->    low contrast and standardized inputs: a table of CONTRAST
    <!-- ilm: answers -->       ILM and the norm that it builds on
    <!-- corrupted: STUDY -->   planned tests on corrupted images, STUDY-kinds by kind of images
    <!-- rates: NAME -->        the comparisons NAME-rateR, by norm and learning rate R
    <!-- batches: NAME -->      box AP of the comparisons NAME-batchN, by norm and images a step
    <!-- options: all -->       the layers' options, from signatures and docstrings

``configs/metafile.yml`` gets the papers' configs and figures from papers.json.
"""

import re
from collections.abc import Callable
from pathlib import Path

from .pages import (
    batches,
    comparisons,
    corruptions,
    daylight,
    folds,
    ilm,
    metafile,
    options,
    papers,
    plots,
    questions,
    results,
    study,
)
from .pages.results import ROOT, Results
from .papers import published

PAPERS = ("ilm", "assoc", "en")
PAGES = [ROOT / "README.md", ROOT / "reproduction" / "results.md", *ROOT.glob("docs/**/*.md")]
FIGURES = ROOT / "docs" / "figures"
METAFILE = ROOT / "configs" / "metafile.yml"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "sh"}


def file(name: str, found: Results) -> list[str]:
    path = ROOT / name
    return [f"```{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}```"]


def corrupted(name: str, found: Results) -> list[str]:
    study, _, is_by_kind = name.partition("-")
    return (corruptions.kinds if is_by_kind else corruptions.answers)(found, study)


#: Name of a part about contrast -> the function that returns its lines.
CONTRAST = {
    "afterwards": daylight.afterwards,
    "answers": daylight.answers,
    "means": daylight.means,
    "folds": folds.answers,
    "folds-changes": folds.changes,
    "folds-means": folds.means,
}
#: Comparisons by learning rate -> their metric, if it is not mIoU.
METRICS = {"ilm": "top-1", "cifar": "top-1"}
#: Kind of a part -> the function that returns its lines.
KINDS: dict[str, Callable[[str, Results], list[str]]] = {
    "file": file,
    "table": lambda name, found: study.table(published.find_table(name), found),
    "rows": lambda name, found: papers.rows_run(PAPERS, found),
    "differences": lambda name, found: study.differences(found),
    "answers": lambda name, found: questions.markdown(found),
    "summary": lambda name, found: study.summary(found),
    "conditions": lambda name, found: daylight.conditions(found, name),
    "contrast": lambda name, found: CONTRAST[name](found),
    "rates": lambda name, found: comparisons.rates(found, name, METRICS.get(name, "mIoU")),
    "ilm": lambda name, found: ilm.answers(found),
    "corrupted": corrupted,
    "batches": lambda name, found: batches.markdown(batches.detectors(name, found)),
    "options": lambda name, found: options.table(),
}
#: A part of a page: start marker, kind, name, end marker.
PART = re.compile(rf"(<!-- ({'|'.join(KINDS)}): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def documented() -> dict[Path, str]:
    """Return path -> text of each page that shows other files or records, and the metafile."""
    found = results.load()

    def fill(match: re.Match) -> str:
        start, kind, name, end = match.groups()
        return "\n".join([start, *KINDS[kind](name, found), "", end])

    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    pages = {page: PART.sub(fill, text) for page, text in texts.items() if PART.search(text)}
    return pages | {METAFILE: metafile.metafile(METAFILE.read_text(encoding="utf-8"))}


def main() -> None:
    found = results.load()
    plots.save(plots.study(found), FIGURES / "study.png")
    plots.save(plots.training(published.find_table("en-5")), FIGURES / "en-5.png")
    plots.save(plots.differences(daylight.panels(found)), FIGURES / "daylight.png")
    plots.save_svg(plots.finding(folds.by_contrast(found)), FIGURES / "finding.svg")
    models = (
        corruptions.by_model(found, "cifar", tests)
        for tests in (corruptions.CORRUPTED["cifar"], [results.OWN_TEST])
    )
    plots.save_svg(plots.corrupted(*models), FIGURES / "corruptions.svg")
    if ilm.values(found, "BN"):
        plots.save(ilm.points(found), FIGURES / "ilm_seeds.png")
    for page, text in documented().items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
