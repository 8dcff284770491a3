"""The list of the papers' tables: whole, in agreement with the configs, and easy to type."""

import json
import re
import shlex
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from ilm_plugins.cli import analyze
from ilm_plugins.errors import UserError
from ilm_plugins.reproduction import computed, record, registry, report
from ilm_plugins.reproduction.main import main, parser

ROOT = Path(__file__).parents[2]
#: The figures of the papers, transcribed a second time.
PUBLISHED = ROOT.parent / "shared" / "paper_results.json"
TABLES = registry.tables()
CELLS = registry.cells()
#: The beginning of a config's comment that claims a place in a paper.
CLAIM = re.compile(r"(?P<paper>ILM|AssocNorm|EN) (Norm )?paper, (?P<number>(Table|Figure) \d+)")
PAPERS = {"ILM": "ilm", "AssocNorm": "assoc", "EN": "en"}
ALL = [
    str(path.relative_to(ROOT))
    for path in ROOT.glob("configs/**/*.*")
    if path.suffix in (".py", ".yaml") and "_base_" not in path.parts
]


def head(config):
    """The comment at the beginning of a config, in one line."""
    lines = (ROOT / config).read_text().splitlines()
    comment = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("# ") for line in comment)


def test_configs_name_the_tables_of_their_cells():
    places = defaultdict(set)
    for cell in CELLS:
        if cell.config:
            places[cell.config].add((TABLES[cell.table].paper, TABLES[cell.table].number))
    claims = {config: CLAIM.match(head(config)) for config in ALL}
    assert {config for config, claim in claims.items() if claim} == places.keys()
    assert len(places) > 70
    for config, found in places.items():
        claim = claims[config]
        assert (PAPERS[claim["paper"]], claim["number"]) in found, config


def numbers(entry):
    """The figures in an entry of the published results, whatever their order."""
    if isinstance(entry, dict):
        labels = ("batch", "columns", "model", "note", "recipe")
        return [n for key, value in entry.items() if key not in labels for n in numbers(value)]
    if isinstance(entry, list):
        return [number for value in entry for number in numbers(value)]
    return [float(entry)] if isinstance(entry, int | float) else []


def test_every_published_figure_has_a_cell():
    if not PUBLISHED.is_file():
        pytest.skip(f"no {PUBLISHED}")
    checked = 0
    for paper, entries in json.loads(PUBLISHED.read_text()).items():
        published, ours = defaultdict(Counter), defaultdict(Counter)
        for key, entry in entries.items():
            if number := re.match(r"table(\d+)_", key):
                published[f"Table {number[1]}"].update(numbers(entry))
        for cell in CELLS:
            if TABLES[cell.table].paper == paper:
                figures = [float(figure) for figure in cell.paper if figure is not None]
                ours[TABLES[cell.table].number].update(figures)
        for number, figures in published.items():
            assert not figures - ours[number], (paper, number)
            checked += figures.total()
    assert checked > 250


