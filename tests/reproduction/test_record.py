"""Records of runs and the reports on them."""

import errno
import json
import re
import subprocess

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("matplotlib", reason="needs matplotlib, of ilm_plugins[reproduction]")

from PIL import Image

from ilm_plugins.errors import UserError, write_error
from ilm_plugins.frameworks.command import explain
from ilm_plugins.reproduction import pictures, record, registry, report, run_settings
from ilm_plugins.reproduction.main import main
from recipes import ROOT
from reproduction.folders import write_run, write_test, write_test_alone

CELL = registry.find_cell("en-5 ResNet20/EN")
WEBVISION = registry.find_cell("en-4 ImageNet -> WebVision/EN")
TABLE = registry.tables()[CELL.table]
#: Where a run was made.
MADE = {"commit": "abc", "device": "CPU, of some kind", "versions": {"torch": "2.0"}}


def of(cell, folder, *given, parent=None, **options):
    """The record of a folder, whose run was started with overrides KEY=VALUE."""
    settings = run_settings.RunSettings("python", [*given], [*given], **MADE, **options)
    return record.build(cell, folder, settings, parent)


def recorded(folder, *given, cell=CELL, epochs=9, accuracy=90.0, batches=None, **options):
    """A record of a run that was never made; ``batches`` are those of an epoch and of a test."""
    write_run(folder, cell.config, epochs, batches=batches)
    write_test(folder, {"accuracy/top1": accuracy}, batches=batches and batches[1])
    return of(cell, folder, *given, **options)


def row(page, begins):
    """Cells of the line of a report that begins so."""
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {begins} |"))
    return dict(zip(report.COLUMNS, line.strip("| ").split(" | "), strict=False))


def reported(folder, *found, page="en.md"):
    """A page of the reports, after more records; the pictures are empty files."""
    for one in found:
        record.collect(one, folder / "records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save", lambda fig, path, shown: path.touch())
        report.write(folder / "records")
    return (folder / page).read_text()


def test_a_record_says_what_a_run_was(tmp_path):
    found = recorded(tmp_path, "optim_wrapper.optimizer.lr=0.2", length=9, seed=3)
    assert (found["table"], found["cell"]) == ("en-5", "ResNet20/EN")
    assert found["label"] == "shortened: 9 of 165 epochs, changed: optim_wrapper.optimizer.lr=0.2"
    assert found["changes"] == {"optim_wrapper.optimizer.lr": 0.2}
    assert found["figures"] == {"top-1": 90.0} and len(found["curve"]) == 9
    assert (found["seed"], found["commit"], found["versions"]) == (3, "abc", {"torch": "2.0"})
    assert found["device"] == "CPU, of some kind" and found["seconds"] == 9.0
    assert (found["command"], found["config"]) == ("python", CELL.config)
    assert json.loads(record.to_json(found)) == found


@pytest.mark.parametrize(
    "epochs, length, given, label",
    [
        (165, None, [], "full recipe"),
        (7, None, [], "unfinished: 7 of 165 epochs"),
        (3, 9, [], "unfinished: 3 of 9 epochs, shortened: 9 of 165 epochs"),
        (1000, 1000, [], "lengthened: 1000 of 165 epochs"),
        (165, None, ["optim_wrapper.optimizer.lr=0.2", "train_dataloader.batch_size=64"],
         "batches of 64, not 128, changed: optim_wrapper.optimizer.lr=0.2, "
         "changed: train_dataloader.batch_size=64"),
        (165, None, ["train_dataloader.num_workers=0", "default_hooks.logger.interval=7",
                     "train_dataloader.dataset.data_root=x", "channels_last=True",
                     "optim_wrapper.optimizer.fused=True"], "full recipe"),
        (165, None, ["amp=True"], "changed: amp=True"),
        (165, None, ["load_from=other.pth"], "changed: load_from=other.pth"),
        (165, None, ["test_dataloader.dataset.split=train"],
         "changed: test_dataloader.dataset.split=train"),
        (165, None, ["train_dataloader.dataset.indices=100"],
         "changed: train_dataloader.dataset.indices=100"),
        (9, 9, ["param_scheduler.1.milestones=[1, 2]"],
         "shortened: 9 of 165 epochs, changed: param_scheduler.1.milestones=[1, 2]"),
        (165, None, ["default_hooks.ema={'type': 'EMAHook'}"],
         "changed: default_hooks.ema={'type': 'EMAHook'}"),
        (165, None, ["default_hooks.logger.type=EMAHook"],
         "changed: default_hooks.logger.type=EMAHook"),
    ],
)  # fmt: skip
def test_whatever_differs_from_the_recipe_is_in_the_label(tmp_path, epochs, length, given, label):
    assert recorded(tmp_path, *given, epochs=epochs, length=length)["label"] == label


