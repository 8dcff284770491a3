"""Records of runs and the reports on them."""

import json
import re
import sys

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("matplotlib", reason="needs matplotlib, of ilm_plugins[reproduction]")

from PIL import Image

import fresh
from ilm_plugins.errors import UserError
from ilm_plugins.reproduction import records, registry, report
from ilm_plugins.reproduction.main import main
from recipes import ROOT
from reproduction.folders import write_run, write_test, write_test_alone

CELL = registry.named("en-5 ResNet20/EN")
#: Where a run was made.
ORIGIN = {"commit": "abc", "device": "CPU, of some kind", "torch": "2.0"}
SHORT = {"randomness.seed": 0, "train_cfg.max_epochs": 9}


def recorded(folder, epochs=9, accuracy=90.0, **options):
    """A record of a run that was never made."""
    options = {"randomness.seed": 0, **options}
    write_run(folder, CELL.config, epochs, options=options)
    write_test(folder, {"accuracy/top1": accuracy})
    return records.record(CELL, folder, ORIGIN)


def row(page, begins):
    """Cells of the line of a report that begins so."""
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {begins} |"))
    return dict(zip(report.COLUMNS, line.strip("| ").split(" | "), strict=False))


def reported(folder, *found):
    for record in found:
        records.collect(record, folder / "records")
    report.write(folder / "records")
    return (folder / "en.md").read_text()


def test_a_record_says_what_a_run_was(tmp_path):
    found = recorded(tmp_path, **{"train_cfg.max_epochs": 9})
    assert (found["table"], found["cell"]) == ("en-5", "ResNet20/EN")
    assert found["label"] == "shortened: 9 of 165 epochs"
    assert found["figures"] == {"top-1": 90.0} and len(found["curve"]) == 9
    assert (found["seed"], found["commit"]) == (0, "abc")
    assert found["device"] == "CPU, of some kind" and found["seconds"] == 9.0
    assert found["torch"] == "2.4.0+cu121"  # the log's
    assert found["command"].startswith(f"python tools/train_net.py --config-file {CELL.config} ")
    assert "train_cfg.max_epochs=9" in found["command"]
    assert json.loads(records.dumped(found)) == found


@pytest.mark.parametrize(
    "epochs, options, label",
    [
        (165, {}, "full recipe"),
        (7, {}, "unfinished: 7 of 165 epochs"),
        (
            3,
            {"train_cfg.max_epochs": 9},
            "unfinished: 3 of 9 epochs, shortened: 9 of 165 epochs",
        ),
        (
            165,
            {"train_dataloader.batch_size": 64, "optim_wrapper.optimizer.lr": 0.2},
            "changed: optim_wrapper.optimizer.lr=0.2, changed: train_dataloader.batch_size=64, "
            "batches of 64, not 128",
        ),
        (165, {"train_dataloader.num_workers": 0, "work_dir": "x"}, "full recipe"),
        (165, {"train_dataloader.dataset.type": "PackedImages"}, "full recipe"),
        (165, {"load_from": "last.pth", "resume": True}, "full recipe"),
        (165, {"load_from": "other.pth"}, "changed: load_from=other.pth"),
        (165, {"test_dataloader.dataset.split": "train"},
         "changed: test_dataloader.dataset.split=train"),
        (165, {"train_dataloader.dataset.ann_file": "tenth"},
         "changed: train_dataloader.dataset.ann_file=tenth"),
        (165, {"train_dataloader.dataset.indices": 100}, "changed: "
         "train_dataloader.dataset.indices=100"),
        (1000, {"train_cfg.max_epochs": 1000}, "lengthened: 1000 of 165 epochs"),
        (9, {"train_cfg.max_epochs": 9, "param_scheduler.1.milestones": [4, 7]},
         "shortened: 9 of 165 epochs"),
        (9, {"train_cfg.max_epochs": 9, "param_scheduler.1.milestones": [1, 2]},
         "shortened: 9 of 165 epochs, changed: param_scheduler.1.milestones=[1; 2]"),
        (165, {"default_hooks.logger.interval": 7, "default_hooks.checkpoint.interval": 9},
         "full recipe"),
        (165, {"default_hooks.ema": {"type": "EMAHook"}},
         "changed: default_hooks.ema={'type': 'EMAHook'}"),
        (165, {"default_hooks.logger.type": "EMAHook"},
         "changed: default_hooks.logger.type=EMAHook"),
        (165, {"val_dataloader.dataset.split": "train"}, "full recipe"),
    ],
)  # fmt: skip
def test_whatever_differs_from_the_recipe_is_in_the_label(tmp_path, epochs, options, label):
    found = recorded(tmp_path, epochs, **options)
    own = found["label"].replace("[1, 2]", "[1; 2]")
    assert sorted(own.split(", ")) == sorted(label.split(", "))


