"""The comparisons in examples/, by the commands in their heads, with one seed and on the CPU.

timm's train.py and torchvision's references are in no package; stand-ins have their options, and
write what they write.
"""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the extra ilm_plugins[compare]")

from helpers.processes import PROGRAMS
from ilm_plugins.__main__ import main
from ilm_plugins.comparison.command_source import PRINTED
from ilm_plugins.shapes.dataset import write_shapes

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.wide


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Path("examples").symlink_to(EXAMPLES)
    yield
    if "detectron2" in sys.modules:  # the next test has other files under these names
        from detectron2.data import DatasetCatalog, MetadataCatalog

        for name in {"my_train", "my_test"}.intersection(DatasetCatalog):
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


def words_of(example):
    """Return the words of the command in the head of an example."""
    lines = [line.lstrip("# ") for line in (EXAMPLES / example).read_text("utf-8").splitlines()]
    text = "\n".join(lines).partition("python -m ilm_plugins compare ")[2].partition("\n\n")[0]
    text = text.partition('\n"""')[0].replace("\\\n", " ")
    assert " --seeds 0 1 2 3 4" in text
    return shlex.split(text.replace("--seeds 0 1 2 3 4", "--seeds 0"))


def compared(words, *overrides):
    """Run a comparison; return its results."""
    opts = ["--opts", *overrides] if overrides else []
    status = main(["compare", *words, "--num-gpus", "0", "--output", "out", *opts])
    logs = [path.read_text()[-2000:] for path in Path("out").glob("*/*.log")]
    assert status == 0, logs
    assert Path("out/compare.html").stat().st_size > 10_000
    found = pd.read_csv("out/compare.csv")
    assert found["failure"].isna().all(), logs
    return found


def test_timm():
    pytest.importorskip("timm", reason="needs timm")
    shutil.copy(PROGRAMS / "train_like_timm.py", "train.py")
    shutil.copy(EXAMPLES / "compare_timm.py", ".")
    found = compared(words_of("compare_timm.py"))
    assert found["metric"].to_list() == ["eval_top1"] * 2
    files = [f"out/{norm}/seed0/run/summary.csv" for norm in found["norm"]]
    losses = [pd.read_csv(file)["eval_loss"] for file in files]
    assert not losses[0].equals(losses[1])  # as timm knows the norm


def test_torchvision():
    pytest.importorskip("torchvision", reason="needs torchvision")
    shutil.copy(PROGRAMS / "train_like_torchvision.py", "train.py")
    shutil.copy(EXAMPLES / "compare_torchvision.py", ".")
    found = compared(words_of("compare_torchvision.py"))
    last = [
        float(Path("out", norm, "seed0", PRINTED).read_text().split("Acc@1")[-1].split()[0])
        for norm in ("BN", "EN")
    ]
    assert found["value"].to_list() == last


def test_lightning():
    pytest.importorskip("lightning", reason="needs lightning")
    found = compared(words_of("compare_lightning.py"))
    files = [f"out/{norm}/seed0/lightning_logs/version_0/metrics.csv" for norm in ("BN", "EN")]
    last = [pd.read_csv(file)["val_acc"].dropna().iloc[-1] for file in files]
    assert found["value"].to_list() == last


def test_transformers():
    for package in ("transformers", "accelerate"):
        pytest.importorskip(package, reason=f"needs {package}")
    assert compared(words_of("compare_transformers.py"))["value"].between(0, 1).all()


def test_ultralytics(tmp_path, monkeypatch):
    pytest.importorskip("ultralytics", reason="needs ultralytics")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    for part in ("images", "labels"):
        Path("data", part).mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(f"data/images/{i}.png")
        Path(f"data/labels/{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    Path("small.yaml").write_text(
        f"path: {tmp_path / 'data'}\ntrain: images\nval: images\nnames: [box]\n"
    )
    *words, command = words_of("compare_ultralytics.py")
    small = "data=small.yaml epochs=1 imgsz=64 workers=0 device=cpu plots=False"
    command, count = re.subn(r"data=coco8.yaml epochs=100", small, command)
    assert count == 1
    found = compared([*words, command])
    assert found["metric"].to_list() == ["metrics/mAP50-95(B)"] * 2
    files = [f"out/{norm}/seed0/run/results.csv" for norm in found["norm"]]
    losses = [pd.read_csv(file)["val/box_loss"] for file in files]
    assert not losses[0].equals(losses[1])  # as the script put the norm into the model


def test_detectron2():
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    write_shapes(Path("datasets"), num_training=4, num_validation=4, size=64)
    short = ["SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.01"]
    found = compared(words_of("compare_detectron2.yaml"), *short, "SOLVER.IMS_PER_BATCH", "2")
    assert found.query("metric == 'bbox/AP'")["norm"].to_list() == ["GN", "ILMGN"]
    assert "bbox/AP-circle" in set(found["metric"])


ARMS = ["BN", "EN", "BN+standardized", "BN+test-statistics"]
SHORT = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.num_workers=0"]
SHORT += [f"{part}_dataloader.persistent_workers=False" for part in ("train", "val", "test")]
SHORT += [f"{part}_dataloader.num_workers=0" for part in ("val", "test")]
SHORT += ["train_dataloader.batch_size=2"]


def test_arms_of_a_script():
    pytest.importorskip("torchvision", reason="needs torchvision")
    for i in range(16):
        folder = Path("images", str(i % 2))
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), 20 + 40 * (i % 2)).save(folder / f"{i}.png")
    *words, command = words_of("arms_script.py")
    found = compared([*words, command.replace("TRAIN TEST", "images images")])
    assert found["norm"].to_list() == ARMS
    assert "--test-statistics" in Path("out/compare.html").read_text()


def test_arms_of_detectron2():
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    write_shapes(Path("datasets"), num_training=4, num_validation=4, size=64)
    words = ["examples/compare_detectron2.yaml", *words_of("arms_detectron2.py")[1:]]
    data = words_of("compare_detectron2.yaml")
    words += [*data[data.index("--dataset") :], "--at", "MODEL.FPN.NORM"]
    short = ["SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.01"]
    found = compared(words, *short, "SOLVER.IMS_PER_BATCH", "2", "MODEL.FPN.NORM", "BN")
    assert found.query("metric == 'bbox/AP'")["norm"].to_list() == ARMS


def test_arms_of_mmseg():
    pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    write_shapes(Path("datasets"), num_training=4, num_validation=4, size=64)
    words = words_of("arms_mmseg.py")
    found = compared(["examples/compare_mmseg.py", *words[1:]], *SHORT)
    assert found.query("metric == 'mIoU'")["norm"].to_list() == ARMS


def test_mmseg():
    pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    write_shapes(Path("datasets"), num_training=4, num_validation=4, size=64)
    found = compared(words_of("compare_mmseg.py"), *SHORT)
    assert found.query("metric == 'mIoU'")["norm"].to_list() == ["BN", "EN"]