@pytest.mark.parametrize("processes, label", [(1, "batches of 32, not 128"), (4, "full recipe")])
def test_batches_of_another_size_are_in_the_label(tmp_path, processes, label):
    """The config is for four processes of 32."""
    cell = registry.find_cell("en-2 ResNet50/EN")
    assert recorded(tmp_path, cell=cell, epochs=100, processes=processes)["label"] == label


def test_a_run_of_which_nothing_was_measured_gives_way_to_itself_with_a_figure(tmp_path):
    cell = registry.find_cell("ilm-6 IN / IN")
    write_run(tmp_path / "a", cell.config, 200)
    found = of(cell, tmp_path / "a")
    assert found["label"] == "no figure yet" and not found["figures"]
    record.collect(found, tmp_path / "r")
    whole = {**found, "label": "full recipe", "figures": {"RMSE": 60.0}}
    path = record.collect(whole, tmp_path / "r")
    assert list((tmp_path / "r").iterdir()) == [path]


@pytest.mark.parametrize(
    "images, label",
    [
        ([0, 200], ""),
        ([0, 30], "30 of 200 images, "),
        ([100, 130], "30 of 200 images, "),
        ([200, 400], ""),
    ],
)
def test_other_images_are_in_the_label_and_not_their_number_alone(tmp_path, images, label):
    cell, key = registry.find_cell("ilm-6 IN / IN"), "train_dataloader.dataset.images"
    write_run(tmp_path, cell.config, 200, options={key: images})
    found = of(cell, tmp_path, f"{key}={tuple(images)}")
    assert found["label"] == f"{label}changed: {key}={images}, {record.NO_FIGURE}"


@pytest.mark.parametrize(
    "batches, label",
    [
        ((1, 2), "128 of 50000 images, tested on 32 of 10000 images"),
        ((391, 625), "full recipe"),
    ],
)
def test_a_part_of_a_data_set_is_in_the_label(tmp_path, batches, label):
    """Where the folder of the data has fewer images, the config differs in nothing."""
    assert recorded(tmp_path, epochs=165, batches=batches)["label"] == label


def test_a_run_that_was_resumed_on_more_images_is_labelled_by_the_fewest(tmp_path):
    write_run(tmp_path, CELL.config, 80, batches=(8, 625))
    write_run(tmp_path, CELL.config, 165, start=80, name="20260101_100000", batches=(391, 625))
    write_test(tmp_path, {"accuracy/top1": 90.0}, batches=625)
    assert of(CELL, tmp_path)["label"] == "1024 of 50000 images"


def test_a_test_of_another_runs_checkpoint_has_that_runs_label(tmp_path):
    trained = registry.find_cell("en-2 ResNet50/EN")
    parent = recorded(tmp_path / "a", cell=trained, epochs=2, length=2, processes=4)
    for checkpoint, top1 in (("epoch_2.pth", 5.0), ("epoch_100.pth", 10.0)):
        values = {"accuracy/top1": top1, "accuracy/top5": 9.0}
        options = {"load_from": checkpoint}
        write_test_alone(tmp_path / "b", WEBVISION.config, values, options, name=checkpoint)
    found = of(WEBVISION, tmp_path / "b", parent=parent)
    # Names of folders are in the order of time: the last is "epoch_2.pth".
    assert found["figures"]["top-1"] == 5.0
    assert found["label"] == "from en-2 ResNet50/EN (shortened: 2 of 100 epochs)"