@pytest.mark.parametrize(
    "processes, label", [(1, "batches of 32, not 128"), (4, "full recipe"), (None, "full recipe")]
)
def test_batches_of_another_size_are_in_the_label(tmp_path, processes, label):
    """The config is for four processes of 32."""
    cell = registry.named("en-2 ResNet50/EN")
    folder = write_run(tmp_path, cell.config, 100, processes=processes)
    assert records.record(cell, folder)["label"] == label


def test_a_run_of_which_nothing_was_measured_gives_way_to_itself_with_a_figure(tmp_path):
    cell = registry.named("ilm-6 IN / IN")
    options = {"train_dataloader.dataset.images": [0, 30]}
    write_run(tmp_path / "a", cell.config, 200, options=options)
    found = records.record(cell, tmp_path / "a")
    assert found["label"] == "30 of 200 images, no figure yet" and not found["figures"]
    records.collect(found, tmp_path / "r")
    whole = {**found, "label": "30 of 200 images", "figures": {"RMSE": 60.0}}
    path = records.collect(whole, tmp_path / "r")
    assert list((tmp_path / "r").iterdir()) == [path]


@pytest.mark.parametrize(
    "images, label",
    [
        ([0, 200], "full recipe"),
        ([0, 30], "30 of 200 images"),
        ([200, 400], "changed: train_dataloader.dataset.images=[200, 400]"),
        ([None, None], "changed: train_dataloader.dataset.images=[None, None]"),
        ([100, 130], "30 of 200 images, changed: train_dataloader.dataset.images=[100, 130]"),
    ],
)
def test_other_images_are_in_the_label_and_not_their_number_alone(tmp_path, images, label):
    cell = registry.named("ilm-6 IN / IN")
    write_run(tmp_path, cell.config, 200, options={"train_dataloader.dataset.images": images})
    assert records.record(cell, tmp_path)["label"] == ", ".join([label, records.NO_FIGURE]).replace(
        "full recipe, ", ""
    )


def test_a_part_of_a_data_set_is_in_the_label(tmp_path):
    """Where the folder of the data has fewer images, the config differs in nothing."""
    folder = write_run(tmp_path / "a", CELL.config, 165, batches=(1, 2))
    label = records.record(CELL, folder)["label"]
    assert label == "128 of 50000 images, tested on 32 of 10000 images"
    folder = write_run(tmp_path / "b", CELL.config, 165, batches=(391, 625))
    assert records.record(CELL, folder)["label"] == "full recipe"


def test_a_test_of_another_runs_checkpoint_has_that_runs_label(tmp_path):
    trained, cell = (
        registry.named(name) for name in ("en-2 ResNet50/EN", "en-4 ImageNet -> WebVision/EN")
    )
    write_run(tmp_path / "a", trained.config, 2, options={"train_cfg.max_epochs": 2}, processes=4)
    before = records.record(trained, tmp_path / "a")
    metrics = {"accuracy/top1": 5.0, "accuracy/top5": 9.0}
    for checkpoint, factor in (("epoch_2.pth", 1), ("epoch_100.pth", 2)):
        values = {name: factor * value for name, value in metrics.items()}
        options = {"load_from": checkpoint}
        write_test_alone(tmp_path / "b", cell.config, values, options, name=checkpoint)
    found = records.record(cell, tmp_path / "b", before=before)
    # Names of folders are in the order of time: the last is "epoch_2.pth".
    assert (found["checkpoint"], found["figures"]["top-1"]) == ("epoch_2.pth", 5.0)
    assert found["label"] == "from en-2 ResNet50/EN (shortened: 2 of 100 epochs)"
    whole = {**before, "label": "full recipe"}
    assert records.record(cell, tmp_path / "b", before=whole)["label"] == "full recipe"


