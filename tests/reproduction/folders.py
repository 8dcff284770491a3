"""Folders as tools/reproduce.py run leaves them, of runs that were never made."""

import json

from ilm_plugins.frameworks.openmmlab.run_folder import load
from recipes import ROOT

LINE = "2026/01/01 00:00:00 - mmengine - INFO - "


def write_run(
    folder,
    config,
    epochs,
    start=0,
    step=10.0,
    options=None,
    name="20260101_000000",
    processes=1,
    batches=None,
):
    """A training of MMEngine's from epoch ``start`` to ``epochs``, accuracy step * epoch each.

    ``batches`` are those of an epoch, and of a validation, as its log tells them.
    """
    cfg = load(str(ROOT / config)).copy()
    cfg.merge_from_dict(options or {})
    data = folder / name / "vis_data"
    data.mkdir(parents=True)
    cfg.dump(data / "config.py")
    lines = []
    for epoch in range(start + 1, epochs + 1):
        for half in (1, 2):
            at = 2 * (epoch - 1) + half
            loss = {"loss": 4 / epoch + half, "lr": 0.1, "time": 0.5, "data_time": 0.1}
            lines.append({**loss, "epoch": epoch, "iter": at, "step": at})
        lines.append({"accuracy/top1": step * epoch, "time": 0.1, "step": epoch})
    (data / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = f"    PyTorch: 2.4.0+cu121\n    GPU number: {processes}\n"
    if batches:
        log += f"{LINE}Epoch(train)   [1][ 10/{batches[0]}]  lr: 6.4e-03  loss: 2.3\n"
        log += f"{LINE}Epoch(val)   [1][100/{batches[1]}]    eta: 0:00:33  time: 0.06\n"
    (folder / name / f"{name}.log").write_text(log)
    (folder / f"epoch_{epochs}.pth").touch()
    (folder / "last_checkpoint").write_text(str(folder / f"epoch_{epochs}.pth"))
    return folder


def write_test(folder, metrics, options=None, name="20260102_000000", batches=None):
    """A test of that training; ``batches`` are those of its images, as its log tells them."""
    (trained,) = sorted(folder.glob("*/vis_data/scalars.json"))[:1]
    cfg = load(str(trained.with_name("config.py"))).copy()
    _write_test(folder, cfg, metrics, options, name, batches)


def write_test_alone(folder, config, metrics, options=None, name="20260102_000000", batches=None):
    """A test where nothing was trained, as MMEngine dumps its config."""
    cfg = load(str(ROOT / config)).copy()
    for key in ("train_cfg", "train_dataloader", "optim_wrapper", "param_scheduler"):
        cfg[key] = None
    _write_test(folder, cfg, metrics, options, name, batches)


def _write_test(folder, cfg, metrics, options, name, batches):
    cfg.merge_from_dict(options or {})
    data = folder / name / "vis_data"
    data.mkdir(parents=True)
    cfg.dump(data / "config.py")
    (folder / name / f"{name}.json").write_text(json.dumps({**metrics, "time": 0.1}))
    if batches:
        log = f"    GPU number: 1\n{LINE}Epoch(test) [ 50/{batches}]    eta: 0:00:33\n"
        (folder / name / f"{name}.log").write_text(log)
