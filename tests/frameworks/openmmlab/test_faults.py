"""What a user of tools/train_net.py sees of faults in MMEngine's runs, and what survives them."""

import json
import os
import shutil
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.logging import HistoryBuffer
from mmengine.model import initialize

from faults import children, error_line, finish, kill_one_of, small_files, start, wait_for
from ilm_plugins import checkpoints
from ilm_plugins.checkpoints import CheckpointError
from ilm_plugins.cli import train_net
from ilm_plugins.errors import PeerError
from ilm_plugins.frameworks.openmmlab import checks
from ilm_plugins.frameworks.openmmlab.checkpoints import AtomicFiles, latest, use_safe_checkpoints
from ilm_plugins.frameworks.openmmlab.faults import StopAtNaN
from runs import TORCHRUN, pix2pix_command, write_mmengine_config
from runs import mmengine_command as command
from workers import Harmful

wide = pytest.mark.wide


@pytest.fixture
def harmed(datasets, tmp_path):
    """A copy of the data set that may be harmed, and a config of it."""
    shutil.copytree(datasets / "shapes", tmp_path / "shapes")
    return tmp_path / "shapes", write_mmengine_config(tmp_path / "fcn.py", tmp_path)


@pytest.mark.parametrize("setting", ["load_from", "model.backbone.init_cfg"])
@pytest.mark.parametrize(
    "kind, words",
    [
        ("with code", " cannot be read: it holds os.makedirs, which may run code"),
        ("of another model", " is of another model"),
    ],
)
def test_checkpoints_that_are_none(config, tmp_path, capfd, setting, kind, words):
    trap, out, path = tmp_path / "ran", tmp_path / "out", tmp_path / "weights.pth"
    state = Harmful(trap) if kind == "with code" else {"fc.weight": torch.ones(3)}
    torch.save({"state_dict": state}, path)
    value = f"{{'type': 'Pretrained', 'checkpoint': {str(path)!r}}}" if "init" in setting else path
    line = error_line(command(config, out=out, opts=[f"{setting}={value}"]), capfd, status=2)
    assert f"'{path}'{words}" in line
    assert not trap.exists() and not list(out.glob("*.pth"))


def contents(folder):
    """The checkpoints in a folder, and what is in them."""
    return {path: path.read_bytes() for path in folder.rglob("*.pth")}


@pytest.mark.parametrize(
    "settings, words",
    [
        (["model.backbone.norm_cfg.type=GN"], "its optimizer's state is another's"),
        (["model.decode_head.num_classes=7"], "decode_head.conv_seg.weight is (5, 32, 1, 1) in it"),
    ],
)
def test_resuming_with_another_model(config, trained, tmp_path, capfd, settings, words):
    before = contents(shutil.copytree(trained, tmp_path / "out"))
    opts = ["train_cfg.max_iters=5", *settings]
    line = error_line(command(config, "--resume", out=tmp_path / "out", opts=opts), capfd, status=2)
    assert "iter_4.pth' does not fit this config" in line and words in line
    assert "as load_from" in line and before == contents(tmp_path / "out")


@pytest.mark.parametrize(
    "setting, words",
    [
        ("model.backbone.foo=1", "model cannot be built: TypeError"),
        ("model.backbone.depth=19", "model cannot be built: KeyError"),
        ("model.backbone.type=ResNett", "ResNett is not in the mmseg::model registry; correct"),
        ("optim_wrapper.optimizer.type=SGDD", "optimizer cannot be built: "),
        ("train_dataloader.dataset.foo=1", "BaseSegDataset cannot be loaded from "),
        ("train_dataloader.dataset.type=Shape", "Shape is not in the mmseg::dataset registry"),
        ("optim_wrapper.optimizer.lr=-1", "optimizer cannot be built: ValueError"),
        ("optim_wrapper.optimizer.foo=1", "optimizer cannot be built: TypeError"),
    ],
)
def test_settings_that_cannot_be(config, tmp_path, capfd, setting, words):
    line = error_line(command(config, out=tmp_path, opts=[setting]), capfd, status=2)
    assert words in line


