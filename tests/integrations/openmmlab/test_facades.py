"""The report of Table 6 from runs' folders."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")
pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

from ilm_plugins.evaluation import images
from ilm_plugins.integrations import training
from ilm_plugins.integrations.openmmlab import facades
from runs import pix2pix_command


@pytest.fixture(scope="module")
def run(root, datasets, tmp_path_factory):
    """The folder of a run that is as short as can be, on the generated shapes."""
    out = tmp_path_factory.mktemp("run")
    opts = ["custom_hooks=[{'type': 'EMAHook', 'momentum': 0.1}]"]
    assert training.main(pix2pix_command(root, datasets, out=out, opts=opts)) == 0
    evaluation = pix2pix_command(root, datasets, "--eval-only", "--resume", out=out)
    assert training.main(evaluation) == 0
    return out


def test_a_short_run_stands_beside_the_papers_rows_and_in_none(root, run, tmp_path):
    output = tmp_path / "reports" / "facades.json"
    argv = ["--run", str(run), "tools/train_net.py ...", "--device", "CPU", "--output", str(output)]
    tool = [sys.executable, str(root / "tools" / "report_facades.py")]
    done = subprocess.run([*tool, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert {row["method"]: row["paper"] for row in report["table 6"]} == facades.PAPER
    assert [row["ours"] for row in report["table 6"]] == 3 * ["not run"]
    (short,) = report["shortened"]
    assert short["method"] == "ILM+IN / IN" and short["command"] == "tools/train_net.py ..."
    assert (short["training images"], short["epochs"], short["seed"]) == (8, 2, 0)
    assert short["moving average of weights, momentum"] == 0.1
    assert len(short["losses by epoch"]) == 2
    files = sorted((run / "test" / "output").iterdir())
    pairs = ((images.read(p), images.read(run / "test" / "target" / p.name)) for p in files)
    assert short["figures"] == {**images.compare(pairs, images.MEASURES), "lpips": None}
    assert short["mean training image"]["l1"] > 0 and "not computed" in short["lpips"]
    assert "| ILM+IN / IN | 8 | 2 | " in done.stdout


def test_the_full_recipe_takes_the_papers_row(run, monkeypatch):
    monkeypatch.setattr(facades, "EPOCHS", 2)
    monkeypatch.setattr(facades, "IMAGES", 8)
    report = facades.report([facades.read_run(str(run), "")], "CPU")
    assert [row["ours"] == "not run" for row in report["table 6"]] == [True, False, True]
    assert report["shortened"] == []


def test_the_papers_rows_are_quoted(root):
    assert facades.CONFIGS.keys() == facades.PAPER.keys()
    for method, row in facades.PAPER.items():
        words = f"RMSE {row['rmse']}, LPIPS {row['lpips']}, SSIM {row['ssim']:.3f}"
        assert words in (root / facades.CONFIGS[method]).read_text().splitlines()[0]


def test_folders_that_are_no_runs(run, tmp_path, capsys):
    assert facades.main(["--run", str(tmp_path), ""]) == 2
    assert "has no run of tools/train_net.py" in capsys.readouterr().err
    for name in ("scalars.json", "config.py"):
        (tmp_path / "1" / "vis_data").mkdir(parents=True, exist_ok=True)
        source = next(run.glob(f"*/vis_data/{name}"))
        (tmp_path / "1" / "vis_data" / name).write_text(source.read_text())
    assert facades.main(["--run", str(tmp_path), ""]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "1" / "vis_data" / "scalars.json").unlink()
    assert facades.main(["--run", str(tmp_path), ""]) == 2
    assert "has no losses" in capsys.readouterr().err