@pytest.mark.parametrize("cell", [WEBVISION.id, "en-6 Cityscapes test server/EN"])
def test_a_test_of_a_full_recipes_checkpoint_is_one(cell, tmp_path):
    """The second cell's config trains, where nothing is tested."""
    cell = registry.find_cell(cell)
    metrics = {"mIoU": 70.0, "accuracy/top1": 70.0}
    write_test_alone(tmp_path, cell.config, metrics, {"load_from": "whole.pth"})
    whole = {"table": "en", "cell": "trained", "label": "full recipe"}
    assert of(cell, tmp_path, parent=whole)["label"] == "full recipe"


@pytest.mark.parametrize(
    "cell, images",
    [("en-6 Cityscapes test server/EN", 1525), ("ilm-5 test-dev, GN, batch 2, mmdet", 20288)],
)
def test_images_for_a_server_are_those_of_the_benchmarks_test_set(cell, images, tmp_path):
    cell, labels = registry.find_cell(cell), []
    whole = {"table": "en", "cell": "trained", "label": "full recipe"}
    for batches in (images, 500):
        folder = tmp_path / str(batches)
        metrics, options = {"mIoU": 70.0}, {"load_from": "whole.pth"}
        write_test_alone(folder, cell.config, metrics, options, batches=batches)
        labels.append(of(cell, folder, parent=whole)["label"])
    assert "tested on" not in labels[0] and f"tested on 500 of {images} images" in labels[1]


def test_a_backbone_that_is_no_full_recipe_is_in_the_label(tmp_path):
    cell = registry.find_cell("en-6 ADE20K/EN")
    write_run(tmp_path, cell.config, 1)
    setting = "model.backbone.init_cfg.checkpoint=epoch_9.pth"
    assert f"changed: {setting}" in of(cell, tmp_path, setting)["label"]
    parent = {"table": "en-6", "cell": "backbone/EN", "label": "shortened: 9 of 100 epochs"}
    label = of(cell, tmp_path, parent=parent)["label"]
    assert "from en-6 backbone/EN (shortened: 9 of 100 epochs)" in label


def test_a_full_recipe_alone_stands_beside_the_papers_figure(tmp_path):
    short = recorded(tmp_path / "a", accuracy=88.0, length=9)
    page = reported(tmp_path / "r", short)
    assert row(page, "ResNet20/EN")["run"] == "not run in full"
    assert row(page, "ResNet20/EN")["paper"] == "92.41"
    own = row(page, "ResNet20/EN, ours")
    assert own["run"] == "shortened: 9 of 165 epochs" and own["ours"] == "88.00"
    assert own["paper"].strip() == own["ours - paper"].strip() == ""
    full = recorded(tmp_path / "b", epochs=165, accuracy=92.0)
    page = reported(tmp_path / "r", full)
    assert row(page, "ResNet20/EN")["ours - paper"] == "-0.41"
    assert row(page, "ResNet20/EN, ours")["run"] == "shortened: 9 of 165 epochs"
    assert row(page, "ResNet20/BN")["run"] == "not run"


