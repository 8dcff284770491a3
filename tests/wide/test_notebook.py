"""The notebook docs/notebook.ipynb: its cells run, and print what the page shows."""

import copy
import re
import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.wide
nbformat = pytest.importorskip("nbformat", reason="needs nbformat and nbclient")
pytest.importorskip("nbclient", reason="needs nbformat and nbclient")
#: By its path: detectron2's wheel has a package called ``tools``, too.
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "run_notebook.py"))


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(TOOL["NOTEBOOK"], as_version=4)


@pytest.fixture(scope="module")
def executed(committed, tmp_path_factory):
    """The notebook, executed with trainings of two steps."""
    for package in ("ipykernel", "torchvision", "scipy", "matplotlib"):
        pytest.importorskip(package, reason=f"needs {package}")
    notebook = copy.deepcopy(committed)
    for cell in notebook.cells:
        cell.source = re.sub(r"STEPS = \d+", "STEPS = 2", cell.source)
    assert notebook.cells != committed.cells
    TOOL["execute"](notebook, tmp_path_factory.mktemp("notebook"))
    return notebook


def outputs(notebook, name=None):
    """The outputs of all cells, but those on stderr; or the stream of a name."""
    found = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return [o for o in found if (o.get("name") == name if name else o.get("name") != "stderr")]


def shown(output):
    """What an output shows on every machine: of a table, the header, the norms and their seeds."""
    if output.output_type == "stream":
        return output.text
    text = output.data["text/plain"]
    rows = [re.split(r" *\| *", row)[1:-1] for row in text.splitlines() if row[0:1] == "|"]
    if rows:
        return [rows[0], *(row[:2] for row in rows[2:])]
    return re.sub(r"\d+\.\d+", "#", text)


def test_the_notebook_shows_what_its_cells_print(committed, executed):
    expected = [shown(output) for output in outputs(committed)]
    assert [shown(output) for output in outputs(executed)] == expected
    assert sum(output.output_type == "stream" for output in outputs(executed)) == 3


def test_the_notebooks_cells_warn_of_nothing(executed):
    assert not [o.text for o in outputs(executed, "stderr") if "warn" in o.text.lower()]


def test_the_notebook_is_saved_as_its_tool_saves_it(committed):
    saved = copy.deepcopy(committed)
    TOOL["clean"](saved)
    assert saved == committed
    counts = [cell.execution_count for cell in saved.cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]
