"""Write files and tables into the documentation's pages: python tools/write_pages.py [WORK_DIR].

The records of runs in WORK_DIR are added to ``reports/records`` first. A page keeps its text; only
the lines between a marker and ``<!-- end -->`` are written again:

    <!-- file: PATH -->         a file, as a block of code
    <!-- table: ID -->          a table of the records
    <!-- rows: papers -->       how many rows of the papers' tables were run
    <!-- differences: all -->   the study's differences from the plain norm
    <!-- answers: FOLDER -->    answers by the comparisons in a folder below reports/
    <!-- summary: FOLDER -->    how many of both are above or below 0, by norm
    <!-- conditions: NAME -->   mIoU of a comparison's models, by norm and kind of test images
    <!-- contrast: TABLE -->    low contrast: answers, means, or what was found afterwards
    <!-- rates: NAME -->        mIoU of the comparisons NAME-rateR, by norm and learning rate R
    <!-- batches: NAME -->      box AP of the comparisons NAME-batchN, by norm and images a step
    <!-- options: all -->       the layers' options, from signatures and docstrings
    <!-- names: SECTION -->     public names of the API reference, with the docstrings' first lines

``configs/metafile.yml`` gets the papers' configs and figures from papers.json.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from ilm_plugins.experiments.papers import paper_plots, paper_record, paper_report, published
from ilm_plugins.experiments.papers.paper_report import Groups
from ilm_plugins.experiments.reports.table import of_dicts
from pages import batches, daylight, metafile, options, questions, reference, study
from pages.comparisons import COMPARISONS, ROOT, by_seed, by_setting

RECORDS = ROOT / "reports" / "records"
#: Pages of the papers, with plots; the study is part of the page on the evidence.
REPORTS = ROOT / "docs" / "reproduction"
PAPERS = ("ilm", "assoc", "en")
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
FIGURES = ROOT / "docs" / "figures"
METAFILE = ROOT / "configs" / "metafile.yml"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "sh"}


def file(name: str, groups: Groups) -> list[str]:
    path = ROOT / name
    return [f"```{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}```"]


def rates(name: str, groups: Groups) -> list[str]:
    """Return mIoU by norm and learning rate of one seed, "-" for a run that is missing."""
    folders = by_setting(f"{name}-rate")
    rows = []
    for norm in sorted({path.name for folder in folders.values() for path in folder.iterdir()}):
        row = {"": norm.replace("-", " ")}
        for rate, folder in folders.items():
            values = by_seed(folder / norm).values()
            row[f"{rate:g}"] = ", ".join(f"{value:.1f}" for value in values) or "-"
        rows.append(row)
    return of_dicts(rows)


#: Name of a part about contrast -> the function that returns its lines.
CONTRAST = {
    "afterwards": daylight.afterwards,
    "answers": daylight.answers,
    "means": daylight.means,
}
#: Kind of a part -> the function that returns its lines.
KINDS: dict[str, Callable[[str, Groups], list[str]]] = {
    "file": file,
    "table": lambda name, groups: study.table(published.find_table(name), groups),
    "rows": lambda name, groups: paper_report.rows_run(PAPERS, groups),
    "differences": lambda name, groups: study.differences(groups),
    "answers": lambda name, groups: questions.markdown(ROOT / "reports" / name),
    "summary": lambda name, groups: study.summary(ROOT / "reports" / name, groups),
    "conditions": lambda name, groups: daylight.conditions(COMPARISONS / name),
    "contrast": lambda name, groups: CONTRAST[name](COMPARISONS),
    "rates": rates,
    "batches": lambda name, groups: batches.markdown(batches.detectors(name, groups)),
    "options": lambda name, groups: options.table(),
    "names": lambda name, groups: reference.table(name),
}
#: A part of a page: start marker, kind, name, end marker.
PART = re.compile(rf"(<!-- ({'|'.join(KINDS)}): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def documented() -> dict[Path, str]:
    """Return path -> text of each page that shows other files or records, and the metafile."""
    groups = paper_report.by_cell(RECORDS)

    def fill(match: re.Match) -> str:
        start, kind, name, end = match.groups()
        return "\n".join([start, *KINDS[kind](name, groups), "", end])

    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    pages = {page: PART.sub(fill, text) for page, text in texts.items() if PART.search(text)}
    pages[METAFILE] = metafile.metafile(METAFILE.read_text(encoding="utf-8"))
    return pages | {REPORTS / f"{p}.md": paper_report.page(p, groups, REPORTS) for p in PAPERS}


def main() -> None:
    if sys.argv[1:]:
        paper_record.collect_all(Path(sys.argv[1]), RECORDS)
    groups = paper_report.by_cell(RECORDS)
    for drawn in published.tables().values():
        if drawn.paper in PAPERS or drawn.id == "study":
            paper_report.draw(drawn, groups, REPORTS)
    if panels := daylight.panels(COMPARISONS / "daylight"):
        paper_plots.save(paper_plots.differences(panels), FIGURES / "daylight.png", [])
    for page, text in documented().items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
