"""The page of a comparison, compare.html: one file that needs no network and no script."""

from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from ..reports.style import png, uri
from . import plot, report
from .answers import answers, compared_by, headline, notes, warnings
from .results import Results


def page(results: Results, command: str) -> str:
    """Return compare.html."""
    template = files(__package__).joinpath("page.html.jinja").read_text("utf-8")
    pages = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    return pages.from_string(template).render(
        results=results,
        title=report.title_of(results),
        headline=headline(results),
        compared_by=compared_by(results),
        command=command,
        about=report.ABOUT,
        notes=notes(results),
        answers={test: answers(results, test) for test in results.tests},
        tables={test: report.filled(report.table(results, test)) for test in results.tests},
        has_differences=plot.has_differences(results),
        collapsed=any(plot.collapsed_runs(results, test) for test in results.tests),
        runs=uri(png(plot.figure_of(results)), "png") if results.main else None,
        history=report.history_table(results),
        warnings=warnings(results),
        failures=report.failures(results),
    )
