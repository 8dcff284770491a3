"""Write files and tables into the documentation's pages: python tools/write_pages.py [WORK_DIR].

The records of runs in WORK_DIR are added to ``reports/records`` first. A page keeps its text; only
the lines between a marker and ``<!-- end -->`` are written again:

    <!-- file: PATH -->         a file, as a block of code
    <!-- table: ID -->          a table of the records
    <!-- rows: PAPER -->        how many rows of a paper's tables were run
    <!-- differences: all -->   the study's differences from the plain norm
    <!-- answers: FOLDER -->    answers by the comparisons in a folder below reports/
    <!-- summary: FOLDER -->    how many of both are above or below 0, by norm
    <!-- conditions: NAME -->   mIoU of a comparison's models, by norm and kind of test images
    <!-- contrast: TABLE -->    low contrast: answers, means, or what was found afterwards
    <!-- rates: NAME -->        mIoU of the comparisons NAME-rateR, by norm and learning rate R
"""

import re
import sys
from collections import defaultdict
from itertools import chain
from pathlib import Path

from ilm_plugins.experiments.compare import statistics
from ilm_plugins.experiments.compare.results import OWN_TEST
from ilm_plugins.experiments.papers import (
    batches,
    conditions,
    contrast,
    paper_report,
    pictures,
    questions,
    registry,
    row_record,
)
from ilm_plugins.frameworks.run_record import PLAIN

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "reports" / "records"
#: Pages of the papers, with plots; the study is part of the page on the evidence.
REPORTS = ROOT / "docs" / "reproduction"
PAPERS = ("ilm", "assoc", "en")
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
FIGURES = ROOT / "docs" / "figures"
COMPARISONS = ROOT / "reports" / "comparisons"
#: A part of a page: start marker, kind, name, end marker.
KINDS = "file|table|rows|differences|answers|summary|conditions|contrast|rates|batches"
PART = re.compile(rf"(<!-- ({KINDS}): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "sh"}


def file(name: str, groups: paper_report.Groups) -> str:
    path = ROOT / name
    return f"```{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}```"


def table(name: str, groups: paper_report.Groups) -> str:
    entry = registry.find_table(name)
    rows = [groups[cell.canonical.id] for cell in entry.cells.values()]
    seeds = sorted({run["seed"] for group in chain.from_iterable(rows) for run in group})
    command = paper_report.comparison(entry, seeds)
    lines = [f"`{command}` trains these rows.", ""] if command else []
    return "\n".join([*lines, *paper_report.table_lines(entry, groups)])


def rows(name: str, groups: paper_report.Groups) -> str:
    return "\n".join(paper_report.rows_run(name, groups))


def differences(name: str, groups: paper_report.Groups) -> str:
    """Return all differences of the study from the plain norm."""
    columns = "task", "measure", "norms", "difference", "95 % interval", "p, corrected"
    columns += "not excluded", "power, 1 point", "seeds"
    lines = paper_report.markdown_head(*columns)
    for entry, norms, group, difference in study_differences(groups):
        ends = difference.mean, difference.low, difference.high
        mean, low, high = map(statistics.signed, ends)
        failed = len(group) - sum(map(row_record.learned, group))
        seeds = f"{difference.seeds}" + (f" ({failed} more did not learn)" if failed else "")
        cells = entry.task, entry.measures[0], norms, mean, f"{low} to {high}"
        further = questions.ends(*difference.left), f"{difference.power_of(1):.2f}"
        cells += f"{difference.p:.3f}", *further, seeds
        lines.append(paper_report.markdown_row(*cells))
    return "\n".join(lines)


def study_differences(groups: paper_report.Groups) -> list[tuple]:
    """Return table, norms, group and corrected difference of each row of the study's tables."""
    tables = [entry for entry in registry.tables().values() if entry.task]
    compared = [
        (entry, *row) for entry in tables for row in paper_report.differences(entry, groups)
    ]
    corrected = statistics.holm([difference for *_, difference in compared])
    return [
        (entry, norms, group, difference)
        for (entry, norms, _, group, _), difference in zip(compared, corrected, strict=True)
    ]


def summary(name: str, groups: paper_report.Groups) -> str:
    """Return the range of the differences by norms, and how many intervals exclude 0."""
    by_norms = defaultdict(list)
    for _, norms, _, difference in study_differences(groups):
        by_norms[norms].append(difference)
    for answer in questions.answers(ROOT / "reports" / name):
        if answer.difference:
            by_norms[f"{answer.norm} - {answer.plain}"].append(answer.difference)
    columns = "norms", "differences", "means", "intervals above 0", "below 0", "significant"
    lines = paper_report.markdown_head(*columns)
    for norms, compared in by_norms.items():
        means = sorted(difference.mean for difference in compared)
        ends = " to ".join(statistics.signed(mean) for mean in dict.fromkeys((means[0], means[-1])))
        above = sum(difference.low > 0 for difference in compared)
        below = sum(difference.high < 0 for difference in compared)
        significant = sum(difference.p < statistics.ALPHA for difference in compared)
        cells = (norms, str(len(compared)), ends, str(above), str(below), str(significant))
        lines.append(paper_report.markdown_row(*cells))
    return "\n".join(lines)


def answers(name: str, groups: paper_report.Groups) -> str:
    return "\n".join(questions.markdown(ROOT / "reports" / name))


def kinds_of_images(name: str, groups: paper_report.Groups) -> str:
    return "\n".join(conditions.markdown(COMPARISONS / name))


def low_contrast(name: str, groups: paper_report.Groups) -> str:
    tables = {f.__name__: f for f in (contrast.answers, contrast.means, contrast.afterwards)}
    return tables[name](COMPARISONS)


def rates(name: str, groups: paper_report.Groups) -> str:
    """Return mIoU by norm and learning rate of one seed, "-" for a run that is missing."""
    folders = {
        float(folder.name.partition("-rate")[2]): folder
        for folder in COMPARISONS.glob(f"{name}-rate*")
    }
    norms = sorted({path.name for folder in folders.values() for path in folder.iterdir()})
    lines = paper_report.markdown_head("", *(f"{rate:g}" for rate in sorted(folders)))
    for norm in norms:
        cells = []
        for rate in sorted(folders):
            values = questions.by_seed(folders[rate] / norm, OWN_TEST, "mIoU").values()
            cells.append(", ".join(f"{value:.1f}" for value in values) or "-")
        lines.append(paper_report.markdown_row(norm.replace("-", " "), *cells))
    return "\n".join(lines)


def detectors(name: str, groups: paper_report.Groups) -> str:
    """Return box AP by images a step: of comparisons, and of the study's batches of 4."""
    norms = {norm for pair in batches.PAIRS.items() for norm in pair}
    found = {
        int(folder.name.partition("-batch")[2]): {
            norm: questions.by_seed(folder / norm, OWN_TEST, batches.METRIC) for norm in norms
        }
        for folder in COMPARISONS.glob(f"{name}-batch*")
    }
    cells = registry.find_table("study-all").cells
    found[4] = {
        cell.norm_name: {
            run["seed"]: run["metrics"][PLAIN][batches.METRIC]
            for run in group
            if row_record.learned(run) and batches.METRIC in run["metrics"].get(PLAIN, {})
        }
        for cell in cells.values()
        for group in groups[cell.canonical.id]
        if row_record.is_full(group[0])
    }
    return "\n".join(batches.markdown(found))


def documented() -> dict[Path, str]:
    """Return path -> text of each page that shows other files or records."""
    groups = paper_report.by_cell(RECORDS)
    functions = {
        "file": file,
        "table": table,
        "rows": rows,
        "differences": differences,
        "summary": summary,
        "answers": answers,
        "conditions": kinds_of_images,
        "contrast": low_contrast,
        "rates": rates,
        "batches": detectors,
    }

    def fill(match: re.Match) -> str:
        start, kind, name, end = match.groups()
        return f"{start}\n{functions[kind](name, groups)}\n\n{end}"

    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    pages = {page: PART.sub(fill, text) for page, text in texts.items() if PART.search(text)}
    return pages | {REPORTS / f"{p}.md": paper_report.page(p, groups, REPORTS) for p in PAPERS}


def main() -> None:
    if sys.argv[1:]:
        row_record.collect_all(Path(sys.argv[1]), RECORDS)
    groups = paper_report.by_cell(RECORDS)
    for drawn in registry.tables().values():
        if drawn.paper in PAPERS or drawn.id == "study":
            paper_report.draw(drawn, groups, REPORTS)
    if panels := conditions.panels(COMPARISONS / "daylight"):
        pictures.save(pictures.differences(panels), FIGURES / "daylight.png", [])
    for page, text in documented().items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