def test_every_cell_has_a_folder_and_its_figures_can_be_had():
    assert len({str(cell.folder).lower() for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        table = TABLES[cell.table]
        assert len(cell.paper) == len(table.measures)
        assert not cell.config or all(measure.metrics for measure in record.measures(cell).values())
        assert cell.of is None or table.compute
        for other in filter(None, (cell.tests, cell.starts_from)):
            assert registry.find_cell(other).config


@pytest.mark.parametrize("paper, tables, figures", [("ilm", 8, 4), ("assoc", 5, 5), ("en", 9, 8)])
def test_every_table_and_figure_of_a_paper_is_listed(paper, tables, figures):
    numbers = {table.number.rstrip("ab") for table in TABLES.values() if table.paper == paper}
    assert numbers == {f"Table {n + 1}" for n in range(tables)} | {
        f"Figure {n + 1}" for n in range(figures)
    }


def test_every_row_has_a_config_or_is_computed():
    assert [cell.id for cell in CELLS if (cell.config is None) == (cell.of is None)] == []


@pytest.mark.parametrize(
    "words, names",
    [
        (("en-5", "ResNet20/EN"), ["en-5 ResNet20/EN"]),
        (("EN 5", "resnet20 en"), ["en-5 ResNet20/EN"]),
        (("ilm-6", "ilm+in/in"), ["ilm-6 ILM+IN / IN"]),
        (("en-5", "resnet20"), ["en-5 ResNet20/BN", "en-5 ResNet20/SN", "en-5 ResNet20/EN"]),
        (("ilm-1", "IN"), ["ilm-1 IN"]),
        (("en-7", "pi 50"), ["en-7 pi 50"]),
        # A figure stands for the tables that it shows.
        (("en-fig3", "ResNet20/EN"), ["en-5 ResNet20/EN"]),
        (("en-fig3", "ResNet50/EN"), ["en-2 ResNet50/EN", "en-3 ResNet50/EN"]),
    ],
)
def test_cells_are_found_as_they_are_typed(words, names):
    assert [cell.id for cell in registry.find(*words)] == names


def test_a_figure_alone_stands_for_all_cells_of_its_tables():
    assert {cell.table for cell in registry.find("en-fig3")} == {"en-2", "en-3", "en-5"}


@pytest.mark.parametrize(
    "command", [table.command for table in TABLES.values() if table.command], ids=str
)
def test_the_commands_behind_figures_are_commands(command):
    assert command.startswith("python -m ilm_plugins ")
    name, *words = shlex.split(command)[3:]
    args = {"analyze": analyze.parser, "reproduce": parser}[name]().parse_args(words)
    if hasattr(args, "checkpoint"):
        (checkpoint,) = args.checkpoint
        of_file = [c for c in CELLS if c.config and c.file == args.config_file]
        runs = [c for c in of_file if str(c.folder) in checkpoint]
        assert runs, "no cell's run has these checkpoints"


@pytest.mark.parametrize(
    "words, answer",
    [
        (("en-55",), "no table 'en-55'; near ones are 'en-5'"),
        (("en-5", "ResNt20/EN"), "no row of en-5 'ResNt20/EN'; near ones are 'ResNet20/EN'"),
        (("en-5", ""), "no row of en-5 ''"),
        (("en-fig3", "ResNt20/EN"), "no row of en-fig3 'ResNt20/EN'; near ones are 'ResNet20/EN'"),
        (("en-fig2",), "it is a drawing"),
        (("en-fig4",), "run python -m ilm_plugins analyze compare"),
    ],
)
def test_what_is_not_found_is_told_with_near_ones(words, answer):
    with pytest.raises(UserError, match=re.escape(answer)):
        registry.find(*words)


def test_a_config_in_several_tables_is_run_for_all_of_them():
    assert (
        registry.canonical_cell(registry.find_cell("ilm-4 ILM+GN, batch 64")).id == "ilm-1 ILM+GN"
    )
    assert registry.canonical_cell(registry.find_cell("assoc-1 GN")).id == "ilm-1 GN"
    assert registry.canonical_cell(registry.find_cell("en-9 EN")).id == "en-2 ResNet50/EN"


def test_measures_are_read_from_either_frameworks_metrics():
    measures = registry.measures()
    assert measures["error"].read({"accuracy/top1": 92.5}) == 7.5
    assert measures["box AP"].read({"bbox/AP": 39.1}) == 39.1
    assert measures["box AP"].read({"coco/bbox_mAP": 0.391}) == pytest.approx(39.1)
    assert measures["LPIPS"].read({"rmse": 1.0}) is None


def test_every_trained_table_says_what_is_assumed_and_its_report_does():
    trained = {cell.table for cell in CELLS if cell.config}
    assert len(trained) > 20
    assert not any(TABLES[table].note is None for table in trained)
    for paper in registry.papers():
        page = report.page(paper, {}, ())
        for table in TABLES.values():
            if table.paper == paper and table.note:
                section = page.partition(f"## {table.id}\n")[2].partition("\n## ")[0]
                assert f"\n{table.note}\n" in section


def test_the_list_has_every_cell_and_what_is_behind_it(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for cell in CELLS:
        assert any(cell.name in line and (not cell.config or cell.config in line) for line in lines)
    assert all(
        f"  python -m ilm_plugins reproduce run {table.id}" in lines
        for table in TABLES.values()
        if table.cells
    )
    assert any("ResNet20/EN" in line and " 92.41 " in line for line in lines)
    assert main(["list", "en-fig3"]) == 0
    assert "curves of en-5, en-2, en-3" in capsys.readouterr().out


def test_all_pairs_of_activations_that_did_not_converge_are_cells():
    bounded, unbounded = ("tanh", "sigmoid"), ("relu", "leaky_relu", "relu6", "identity")
    pairs = {f"({a}, {b})" for a in unbounded for b in (*bounded, *unbounded)}
    pairs |= {f"({a}, {b})" for a in bounded for b in unbounded}
    cells = TABLES["ilm-7"].cells.values()
    assert {cell.name for cell in cells if cell.says == "did not converge"} == pairs
    assert len(pairs) == 32


COMPUTED = sorted((ROOT / "reports" / "records").glob("*.json"))
COMPUTED = [path for path in COMPUTED if record.read(path)["label"] == "computed"]
SLOW = re.compile(r"-cost-|ResNet-(18|34|101|152)-")


#: 2.4628 %, which the paper prints as 2.462; and the power of C, on which ratios hardly depend.
NOT_TO_THE_LAST_DIGIT = {"ResNet-34, key groups of 1": 1e-3, "EN": 0.01}


@pytest.mark.parametrize(
    "table, rows, digits", [("ilm-8", 10, 3), ("assoc-4", 10, 2), ("en-1", 7, 3)]
)
def test_kept_figures_are_the_papers(table, rows, digits):
    found = [r for r in map(record.read, COMPUTED) if r["table"] == table]
    assert len(found) == rows
    for one in found:
        paper = TABLES[table].cells[one["cell"]].paper
        tolerance = NOT_TO_THE_LAST_DIGIT.get(one["cell"], 0.5 * 10**-digits)
        for ours, theirs in zip(one["figures"].values(), paper, strict=True):
            assert theirs is None or abs(ours - theirs) <= tolerance, one["cell"]


def test_every_computed_cell_has_a_record():
    found = {(r["table"], r["cell"]) for r in map(record.read, COMPUTED)}
    assert found == {(cell.table, cell.name) for cell in CELLS if cell.of is not None}


@pytest.mark.parametrize(
    "path",
    [
        # To count operations takes half a minute each; ResNets differ in their depth.
        pytest.param(path, marks=[pytest.mark.wide] * bool(SLOW.search(path.name)), id=path.stem)
        for path in COMPUTED
    ],
)
def test_kept_figures_are_those_computed_now(path):
    pytest.importorskip("torchvision", reason="needs torchvision")
    found = record.read(path)
    cell = TABLES[found["table"]].cells[found["cell"]]
    if cell.table.startswith("en-"):
        pytest.importorskip("fvcore", reason="needs fvcore")
    if "cost" in cell.table:
        pytest.importorskip("mmpretrain", reason="needs mmpretrain")
    assert computed.compute(cell) == pytest.approx(found["figures"], rel=1e-5)


def test_the_cost_of_a_config_is_computed(tmp_path):
    pytest.importorskip("fvcore", reason="needs fvcore")
    pytest.importorskip("mmpretrain", reason="needs mmpretrain")
    cell = registry.find_cell("en-2-cost ShuffleNetV2 x0.5/BN")
    assert main(["run", cell.table, cell.name, "--work-dir", str(tmp_path)]) == 0
    written = record.read(tmp_path / cell.folder / "record.json")
    assert written["label"] == "computed"
    assert written["figures"] == {"parameters": 1.36679, "GFLOPs": pytest.approx(0.043, abs=5e-4)}
