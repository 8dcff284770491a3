"""The comparisons of scripts that docs/compare.md shows, with the packages' own trainings.

timm's train.py and torchvision's references are in no package; stand-ins have their options, and
write what they write.
"""

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the extra ilm_plugins[compare]")

from fresh import PROGRAMS
from ilm_plugins.__main__ import main
from runs import documented_comparison, words_of_comparison

pytestmark = pytest.mark.wide


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")


def compared(command):
    """Run a command as documented, but with one seed; return its results."""
    status = main(words_of_comparison(command))
    logs = [path.read_text()[-2000:] for path in Path("out").glob("*/*.log")]
    assert status == 0, logs
    assert Path("out/compare.html").stat().st_size > 10_000
    found = pd.read_csv("out/compare.csv")
    assert found["failure"].isna().all(), logs
    return found


def test_timm():
    pytest.importorskip("timm", reason="needs timm")
    shutil.copy(PROGRAMS / "train_like_timm.py", "train.py")
    found = compared(documented_comparison("timm")["sh"])
    assert found["metric"].to_list() == ["eval_top1"] * 2
    files = [f"out/{norm}/seed0/run/summary.csv" for norm in found["norm"]]
    losses = [pd.read_csv(file)["eval_loss"] for file in files]
    assert not losses[0].equals(losses[1])  # as timm knows the norm


def test_torchvision():
    pytest.importorskip("torchvision", reason="needs torchvision")
    shutil.copy(PROGRAMS / "train_like_torchvision.py", "train.py")
    Path("train_norm.py").write_text(documented_comparison("torchvision's references")["python"])
    found = compared(documented_comparison("torchvision's references")["sh"])
    last = [
        float(Path("out", norm, "seed0", "log.txt").read_text().split("Acc@1")[-1].split()[0])
        for norm in ("BN", "EN")
    ]
    assert found["value"].to_list() == last


def test_lightning():
    pytest.importorskip("lightning", reason="needs lightning")
    shutil.copy(PROGRAMS / "train_by_lightning.py", "train.py")
    found = compared(documented_comparison("Lightning")["sh"])
    files = [f"out/{norm}/seed0/lightning_logs/version_0/metrics.csv" for norm in ("BN", "EN")]
    last = [pd.read_csv(file)["val_acc"].dropna().iloc[-1] for file in files]
    assert found["value"].to_list() == last


def test_transformers():
    for package in ("transformers", "accelerate"):
        pytest.importorskip(package, reason=f"needs {package}")
    shutil.copy(PROGRAMS / "train_by_transformers.py", "train.py")
    assert compared(documented_comparison("Transformers")["sh"])["value"].between(0, 1).all()


SMALL = '"epochs": 1, "imgsz": 64, "workers": 0, "device": "cpu", "plots": False'


def test_ultralytics(tmp_path, monkeypatch):
    pytest.importorskip("ultralytics", reason="needs ultralytics")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    script = documented_comparison("Ultralytics")["python"]
    assert '"epochs": 100' in script
    Path("train_yolo.py").write_text(script.replace('"epochs": 100', SMALL))
    for part in ("images", "labels"):
        Path("data", part).mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(f"data/images/{i}.png")
        Path(f"data/labels/{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    Path("my_data.yaml").write_text(
        f"path: {tmp_path / 'data'}\ntrain: images\nval: images\nnames: [box]\n"
    )
    found = compared(documented_comparison("Ultralytics")["sh"])
    assert found["metric"].to_list() == ["metrics/mAP50-95(B)"] * 2
    files = [f"out/{norm}/seed0/run/results.csv" for norm in found["norm"]]
    losses = [pd.read_csv(file)["val/box_loss"] for file in files]
    assert not losses[0].equals(losses[1])  # as the script put the norm into the model