def test_a_config_that_trains_is_tested_alone(tmp_path):
    cell = registry.named("en-6 Cityscapes test server/EN")
    write_test_alone(tmp_path, cell.config, {"mIoU": 70.0}, {"load_from": "iter_80000.pth"})
    whole = {"table": "en-6", "cell": "Cityscapes/EN", "label": "full recipe"}
    assert records.record(cell, tmp_path, before=whole)["label"] == "full recipe"


def test_a_test_of_what_nobody_knows_is_no_full_recipe(tmp_path):
    metrics, options = {"accuracy/top1": 99.0}, {"load_from": "other.pth"}
    write_test_alone(tmp_path / "a", CELL.config, metrics, options)
    label = records.record(CELL, tmp_path / "a")["label"]
    assert label == "changed: load_from=other.pth"
    cell = registry.named("en-4 ImageNet -> WebVision/EN")
    write_test_alone(tmp_path / "b", cell.config, metrics, options)
    label = records.record(cell, tmp_path / "b")["label"]
    assert label == "from en-2 ResNet50/EN (no record)"
    write_run(tmp_path / "c", CELL.config, 165)
    with pytest.raises(UserError, match=r"has a training, and .* only tests"):
        records.record(cell, tmp_path / "c")


def test_a_backbone_that_is_no_full_recipe_is_in_the_label(tmp_path):
    cell = registry.named("en-6 ADE20K/EN")
    options = {"model.backbone.init_cfg.checkpoint": "epoch_9.pth"}
    write_run(tmp_path, cell.config, 1, options=options)
    label = records.record(cell, tmp_path)["label"]
    assert "changed: model.backbone.init_cfg.checkpoint=epoch_9.pth" in label
    before = {"table": "en-6", "cell": "backbone/EN", "label": "shortened: 9 of 100 epochs"}
    label = records.record(cell, tmp_path, before=before)["label"]
    assert "from en-6 backbone/EN (shortened: 9 of 100 epochs)" in label
    assert "init_cfg" not in label


def test_devices_are_told_from_the_frameworks_logs():
    assert records.gpus("    CUDA available: True\n    GPU 0: NVIDIA H200\n") == "NVIDIA H200"
    assert records.gpus("    GPU 0,1: NVIDIA H200\n") == "2 x NVIDIA H200"
    assert records.gpus("GPU 0                NVIDIA H200 (arch=9.0)\n") == "NVIDIA H200"
    assert records.gpus("    CUDA available: False\n    GPU number: 1\n") is None


def test_a_full_recipe_alone_stands_beside_the_papers_figure(tmp_path):
    short = recorded(tmp_path / "a", 9, 88.0, **{"train_cfg.max_epochs": 9})
    page = reported(tmp_path / "r", short)
    assert row(page, "ResNet20/EN")["run"] == "not run"
    assert row(page, "ResNet20/EN")["paper"] == "92.41"
    own = row(page, "ResNet20/EN, ours")
    assert own["run"] == "shortened: 9 of 165 epochs" and own["ours"] == "88.00"
    assert own["paper"].strip() == own["ours - paper"].strip() == ""
    full = recorded(tmp_path / "b", 165, 92.0)
    page = reported(tmp_path / "r", full)
    assert row(page, "ResNet20/EN")["ours - paper"] == "-0.41"
    assert row(page, "ResNet20/EN, ours")["run"] == "shortened: 9 of 165 epochs"
    assert row(page, "ResNet20/BN")["run"] == "not run"


def test_several_seeds_are_a_mean_and_a_spread(tmp_path):
    found = [
        recorded(tmp_path / str(seed), 165, accuracy, **{"randomness.seed": seed})
        for seed, accuracy in enumerate((92.0, 92.5, 93.0))
    ]
    own = row(reported(tmp_path / "r", *found), "ResNet20/EN")
    assert own["ours"] == "92.50 ± 0.50" and own["seeds"] == "0, 1, 2"
    assert own["ours - paper"] == "+0.09" and own["trained"] == "165 of 165 epochs"