@pytest.mark.parametrize(
    "settings, status, words",
    [
        (["load_from=http://127.0.0.1:9/model.pth"], 1, "URLError: <urlopen error"),
        ([r"work_dir='a\0b'"], 2, "ValueError: embedded null byte; give --traceback"),
        (["default_hooks.logger.interval=0"], 1, "ValueError: interval must be greater than 0;"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings_that_nobody_foresaw(
    config, tmp_path, capfd, monkeypatch, settings, status, words
):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    opts = ["train_cfg.max_iters=2", *settings]
    line = error_line(command(config, out=tmp_path, opts=opts), capfd, status)
    assert f"unexpected {words}" in line and "report it with the output of" in line
    log = tmp_path / "error.log"
    assert (f"see {log} for the traceback" in line) == log.exists() == (status == 1)


def test_a_name_of_the_last_checkpoint_that_is_none(config, tmp_path, capfd):
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe")
    line = error_line(command(config, "--resume", out=tmp_path), capfd, status=2)
    assert f"'{tmp_path}/last_checkpoint' is not text; write" in line


def test_a_last_checkpoint_that_is_missing(config, tmp_path, capfd):
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_5.pth"))
    line = error_line(command(config, "--resume", out=tmp_path), capfd, status=2)
    assert f"'{tmp_path}/last_checkpoint' names '{tmp_path}/iter_5.pth', which does not" in line
    assert "write a checkpoint's name" in line
    assert not list(tmp_path.glob("*.pth"))


def test_a_truncated_last_checkpoint(config, trained, tmp_path, capfd):
    shutil.copytree(trained, tmp_path / "out")
    path = tmp_path / "out" / "iter_4.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    before = contents(tmp_path / "out")
    line = error_line(command(config, "--resume", out=tmp_path / "out"), capfd, status=2)
    assert str(path) in line and before == contents(tmp_path / "out")


def test_resuming_runs_no_code_of_a_checkpoint(config, trained, tmp_path):
    """MMEngine has the text of a config run."""
    trap, out = tmp_path / "ran", tmp_path / "out"
    out.mkdir()
    contents = torch.load(trained / "iter_2.pth", weights_only=False)
    code = f"x = __import__('os').makedirs({str(trap)!r})\n"
    contents["meta"] |= {"config": code, "cfg": code}
    torch.save(contents, out / "iter_2.pth")
    opts = ["train_cfg.max_iters=3"]
    assert train_net.main(command(config, "--resume", out=out, opts=opts)) == 0
    assert (out / "iter_3.pth").exists() and not trap.exists()


class Overwrites:
    """What MMEngine's own list of harmless functions would let a checkpoint do."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


def test_not_even_attributes_of_what_is_allowed_can_be_had(tmp_path):
    use_safe_checkpoints()
    path = tmp_path / "c.pth"
    torch.save({"a": Overwrites()}, path)
    from mmengine.runner import CheckpointLoader
    from mmengine.runner.checkpoint import load_from_local

    for load in (checkpoints.read, CheckpointLoader.load_checkpoint):
        with pytest.raises(checkpoints.CheckpointError, match="getattr, which may run code"):
            load(str(path))
    with checkpoints.loading(), pytest.raises(Exception, match="getattr"):
        load_from_local(str(path), "cpu")


def test_a_history_of_losses_is_data(tmp_path):
    use_safe_checkpoints()
    # As MMEngine's own loader does, which removes at its end what it allowed.
    with torch.serialization.safe_globals([HistoryBuffer, getattr]):
        pass
    use_safe_checkpoints()
    torch.save({"a": HistoryBuffer([1.0, 2.0], [1, 1])}, tmp_path / "c.pth")
    assert checkpoints.read(tmp_path / "c.pth")["a"].mean() == 1.5
    with checkpoints.loading():  # as torch.hub reads what it downloaded
        assert torch.load(tmp_path / "c.pth")["a"].mean() == 1.5


def test_an_outdated_checkpoint_goes_when_its_successor_is_there(tmp_path):
    old, new = tmp_path / "iter_1.pth", tmp_path / "iter_2.pth"
    files = AtomicFiles()
    files.put(b"old", old)
    files.remove(str(old))
    assert old.exists()
    AtomicFiles().put(b"figures", tmp_path / "figures.json")
    assert old.exists()
    AtomicFiles().put(b"new", new)
    assert not old.exists() and new.read_bytes() == b"new"


def test_the_latest_checkpoint_is_found_where_its_name_was_not_written(tmp_path):
    assert latest(tmp_path) is None
    for name in ("epoch_9.pth", "epoch_10.pth", "best_mIoU_iter_77.pth", "epoch_11.pth.partial"):
        (tmp_path / name).touch()
    for named in (None, "", str(tmp_path / "epoch_8.pth")):
        if named is not None:
            (tmp_path / "last_checkpoint").write_text(named)
        assert latest(tmp_path) == str(tmp_path / "epoch_10.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_9.pth"))
    assert latest(tmp_path) == str(tmp_path / "epoch_9.pth")


@pytest.mark.parametrize("content, workers", [("foreign", 0), pytest.param("cut", 2, marks=wide)])
def test_a_corrupt_image_is_named(harmed, tmp_path, capfd, content, workers):
    folder, config = harmed
    images = folder / "images" / "validation"
    for path in images.iterdir():
        path.write_bytes(path.read_bytes()[:-100] if content == "cut" else b"no image")
    opts = [f"train_dataloader.num_workers={workers}"]
    line = error_line(command(config, out=tmp_path / "out", opts=opts), capfd, status=1)
    assert f"image {images}/" in line and "cannot be used" in line
    assert not list((tmp_path / "out").glob("*.pth"))


def test_a_corrupt_map_of_labels_is_named(harmed, tmp_path, capfd):
    folder, config = harmed
    labels = folder / "annotations" / "validation"
    for path in labels.iterdir():
        path.write_bytes(b"")
    line = error_line(command(config, out=tmp_path / "out"), capfd, status=1)
    assert f"with {labels}/" in line and "cannot be used" in line


def coco(root, harmed, out, annotations):
    folder, _ = harmed
    opts = [
        f"train_dataloader.dataset.data_root={folder}",
        f"train_dataloader.dataset.ann_file={annotations}",
        *("val_dataloader=None", "val_cfg=None", "val_evaluator=None"),
    ]
    config = root / "configs/mmdet/shapes/mask-rcnn_r18_fpn_gn_shapes_ilmgn.py"
    return command(config, out=out, opts=opts)


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "(empty)"),
        pytest.param("[1", "JSONDecodeError", marks=wide),
        ("none", "ValueError: need at least one array"),
        pytest.param("null", "AssertionError", marks=wide),
        pytest.param('{"images": 1, "annotations": []}', "TypeError", marks=wide),
        ("boxes", "TypeError"),
    ],
)
def test_annotations_that_are_none(root, harmed, tmp_path, capfd, content, words):
    path = harmed[0] / "annotations" / "instances_training.json"
    known = json.loads(path.read_text())
    if content == "none":
        content = json.dumps({**known, "annotations": []})
    elif content == "boxes":
        boxes = [{**a, "bbox": 3} for a in known["annotations"]]
        content = json.dumps({**known, "annotations": boxes})
    path.write_text(content)
    line = error_line(coco(root, harmed, tmp_path / "out", path), capfd, status=2)
    assert str(path) in line and words in line


def test_a_loss_that_is_nan_ends_the_run_before_it_is_saved(config, tmp_path, capfd):
    opts = ["optim_wrapper.optimizer.lr=1e30", "train_cfg.max_iters=9"]
    opts += ["default_hooks.checkpoint.interval=1"]
    line = error_line(command(config, out=tmp_path, opts=opts), capfd, status=1)
    iteration = int(line.split("infinite or NaN at iteration ")[1].split(";")[0])
    # Its number from 0 is that of the iterations before it, of which the last was saved.
    assert (tmp_path / "last_checkpoint").read_text().endswith(f"iter_{iteration}.pth")
    assert not (tmp_path / f"iter_{iteration + 1}.pth").exists()


def test_a_nan_between_checkpoints_is_told_by_its_own_iteration(root, datasets, tmp_path, capfd):
    """That of the loss, not that at which the host has looked; pix2pix has several losses."""
    opts = ["optim_wrapper.generator.optimizer.lr=1e30", "train_cfg.val_interval=9"]
    line = error_line(pix2pix_command(root, datasets, out=tmp_path, opts=opts), capfd, status=1)
    assert "infinite or NaN at iteration 1;" in line or "NaN at iteration 2;" in line
    assert not list(tmp_path.glob("*.pth"))


SPOIL = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Spoil(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == 3:
            data_batch["inputs"] = [x.float() * float("nan") for x in data_batch["inputs"]]
"""


@pytest.mark.parametrize("unit", ["iter", pytest.param("epoch", marks=wide)])
@pytest.mark.wide
def test_a_nan_of_another_process_is_not_saved(config, tmp_path, unit):
    """The gradients carry it to the first process, whose own loss is finite yet."""
    (tmp_path / "spoil.py").write_text(SPOIL)
    text = config.read_text().replace('imports=["ilm_plugins"]', 'imports=["ilm_plugins", "spoil"]')
    (tmp_path / "fcn.py").write_text(text)
    opts = ["custom_hooks=[{'type':'Spoil'}]", "default_hooks.checkpoint.interval=1"]
    if unit == "epoch":  # of two iterations: two processes share four images
        loop = {"type": "EpochBasedTrainLoop", "max_epochs": 9, "val_interval": 9, "_delete_": True}
        opts += [f"train_cfg={loop}", "default_hooks.checkpoint.by_epoch=True"]
        opts += ["train_dataloader.batch_size=1", "train_dataloader.sampler.type=DefaultSampler"]
    else:
        opts += ["train_cfg.max_iters=9"]
    argv = command(tmp_path / "fcn.py", "--num-processes", "2", out=tmp_path / "out", opts=opts)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = start(argv, run=("env", f"PYTHONPATH={path}", sys.executable))
    assert "the loss became infinite or NaN at iteration 3;" in finish(process)
    saved = {f"{unit}_{i}.pth" for i in range(1, 2 if unit == "epoch" else 4)}
    assert {path.name for path in (tmp_path / "out").glob("*.pth")} == saved


def test_only_losses_count_and_in_float32():
    hook, runner = StopAtNaN(), SimpleNamespace(iter=0)
    fine = {"loss": torch.full((9,), 6e4, dtype=torch.float16), "acc": torch.tensor(torch.nan)}
    hook.after_train_iter(runner, 0, outputs=fine)
    with pytest.raises(FloatingPointError, match="at iteration 0"):
        hook.after_train_iter(runner, 0, outputs={"loss_bbox": torch.tensor([1, torch.inf])})


@pytest.mark.parametrize(("distributed", "error"), [(False, FloatingPointError), (True, PeerError)])
def test_weights_that_are_infinite_are_not_saved(distributed, error):
    runner = SimpleNamespace(iter=4, distributed=distributed, model=nn.Linear(2, 2))
    StopAtNaN().before_save_checkpoint(runner, {})
    runner.model.bias.data[1] = torch.inf
    with pytest.raises(error, match="weights became infinite or NaN at iteration 4"):
        StopAtNaN().before_save_checkpoint(runner, {})


@pytest.mark.parametrize("kind", ["mmseg", pytest.param("pix2pix", marks=wide)])
def test_a_full_disk_leaves_the_last_checkpoint(root, datasets, config, tmp_path, capfd, kind):
    def argv(*options, length):
        if kind == "mmseg":
            opts = [f"train_cfg.max_iters={length}", "default_hooks.checkpoint.interval=1"]
            return command(config, *options, out=tmp_path, opts=opts)
        opts = [f"train_cfg.max_epochs={length}", "default_hooks.checkpoint.interval=1"]
        return pix2pix_command(root, datasets, *options, out=tmp_path, opts=opts)

    assert train_net.main(argv(length=1)) == 0
    with small_files(500_000):
        line = error_line(argv("--resume", length=2), capfd, status=1)
    assert "_2.pth' cannot be written: File too large" in line
    (left,) = tmp_path.glob("*_1.pth*")
    assert latest(tmp_path) == str(left) and checkpoints.read(left)["state_dict"]
    assert train_net.main(argv("--resume", length=2)) == 0


@wide
@pytest.mark.parametrize("launcher", ["none", "torchrun"])
def test_a_killed_process_ends_the_others_and_the_run_can_go_on(root, datasets, tmp_path, launcher):
    def argv(*options, epochs, batch=1):
        opts = [f"train_cfg.max_epochs={epochs}", "default_hooks.checkpoint.max_keep_ckpts=1"]
        opts += [f"train_dataloader.batch_size={batch}", "train_cfg.val_interval=100000"]
        return pix2pix_command(root, datasets, *options, out=tmp_path, opts=opts)

    if launcher == "none":
        process = start(argv("--num-processes", "2", epochs=100000))
        parent = process.pid
    else:
        process = start(argv("--launcher", "pytorch", epochs=100000), run=TORCHRUN)
    wait_for((tmp_path / "last_checkpoint").exists, process)
    kill_one_of(process, rank=0)
    killed = time.monotonic()
    if launcher == "none":
        line = finish(process, seconds=60)
        assert "process 0 ended by SIGKILL, so the others were stopped" in line
        assert "--resume continues from the last checkpoint" in line and process.returncode == 1
        assert not children(parent)
    else:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1 and "Signal 9 (SIGKILL)" in err
    assert time.monotonic() - killed < 30
    use_safe_checkpoints()
    last = checkpoints.read(latest(tmp_path))["meta"]["epoch"]
    # One process, of epochs as long as those of two.
    assert train_net.main(argv("--resume", epochs=last + 1, batch=2)) == 0
    assert (tmp_path / f"epoch_{last + 1}.pth").exists()


@pytest.mark.wide
@pytest.mark.parametrize("launcher", ["none", "torchrun"])
def test_a_mistake_that_only_one_process_meets_is_told(harmed, tmp_path, launcher):
    """And not that the others have lost it."""
    folder, config = harmed
    second = sorted((folder / "images" / "validation").iterdir())[1]
    second.write_bytes(b"no image")
    # Of two processes the first takes images 0, 2, ...
    opts = ["train_dataloader.sampler.shuffle=False", "train_dataloader.batch_size=1"]
    if launcher == "none":
        process = start(command(config, "--num-processes", "2", out=tmp_path / "out", opts=opts))
        line = finish(process)
    else:
        argv = command(config, "--launcher", "pytorch", out=tmp_path / "out", opts=opts)
        process = start(argv, run=TORCHRUN)
        _, err = process.communicate(timeout=300)
        # Each process has a line under torchrun; that with the cause comes first.
        line, *_ = (line for line in err.splitlines() if ": error: " in line)
    assert f"image {second} " in line and "cannot be used" in line and process.returncode == 1


def test_a_folder_of_images_that_became_unreadable(root, datasets, tmp_path, capfd):
    """pix2pix names them before it starts."""
    shutil.copytree(datasets / "shapes", tmp_path / "shapes")
    broken = sorted((tmp_path / "shapes" / "pairs" / "training").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:200])
    line = error_line(pix2pix_command(root, tmp_path, out=tmp_path / "out"), capfd, status=2)
    assert broken.name in line and "unreadable" in line


def test_pairs_that_were_decoded_once_are_not_by_each_process(root, datasets, tmp_path):
    """The command, which starts the others, has looked at all of them."""
    argv = pix2pix_command(root, datasets, "--num-processes", "2", out=tmp_path)
    args = train_net.parser().parse_args([str(word) for word in argv])
    checks.check(args)
    cfg = checks.load_config(args)
    assert not cfg.train_dataloader.dataset.verify and not cfg.val_dataloader.dataset.verify
    assert cfg.test_dataloader.dataset.get("verify", True)


def test_pretrained_parts_are_found_by_their_prefix(tmp_path):
    use_safe_checkpoints()
    module, path = nn.Linear(3, 2), tmp_path / "whole.pth"
    weights = {name: torch.ones_like(value) for name, value in module.state_dict().items()}
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in weights.items()}}, path)
    initialize(module, {"type": "Pretrained", "checkpoint": str(path), "prefix": "backbone"})
    torch.testing.assert_close(dict(module.state_dict()), weights)
    with pytest.raises(CheckpointError, match="such as weight, but backbone"):
        initialize(module, {"type": "Pretrained", "checkpoint": str(path)})
