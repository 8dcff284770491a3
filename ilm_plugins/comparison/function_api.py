"""A comparison of norms in a training function of the user's own, as in a notebook.

Importing this module imports neither torch, scipy nor matplotlib; the first call does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import missing

if TYPE_CHECKING:
    from .function_source import Train
    from .results import Results, Value


@dataclass(frozen=True, repr=False)
class Comparison:
    """What :func:`ilm_plugins.compare` returns; a notebook shows its table and its picture."""

    #: The values, and the paired differences from the first norm.
    results: Results
    #: The folder with compare.md, compare.csv and compare.png.
    output: Path
    #: The report in Markdown.
    report: str

    @property
    def table(self) -> list[dict[str, str]]:
        """The report's table, a row for each norm; ``pandas.DataFrame(comparison.table)``."""
        from .report import table

        return table(self.results, self.results.tests[0])

    @property
    def values(self) -> Sequence[Value]:
        """The rows of compare.csv: norm, seed, test, metric, value, failure, seconds and more."""
        return self.results.values

    def __repr__(self) -> str:
        return self.report

    def _repr_html_(self) -> str:
        """The answer, verdicts, table and picture, and a link to compare.html."""
        from urllib.parse import quote

        import pandas as pd

        from ..reports.style import uri
        from .answers import compared_by, headline, notes, warnings
        from .report import sentences

        results, page = self.results, str(self.output / "compare.html")
        above = [headline(results), compared_by(results), *warnings(results)]
        above += sentences(results, results.tests[0])
        above, below = (
            [f"<p>{escape(text)}</p>" for text in texts] for texts in (above, notes(results))
        )
        if results.main:
            source = uri((self.output / "compare.png").read_bytes(), "png")
            below.append(f'<img alt="all runs" style="max-width: 100%" src="{source}">')
        link = f'<p><a href="{quote(page)}">{escape(page)}</a></p>'
        return "\n".join(
            [*above, pd.DataFrame(self.table).to_html(index=False, border=0), *below, link]
        )


def compare(
    train: Train,
    norms: Sequence[str],
    seeds: Sequence[int] = range(5),
    output: str | Path | None = None,
    *,
    metric: str | None = None,
    higher_is_better: bool = True,
    margin: float | None = None,
    unit: str | None = None,
) -> Comparison:
    """Train with several norms and seeds, and compare them with the first norm.

    All runs are in this process, one after the other, and recorded in ``output/NORM/seedN``.
    Recorded runs are skipped, so the same call continues what was stopped. An exception in a run is
    recorded as its failure, with the traceback in ``output/NORM/seedN.log``; the other runs go on,
    and the next call starts the run again. Ctrl-C ends the call. Needs the extra ``compare``.

    Args:
        train: trains one model: ``train(norm, seed, folder)`` returns metric -> number. It seeds
            the random number generators itself, and may write to ``folder``.
        norms: names that ``train`` knows, such as "BN" and "EN"; the first is the baseline.
        seeds: each norm is trained with each seed; five by default.
        output: the comparison's folder; by default ``output/compare/`` and the function's name.
            Recorded runs are kept, with a message, if the code of the function, or what it uses
            from its module, has changed.
        metric: the metric to compare; by default the first.
        higher_is_better: False for a metric such as a loss.
        margin: also say which norms are equivalent to the baseline within so many points; a point
            is 1, or .01 of a fraction.
        unit: of the metric, "percent", "fraction", or "number" if it has no largest value; by
            default a fraction if a higher metric is better and all values are in 0 to 1, else a
            number.

    Raises:
        UserError: a norm or a seed is given twice, ``unit`` is another word, ``margin`` is not
            above 0, a run lacks the metric, the folder is in use or has runs of another function,
            or a package is missing.

    Example:
        >>> def train(norm, seed, folder):
        ...     torch.manual_seed(seed)
        ...     model = timm.create_model("resnet18", norm_layer=norm)
        ...     return {"top1": accuracy(model)}
        >>> comparison = ilm_plugins.compare(train, ["batchnorm2d", "en"])
    """
    try:
        from . import comparison
        from .function_source import FunctionSource
        from .plan import Plan
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ilm_plugins"):
            raise
        raise missing("ilm_plugins.compare", error, "compare") from None
    name = getattr(train, "__name__", type(train).__name__)
    folder = Path("output/compare", name) if output is None else Path(output)
    source = FunctionSource(train)
    plan = Plan(source, [*norms], [*seeds], folder, metric, margin, higher_is_better, unit)
    command = f"ilm_plugins.compare({name}, {[*norms]}, seeds={[*seeds]})"
    results = comparison.compare_plan(plan, command, source.make_runs)
    return Comparison(results, folder, (folder / "compare.md").read_text("utf-8"))