def test_what_the_paper_does_not_define_has_no_difference(tmp_path):
    """Its RMSE has no unit, its SSIM and LPIPS no settings; an L1 it does not have."""
    cell = registry.find_cell("ilm-6 IN / IN")
    write_run(tmp_path / "a", cell.config, 200)
    metrics = {"rmse": 60.0, "ssim": 0.25, "l1": 45.0, "lpips": 0.5}
    figures = {name: measure.read(metrics) for name, measure in record.measures(cell).items()}
    found = {**of(cell, tmp_path / "a"), "label": "full recipe", "figures": figures}
    found["references"] = {"mean image": {"RMSE": 45.0}}
    page = reported(tmp_path / "r", found, page="ilm.md")
    assert row(page, "mean image, to compare")["ours"].startswith("45.00 / - ")
    own = row(page, "IN / IN")
    assert own["paper"] == "108.17 / 108.17 / 0.441 / 0.372 / -"
    assert own["ours"] == "60.00 / 103.92 / 0.500 / 0.250 / 45.00"
    assert own["ours - paper"] == "- / - / - / - / -"


def test_several_seeds_are_a_mean_and_a_spread(tmp_path):
    found = [
        recorded(tmp_path / str(seed), epochs=165, accuracy=accuracy, seed=seed)
        for seed, accuracy in enumerate((92.0, 92.5, 93.0))
    ]
    own = row(reported(tmp_path / "r", *found), "ResNet20/EN")
    assert own["ours"] == "92.50 ± 0.50" and own["seeds"] == "0, 1, 2"
    assert own["ours - paper"] == "+0.09" and own["trained"] == "165 of 165 epochs"