def averaged(momentum):
    """The hooks of a run with an exponential moving average."""
    return {"custom_hooks": [{"type": "EMAHook", "momentum": momentum}]}


def test_runs_of_other_settings_are_no_seeds_of_one(tmp_path):
    """Their labels name the hooks alone."""
    for seed, momentum, accuracy in ((0, 0.005, 90.0), (1, 0.9, 80.0), (0, 0.9, 82.0)):
        options = {"randomness.seed": seed, **averaged(momentum)}
        found = recorded(tmp_path / f"{momentum} {seed}", 165, accuracy, **options)
        assert found["label"] == "changed: custom_hooks=EMAHook"
        page = reported(tmp_path / "r", found)
    own = [line for line in page.splitlines() if line.startswith("| ResNet20/EN, ours |")]
    assert len(own) == 2 and len(list((tmp_path / "r" / "records").iterdir())) == 3
    assert "| 90.00 |" in "".join(own) and "| 81.00 ± 1.41 |" in "".join(own)
    drawn = report.curves(registry.tables()["en-5"], report.by_cell(tmp_path / "r" / "records"))
    assert sorted(len(group) for _, group in drawn) == [1, 2]


def test_names_that_are_cut_are_told_apart(tmp_path):
    names = []
    for lr in (0.2, 0.3):
        options = {f"train_dataloader.sampler.option_of_a_long_name_{i}": 1 for i in range(4)}
        options["zzz"] = lr
        found = recorded(tmp_path / str(lr), 165, **options)
        names.append(records.collect(found, tmp_path / "r").stem)
    assert names[0] != names[1] and [len(name) for name in names] == [150, 150]


def test_the_same_records_give_the_same_bytes(tmp_path):
    found = recorded(tmp_path / "a")
    for name in ("r", "s"):
        reported(tmp_path / name, found)
    files = sorted(path.name for path in (tmp_path / "r").glob("*.*"))
    assert files == ["README.md", "assoc.md", "en-5.png", "en.md", "ilm.md"]
    for name in files:
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "s" / name).read_bytes()


def test_a_cell_of_another_table_with_the_same_config_shows_the_run(tmp_path):
    cell = registry.named("ilm-1 ILM+GN")
    write_run(tmp_path / "a", cell.config, 350)
    write_test(tmp_path / "a", {"accuracy/top1": 94.0})
    found = records.record(cell, tmp_path / "a")
    reported(tmp_path / "r", found)
    page = (tmp_path / "r" / "ilm.md").read_text()
    assert row(page, "ILM+GN, batch 64")["ours - paper"] == "+0.12"
    assert row(page, "(tanh, sigmoid)")["ours"] == "6.00"


def test_curves_of_cells_at_home_elsewhere_are_drawn(tmp_path):
    filed = {}
    for name in ("ilm-1 ILM+GN", "ilm-fig4 keys as in IN"):
        cell = registry.named(name)
        write_run(tmp_path / cell.table, cell.config, 350)
        filed[cell.id] = [records.record(cell, tmp_path / cell.table)]
    drawn = [label for label, _ in report.curves(registry.tables()["ilm-fig4"], filed)]
    assert drawn == ["keys as in GN, full recipe", "keys as in IN, full recipe"]


def test_errors_are_drawn_against_batch_sizes(tmp_path):
    figure = registry.tables()["ilm-fig1"]
    assert report.series(figure, {}) == {}
    for batch, options in ((64, {}), (2, {}), (16, {"optim_wrapper.optimizer.lr": 0.2})):
        cell = registry.home(registry.named(f"ilm-4 GN, batch {batch}"))
        write_run(tmp_path / str(batch), cell.config, 350, step=93 / 350, options=options)
        found = records.record(cell, tmp_path / str(batch))
        records.collect(found, tmp_path / "r" / "records")
    lines = report.series(figure, report.by_cell(tmp_path / "r" / "records"))
    assert list(lines) == ["GN", "BN", "ILM+GN"]
    paper, ours = lines["GN"]
    assert [at for at, _ in paper] == [2, 4, 8, 16, 32, 64] and dict(paper)[16] == 7.24
    # Of what is no full recipe, nothing stands there.
    assert ours == [(2, pytest.approx(7.0)), (64, pytest.approx(7.0))]
    assert lines["BN"][1] == []
    drawn = report.write(tmp_path / "r" / "records")
    assert tmp_path / "r" / "ilm-fig1.png" in drawn
    assert "(ilm-fig1.png)" in (tmp_path / "r" / "ilm.md").read_text()