def test_the_command_reports_the_runs_in_its_folder(tmp_path, monkeypatch):
    found, runs = recorded(tmp_path / "a", length=9), tmp_path / "runs"
    record.write(found, runs / "en-5" / "record.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["report", "--work-dir=~/runs"]) == 0
    page = (runs / "reports" / "en.md").read_text()
    assert row(page, "ResNet20/EN, ours")["run"] == found["label"] == "shortened: 9 of 165 epochs"


ACTIVATIONS = registry.find_cell("ilm-7 (tanh, relu)")


def diverged(folder, epochs, **options):
    """The record of a run whose training ended by its loss."""
    write_run(folder, ACTIVATIONS.config, epochs)
    text = "the loss became infinite or NaN at iteration 17"
    write_error(explain(FloatingPointError(text)), folder / run_settings.ERROR)
    return of(ACTIVATIONS, folder, **options)


@pytest.mark.parametrize("epochs", [0, 3])
def test_a_run_whose_loss_became_nan_stands_beside_the_papers_words(epochs, tmp_path):
    found = diverged(tmp_path / "a", epochs, seed=0)
    assert found["diverged"] == "the loss became infinite or NaN at iteration 17"
    assert record.describe(found) == "did not converge (full recipe)"
    own = row(reported(tmp_path / "r", found, page="ilm.md"), "(tanh, relu)")
    assert own["paper"] == own["ours"] == "did not converge"
    assert own["trained"] == f"{epochs} of 350 epochs"
    # Resumed, it gets through.
    (tmp_path / "a" / run_settings.ERROR).unlink()
    half = of(ACTIVATIONS, tmp_path / "a", seed=0)
    assert half["label"] == f"unfinished: {epochs} of 350 epochs"
    for later in (half, recorded(tmp_path / "b", cell=ACTIVATIONS, epochs=350, seed=0)):
        page = reported(tmp_path / "r", later, page="ilm.md")
        assert len(list((tmp_path / "r" / "records").iterdir())) == 1
    assert row(page, "(tanh, relu)")["ours"] == "10.00"


def test_a_run_that_ended_otherwise_did_not_diverge(tmp_path):
    write_run(tmp_path, CELL.config, 3)
    write_error(
        explain(OSError(errno.ENOSPC, "No space left on device")), tmp_path / run_settings.ERROR
    )
    assert of(CELL, tmp_path)["label"] == "unfinished: 3 of 165 epochs"


@pytest.mark.parametrize(
    "accuracies, ours",
    [
        ([10.9], "89.10, did not converge"),
        ([12.0], "88.00"),
        # With the first seed its loss became NaN.
        ([None, 92.0], "8.00, did not converge with seed 0"),
        ([None, 10.0], "90.00, did not converge"),
    ],
)
def test_a_run_at_chance_did_not_converge(accuracies, ours, tmp_path):
    found = []
    for seed, accuracy in enumerate(accuracies):
        folder = tmp_path / str(seed)
        if accuracy is None:
            found.append(diverged(folder, 3, seed=seed))
            continue
        options = {"cell": ACTIVATIONS, "epochs": 350, "seed": seed}
        found.append(recorded(folder, accuracy=accuracy, **options))
    own = row(reported(tmp_path / "r", *found, page="ilm.md"), "(tanh, relu)")
    assert own["ours"] == ours
    if accuracies == [None, 92.0]:
        assert own["trained"] == "3 of 350 epochs, 350 of 350 epochs"


def test_runs_of_other_settings_are_no_seeds_of_one(tmp_path):
    """Their labels name the hooks alone."""
    for seed, momentum, accuracy in ((0, 0.005, 90.0), (1, 0.9, 80.0), (0, 0.9, 82.0)):
        hooks = f"custom_hooks=[{{'type': 'EMAHook', 'momentum': {momentum}}}]"
        options = {"epochs": 165, "accuracy": accuracy, "seed": seed}
        found = recorded(tmp_path / f"{momentum} {seed}", hooks, **options)
        assert found["label"] == "changed: custom_hooks=EMAHook"
        page = reported(tmp_path / "r", found)
    own = [line for line in page.splitlines() if line.startswith("| ResNet20/EN, ours |")]
    assert len(own) == 2 and len(list((tmp_path / "r" / "records").iterdir())) == 3
    assert "| 90.00 |" in "".join(own) and "| 81.00 ± 1.41 |" in "".join(own)
    drawn = report.curves(TABLE, report.by_cell(tmp_path / "r" / "records"))
    assert sorted(len(group) for _, group in drawn) == [1, 2]


def test_runs_on_original_and_on_re_encoded_images_are_no_seeds_of_one(tmp_path):
    for i, (seed, packed) in enumerate([(0, False), (1, True), (0, True)]):
        options = {"epochs": 165, "accuracy": 90.0 + i, "seed": seed}
        found = recorded(tmp_path / str(i), **options)
        page = reported(tmp_path / "r", {**found, "packed": packed})
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ResNet20/EN |")]
    assert [(cells[1], cells[3], cells[4], cells[6]) for cells in rows] == [
        ("full recipe", "90.00", "-2.41", "165 of 165 epochs"),
        ("full recipe", "91.50 ± 0.71", "-0.91", "165 of 165 epochs, on re-encoded JPEG"),
    ]
    labels = [label for label, _ in report.curves(TABLE, report.by_cell(tmp_path / "r/records"))]
    recipe = "ResNet20/EN, full recipe"
    assert labels == [recipe, f"{recipe}, re-encoded"]


def test_names_that_are_cut_are_told_apart(tmp_path):
    names = []
    for lr in (0.2, 0.3):
        given = [f"train_dataloader.sampler.option_of_a_long_name_{i}=1" for i in range(4)]
        found = recorded(tmp_path / str(lr), *given, f"zzz={lr}", epochs=165)
        names.append(record.collect(found, tmp_path / "r").stem)
    assert names[0] != names[1] and [len(name) for name in names] == [150, 150]


def test_the_same_records_give_the_same_bytes(tmp_path):
    found = recorded(tmp_path / "a")
    for name in ("r", "s"):
        record.collect(found, tmp_path / name / "records")
        report.write(tmp_path / name / "records")
    files = sorted(path.name for path in (tmp_path / "r").glob("*.*"))
    assert files == ["README.md", "assoc.md", "en-5.png", "en-fig1b.png", "en.md", "ilm.md"]
    for name in files:
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "s" / name).read_bytes()


def test_a_cell_of_another_table_with_the_same_config_shows_the_run(tmp_path):
    cell = registry.find_cell("ilm-1 ILM+GN")
    reported(tmp_path / "r", recorded(tmp_path / "a", cell=cell, epochs=350, accuracy=94.0))
    page = (tmp_path / "r" / "ilm.md").read_text()
    assert row(page, "ILM+GN, batch 64")["ours - paper"] == "+0.12"
    assert row(page, "(tanh, sigmoid)")["ours"] == "6.00"


def test_curves_of_cells_at_home_elsewhere_are_drawn(tmp_path):
    cells = (registry.find_cell(name) for name in ("ilm-1 ILM+GN", "ilm-fig4 keys as in IN"))
    saved = {c.id: [[recorded(tmp_path / c.table, cell=c, epochs=350)]] for c in cells}
    drawn = [label for label, _ in report.curves(registry.tables()["ilm-fig4"], saved)]
    assert drawn == ["keys as in GN, full recipe", "keys as in IN, full recipe"]


def test_errors_are_drawn_against_batch_sizes(tmp_path):
    figure = registry.tables()["ilm-fig1"]
    assert report.curves_against(figure, {}) == {}
    for batch, given in ((64, []), (2, []), (16, ["optim_wrapper.optimizer.lr=0.2"])):
        cell = registry.canonical_cell(registry.find_cell(f"ilm-4 GN, batch {batch}"))
        folder = tmp_path / str(batch)
        found = recorded(folder, *given, cell=cell, epochs=350, accuracy=93.0)
        record.collect(found, tmp_path / "r" / "records")
    lines = report.curves_against(figure, report.by_cell(tmp_path / "r" / "records"))
    assert list(lines) == ["GN", "BN", "ILM+GN"]
    paper, ours = lines["GN"]
    assert [at for at, _ in paper] == [2, 4, 8, 16, 32, 64] and dict(paper)[16] == 7.24
    # Of what is no full recipe, nothing stands there.
    assert ours == [(2, pytest.approx(7.0)), (64, pytest.approx(7.0))]
    assert lines["BN"][1] == []
    assert report.draw(figure, report.by_cell(tmp_path / "r" / "records"), tmp_path)
    assert (tmp_path / "ilm-fig1.png").is_file()


def test_gains_over_bn_are_drawn_of_the_paper_and_of_full_recipes(tmp_path):
    figure = registry.tables()["en-fig1b"]
    compared = report.compared_norms(figure, {})
    assert [label.replace("\n", ", ") for label in compared] == [
        "ShuffleNetV2 x0.5, Table 2",
        "ResNet50, Table 2",
        "Inception v2, Table 3",
        "ResNet50, Table 3",
        "ADE20K, Table 6",
        "Cityscapes, Table 6",
    ]
    assert all(list(of) == ["BN", "SN", "EN"] for of in compared.values())
    assert compared["Cityscapes\nTable 6"]["BN"] == (69.7, None)
    for norm, accuracy in (("BN", 70.0), ("SN", 70.5), ("EN", 72.0)):
        cell = registry.find_cell(f"en-2 ResNet50/{norm}")
        length = 3 if norm == "SN" else None
        found = recorded(
            tmp_path / norm, cell=cell, epochs=100, accuracy=accuracy, length=length, processes=4
        )
        record.collect(found, tmp_path / "r" / "records")
    compared = report.compared_norms(figure, report.by_cell(tmp_path / "r" / "records"))
    # SN's run was shorter.
    assert compared["ResNet50\nTable 2"] == {
        "BN": (76.4, pytest.approx(70.0)),
        "SN": (76.9, None),
        "EN": (78.1, pytest.approx(72.0)),
    }
    axis = pictures.gains(figure, compared).axes[0]
    bars = {c.get_label(): [round(b.get_height(), 2) for b in c] for c in axis.containers}
    assert bars["EN, the paper"] == [1.9, 1.7, 0.9, 1.0, 1.8, 2.9]
    assert bars["EN, ours"] == [2.0] and "SN, ours" not in bars
    shown = [text.get_text() for text in axis.texts]
    assert "78.1" in shown and "72.0" in shown and "70.0" not in shown
    assert report.compared_norms(registry.tables()["en-fig3"], {}) == {}