def test_another_run_of_the_same_seed_overwrites_none(tmp_path):
    first = recorded(tmp_path / "a", **SHORT)
    path = records.collect(first, tmp_path / "r")
    assert records.collect({**first, "figures": {"top-1": 90.5}}, tmp_path / "r") == path
    other = {**first, "curve": [{"epochs": 1, "loss": 1.0}]}
    with pytest.raises(UserError, match="holds another run of en-5 ResNet20/EN, seed 0"):
        records.collect(other, tmp_path / "r")
    assert records.read(path)["curve"] == first["curve"]


def test_an_unfinished_record_gives_way_to_what_its_run_became(tmp_path):
    half = recorded(tmp_path / "a", 40)
    records.collect(half, tmp_path / "r")
    # Its log had nothing yet of how many images there are.
    options = {"randomness.seed": 0}
    folder = write_run(tmp_path / "b", CELL.config, 165, options=options, batches=(391, 625))
    records.collect(records.record(CELL, folder), tmp_path / "r")
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["en-5-ResNet20-EN-seed0.json"]


def test_a_folder_is_added_to_the_report_by_the_command(tmp_path, capsys):
    write_run(tmp_path / "a", CELL.config, 9, options=SHORT)
    out = ["--records", str(tmp_path / "r" / "records"), "--work-dir", str(tmp_path / "none")]
    added = ["--add", "en-5", "resnet20/en", str(tmp_path / "a"), "--commit", "abc"]
    assert main(["report", *out, *added]) == 0
    assert str(tmp_path / "r" / "en.md") in capsys.readouterr().out
    assert row((tmp_path / "r" / "en.md").read_text(), "ResNet20/EN, ours")["commit"] == "abc"
    assert main(["report", *out, "--add", "en-5", "ResNet20", str(tmp_path / "a")]) == 2
    assert "give one cell" in capsys.readouterr().err
    assert main(["report", *out, "--add", "en-5", "ResNet20/BN", str(tmp_path)]) == 2
    assert "no run of tools/train_net.py" in capsys.readouterr().err


def test_what_is_no_record_is_told(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"table": "en-5"}')
    assert main(["report", "--records", str(tmp_path), "--work-dir", str(tmp_path / "none")]) == 2
    assert "x.json is no record of a run" in capsys.readouterr().err


def test_the_projects_reports_are_those_of_its_records(tmp_path):
    """`python tools/reproduce.py report` brings them up to date."""
    kept = ROOT / "reports"
    copies = tmp_path / "records"
    copies.mkdir()
    for path in (kept / "records").glob("*.json"):
        found = records.read(path)
        assert records.dumped(found) == path.read_text(encoding="utf-8")
        (copies / path.name).write_bytes(path.read_bytes())
    for path in report.write(copies):
        own = kept / path.name
        if path.suffix == ".md":
            assert own.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), own
        else:
            # Another matplotlib draws other pixels of the same records.
            assert Image.open(own).info["records"] == Image.open(path).info["records"], own
    names = {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in kept.iterdir()} == names


def test_no_shortened_run_stands_in_a_row_of_the_papers():
    for page in ("ilm.md", "assoc.md", "en.md"):
        for line in (ROOT / "reports" / page).read_text().splitlines():
            if re.match(r"\| .*(shortened|unfinished|changed|miniature)", line):
                _, name, _, paper, _, difference, *_ = (part.strip() for part in line.split("|"))
                assert name.endswith(", ours") and paper == difference == ""


def test_the_tool_lists(root):
    tool = [sys.executable, str(root / "tools" / "reproduce.py"), "list", "en-2"]
    done = fresh.run(tool)
    assert done.returncode == 0 and "ResNet50/SENet" in done.stdout
    done = fresh.run([*tool[:-1], "en-22"])
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("reproduce.py: error: no table 'en-22'; near ones are")