def test_another_run_of_the_same_seed_overwrites_none(tmp_path):
    first = recorded(tmp_path / "a", length=9)
    path = record.collect(first, tmp_path / "r")
    assert record.collect({**first, "figures": {"top-1": 90.5}}, tmp_path / "r") == path
    other = {**first, "curve": [{"epochs": 1, "loss": 1.0}]}
    unfinished = tmp_path / "r" / "unfinished.json"
    record.write({**first, "label": "unfinished"}, unfinished)
    with pytest.raises(UserError, match="holds another run of en-5 ResNet20/EN, seed 0"):
        record.collect(other, tmp_path / "r")
    assert record.read(path)["curve"] == first["curve"] and unfinished.exists()


def test_an_unfinished_record_gives_way_to_what_its_run_became(tmp_path):
    half = recorded(tmp_path / "a", epochs=40)
    record.collect(half, tmp_path / "r")
    # Its log had nothing yet of how many images there are.
    whole = recorded(tmp_path / "b", epochs=165, batches=(391, 625))
    record.collect(whole, tmp_path / "r")
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["en-5-ResNet20-EN-seed0.json"]


def test_what_is_no_record_is_told(tmp_path, capsys):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "x.json").write_text('{"table": "en-5"}')
    assert main(["report", "--output", str(tmp_path), "--work-dir", str(tmp_path / "none")]) == 2
    assert "x.json is no record of a run" in capsys.readouterr().err


def test_the_projects_reports_are_those_of_its_records(tmp_path):
    """`python tools/reproduce.py report --output reports` brings them up to date."""
    kept = ROOT / "reports"
    copies = tmp_path / "records"
    copies.mkdir()
    for path in (kept / "records").glob("*.json"):
        found = record.read(path)
        assert record.to_json(found) == path.read_text(encoding="utf-8")
        (copies / path.name).write_bytes(path.read_bytes())
    for path in report.write(copies):
        own = kept / path.name
        if path.suffix == ".md":
            assert own.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), own
        else:
            # Another matplotlib draws other pixels of the same record.
            assert Image.open(own).info["records"] == Image.open(path).info["records"], own
    names = {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in kept.iterdir()} == names


#: Runs from before records had the commit; the README quotes them.
WITHOUT_COMMIT = {
    f"ilm-6-{norm}-IN-seed0-shortened-10-of-200-epochs-changed-custom_hooks-TranslatedImages+EMAHook"
    for norm in ("IN", "ILM+IN")
}


def test_the_projects_records_name_their_commit():
    records = {path.stem: record.read(path) for path in ROOT.glob("reports/records/*.json")}
    assert {stem for stem, found in records.items() if not found["commit"]} <= WITHOUT_COMMIT
    commits = {c for found in records.values() for c in (found["commit"] or "").split(", ") if c}
    for path in ("benchmarks/record.json", "docs/demo.json", *ROOT.glob("docs/figures/*.txt")):
        # The parts of the benchmark may be measured at several commits.
        named = re.findall(r"commit\W+([\w+]+)", (ROOT / path).read_text(encoding="utf-8"))
        assert named, path
        commits.update(named)
    assert all(re.fullmatch("[0-9a-f]{12}", commit) for commit in commits)
    git = ["git", "-C", str(ROOT)]
    is_ancestor = [*git, "merge-base", "--is-ancestor"]
    ours = {c for c in commits if subprocess.run([*is_ancestor, c, "HEAD"]).returncode == 0}
    shallow = subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True)
    if not ours or shallow.stdout.strip() != b"false":
        pytest.skip("whether commits are of the project's history needs a clone that has it")
    assert commits == ours, f"{commits - ours} are not in the history: run their cells again"
