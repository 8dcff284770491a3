"""The command compare, on generated data: its runs, and what it refuses."""

import json
import os
import shlex
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

import torch
from detectron2 import model_zoo
from detectron2.data import DatasetCatalog, MetadataCatalog

from helpers.swapped_norms import randomized
from helpers.trainings import LAZY, SHAPES, SMALL, write_mmengine_config
from ilm_plugins.__main__ import main
from ilm_plugins.cli import parsers
from ilm_plugins.comparison import compared_config, compared_models, comparison, start_weights
from ilm_plugins.comparison.arms import Arm, Arms
from ilm_plugins.comparison.config_source import ConfigSource
from ilm_plugins.comparison.plan import Plan
from ilm_plugins.comparison.run import executors, folders, outcomes, tasks
from ilm_plugins.comparison.run.executors import Execution
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.run.record import FILE, read_record, write_record

#: A norm that fits the small segmenter, and the baseline.
EN, GN = "EN(reduction=8)", "GN(num_groups=4)"


class Forked:
    """A command of the package in a fork of the launcher, with what Popen has of a process."""

    def __init__(self, launcher, words, file):
        self.launcher, self.status = launcher, None
        self.process = launcher.start(words, Path(file.name))

    def poll(self):
        if self.status is None and self.launcher.has_ended():
            self.status = self.launcher.wait()
        return self.status

    def terminate(self):
        os.kill(self.process, signal.SIGTERM)

    def wait(self):
        self.status = self.launcher.wait() if self.status is None else self.status


@pytest.fixture(scope="module", autouse=True)
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared_models, "ROUNDS", 1)
        patch.setattr(tasks, "PAUSE", 0.05)
        yield patch


@pytest.fixture(scope="module")
def started(launcher, patched):
    """The commands that were started; a fork of this process has what they import."""
    commands = []

    def start(words, file, variables):
        commands.append(shlex.join(words))
        return Forked(launcher, words, file)

    patched.setattr(tasks, "start", start)
    return commands


@pytest.fixture
def config(datasets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(write_mmengine_config(tmp_path / "fcn.py", datasets))


def compare(config, *words):
    seeds = [] if "--seeds" in words else ["--seeds", "0"]
    return main(["compare", config, *seeds, "--num-gpus", "0", "--output", "out", *words])


def plan_of(config, norms, seeds, output, **options):
    return Plan(ConfigSource(config, **options), norms, seeds, output)


def frame():
    return pd.read_csv("out/compare.csv")


DUSK = """
_base_ = {!r}
folders = dict(img_path="images/training", seg_map_path="annotations/training")
test_dataloader = dict(dataset=dict(data_prefix=folders))
"""


@pytest.fixture(scope="module")
def compared(datasets, started, patched, tmp_path_factory):
    """A folder, now the current one, in which GN and EN were compared, also on other images."""
    folder = tmp_path_factory.mktemp("compared")
    patched.chdir(folder)
    config = write_mmengine_config(folder / "fcn.py", datasets)
    Path("dusk.py").write_text(DUSK.format(str(config)))
    started.clear()
    with pytest.MonkeyPatch.context() as unmeasured:
        seconds = {norm: {"seconds": 1.0} for norm in (GN, EN)}
        unmeasured.setattr(compared_models, "measure_steps", lambda *_: seconds)
        assert compare(str(config), GN, EN, *TEST) == 0
    return str(config)


TEST = "--test", "dusk", "dusk.py"
FOLDERS = "GN-num_groups=4", "EN-reduction=8"


def test_each_norm_has_a_result(compared):
    assert list(frame().query("metric == 'mIoU' and test == 'test'")["norm"]) == [GN, EN]


@pytest.mark.parametrize("norm", ["GN-num_groups=4", "EN-reduction=8"])
def test_each_run_is_an_ordinary_training(compared, norm):
    found = read_record(Path("out", norm, "seed0"))
    assert (found["run"], found["planned"], found["seed"]) == (4, 4, 0)


@pytest.mark.parametrize("test, images", [("", 4), ("dusk", 8)])
def test_each_model_is_tested_by_each_config(compared, test, images):
    assert read_record(Path("out/GN-num_groups=4/seed0", test))["test images"] == images


def test_a_run_that_was_moved_is_tested_where_it_is_now(compared, started, tmp_path):
    """``last_checkpoint`` has the path that the checkpoint had before."""
    shutil.copytree("out", tmp_path / "out")
    plan = plan_of(compared, [GN], [0], tmp_path / "out", tests={"dusk": "dusk.py"})
    last = plan.folder(GN, 0) / "last_checkpoint"
    last.write_text(f"/elsewhere/{Path(last.read_text()).name}")
    shutil.rmtree(plan.folder(GN, 0, "dusk"))
    executors.run_all(plan, Execution())
    assert outcomes.metrics_of(plan, GN, 0, "dusk")


def test_finished_runs_are_skipped(compared, started):
    started.clear()
    assert compare(compared, GN, EN, *TEST) == 0
    assert not started


def test_only_an_added_norm_is_trained(compared, started):
    started.clear()
    compare(compared, GN, EN, "ILMGN(num_groups=4)", *TEST)
    assert started
    assert all("ILMGN" in command for command in started)


def test_a_changed_setting_is_named(compared, capsys):
    assert compare(compared, GN, EN, *TEST, "--opts", "train_cfg.max_iters=2") == 2
    assert "was begun with train_cfg.max_iters = 4, not 2" in capsys.readouterr().err


def test_a_changed_test_is_named(compared, capsys):
    Path("other.py").write_text("_base_ = 'dusk.py'\ntest_dataloader = dict(batch_size=2)\n")
    assert compare(compared, GN, EN, "--test", "dusk", "other.py") == 2
    words = "was begun with --test dusk: test_dataloader.batch_size = 1, not 2"
    assert words in capsys.readouterr().err


def test_a_run_that_diverges_is_a_row(config, started):
    assert compare(config, GN, "--opts", "optim_wrapper.optimizer.lr=1e30") == 1
    (failure,) = frame()["failure"]
    assert failure.startswith("diverged: ")


MISSING = """
_base_ = {!r}
test_dataloader = dict(dataset=dict(data_root="nowhere"))
"""


@pytest.mark.wide
def test_a_further_test_that_fails_is_a_row(config, started):
    Path("missing.py").write_text(MISSING.format(config))
    assert compare(config, GN, EN, "--test", "missing", "missing.py") == 0
    page = Path("out/compare.md").read_text()
    assert f"- {GN}, seed 0, missing: failed: " in page
    assert "shapes is not in 'nowhere'" in page
    found = frame().query("metric == 'mIoU'").dropna(subset="value")
    assert list(found["test"]) == ["test", "test"]


def test_a_test_of_another_model_is_refused(config, started, capsys):
    Path("wide.py").write_text(
        f"_base_ = {config!r}\nmodel = dict(decode_head=dict(channels=48))\n"
    )
    assert compare(config, GN, "--test", "wide", "wide.py") == 2
    words = "--test wide: its model.decode_head.channels is 48, expected 32"
    assert words in capsys.readouterr().err


CLASSES = """
_base_ = {!r}
names = ["background", "circle", "square", "triangle"]
dataset = dict(metainfo=dict(classes=tuple(names[::{}]), palette=[[i] * 3 for i in range(4)]))
test_dataloader = dict(dataset=dataset)
"""


def test_a_test_with_classes_in_another_order_is_refused(config, capsys):
    for name, step in (("ours.py", 1), ("other.py", -1)):
        Path(name).write_text(CLASSES.format(config, step))
    assert compare("ours.py", GN, "--test", "other", "other.py") == 2
    words = "--test other: class 0 of its test set is 'triangle', expected 'background'; give"
    assert words in capsys.readouterr().err


def test_a_yaml_test_with_classes_in_another_order_is_refused(tmp_path):
    for name, classes in (("cats_test", ["cat", "dog"]), ("dogs_test", ["dog", "cat"])):
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(thing_classes=classes, evaluator_type="coco")
        (tmp_path / name).write_text(f"_BASE_: {SHAPES}\nDATASETS: {{TEST: [{name}]}}\n")
        (tmp_path / name).rename(tmp_path / f"{name}.yaml")
    config, other = (str(tmp_path / f"{name}_test.yaml") for name in ("cats", "dogs"))
    with pytest.raises(UserError, match="class 0 of its test set is 'dog', expected 'cat'"):
        ConfigSource(config, tests={"dogs": other}).check_tests(["GN"])


@pytest.mark.parametrize("metric, word", [(None, "better"), ("d1", "worse")])
def test_a_metric_that_the_config_minimizes_is_better_if_it_is_lower(
    config, tmp_path, metric, word
):
    overrides = [f"default_hooks.checkpoint.{one}" for one in ("save_best=rmse", "rule=less")]
    plan = plan_of(config, ["GN", "EN"], [0, 1, 2], tmp_path / "out", overrides=overrides)
    for i, norm in enumerate(plan.norms):
        for seed in plan.seeds:
            values = {"d1": 7.0 - i - 0.1 * seed * i, "rmse": 9.0 - i - 0.1 * seed * i}
            (folder := plan.folder(norm, seed)).mkdir(parents=True)
            record = {"run": 1, "planned": 1, "metrics": {"": values}}
            write_record(folder / FILE, record)
    plan.save_settings()
    found = comparison.report(replace(plan, metric=metric), "")
    assert found.verdicts["test"]["EN"].word == word


def test_as_is_needs_a_test_of_its_own_norm(config):
    norm = "norm_cfg=dict(_delete_=True, type='SN')"
    Path("sn.py").write_text(f"_base_ = {config!r}\nmodel = dict(backbone=dict({norm}))\n")
    with pytest.raises(UserError, match=r"its model\.backbone\.norm_cfg\.type is 'SN', expected"):
        ConfigSource(config, tests={"sn": "sn.py"}).check_tests(["as-is", EN])


@pytest.mark.parametrize(
    "words",
    [
        ["load_from=bn.pth"],
        ["model.pretrained=bn.pth"],
        ["model.backbone.init_cfg.type=Pretrained", "model.backbone.init_cfg.checkpoint=bn.pth"],
        ["model.backbone.init_cfg.0.checkpoint=bn.pth"],
    ],
)
def test_weights_that_no_norm_converts_are_named(config, capsys, words):
    compare(config, GN, EN, "--dry-run", "--opts", *words)
    assert "The config loads 'bn.pth'. If the file has weights" in capsys.readouterr().out


def test_weights_of_detectron2s_configs_are_known(tmp_path):
    (tmp_path / "lazy.py").write_text(LAZY)
    words = {str(SHAPES): ["MODEL.WEIGHTS", "R-50.pkl"]}
    words[str(tmp_path / "lazy.py")] = ["train.init_checkpoint='R-50.pkl'"]
    for path, overrides in words.items():
        assert open_config(path, overrides).pretrained(["MODEL.FPN.NORM"]) == "R-50.pkl"


def test_the_norms_of_each_model_are_counted(config, capsys):
    """Norms that the comparison does not replace are counted, too."""
    compare(config, GN, EN, "--at", "model.decode_head.norm_cfg", "--dry-run")
    printed = capsys.readouterr().out
    assert f"  {GN}: 20 ILMGroupNorm, 1 GroupNorm (20 adaptive, 1 plain norms left)" in printed
    assert f"  {EN}: 20 ILMGroupNorm, 1 ExemplarNorm (21 adaptive, 0 plain norms left)" in printed


def test_a_training_tells_the_plain_norms_that_are_left(compared):
    logs = {norm: Path("out", norm, "seed0.log").read_text() for norm in FOLDERS}
    assert "norms of the model: 21 GroupNorm\n" in logs[FOLDERS[0]]
    words = "norms of the model: 21 ExemplarNorm (21 adaptive, 0 plain norms left)\n"
    assert words in logs[FOLDERS[1]]


def test_a_training_tells_its_length_before_its_first_step(compared):
    before, _, after = Path("out", FOLDERS[0], "seed0.log").read_text().partition("Iter(train)")
    assert "length of the training: 4 iterations of 2 images, 2.0 epochs of 4 images\n" in before
    assert after


def test_weights_of_another_model_begin_no_comparison(config, capsys):
    other = {f"backbone.conv1.{i}.weight": torch.ones(2) for i in range(20)}
    own = open_config(config).build_model().state_dict()
    torch.save(other | dict([*own.items()][:1]), "other.pth")
    assert compare(config, GN, "--weights", "other.pth") == 2
    assert "other.pth: only 1 of its 21 tensors fit the model; give" in capsys.readouterr().err
    assert not Path("out/compare.json").exists()


@pytest.mark.parametrize(
    "word, given, near",
    [
        ("optim_wraper.optimizer.lr=0.2", "optim_wraper", "optim_wrapper"),
        ("optimizer.lr=0.2", "optimizer", "optim_wrapper"),
        ("model.backbon.depth=18", "model.backbon", "model.backbone"),
    ],
)
def test_a_misspelt_override_is_refused(config, capsys, word, given, near):
    assert compare(config, GN, "--arm", GN, GN, word, "--dry-run") == 2
    words = f"override {word!r}: the config has no {given!r}; did you mean {near!r}?"
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    ["find_unused_parameters=True", "model.backbone.frozen_stages=1"],
    ids=["a key that the Runner reads", "an argument of a class"],
)
def test_an_override_may_add_a_key(config, word):
    key = word.partition("=")[0].rpartition(".")[2]
    assert key in str(open_config(config, [word]).config)


def test_a_script_is_refused_before_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("import torchvision\nmodel = 1\nopen('ran', 'w')\n")
    assert compare("train.py", GN) == 2
    assert "'train.py' is no config of detectron2 or MMEngine" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_norms_that_do_not_fit_are_named_before_any_training(config, started, capsys):
    started.clear()
    assert compare(config, GN, "EN(reduction=24)", "NoSuchNorm") == 2
    message = capsys.readouterr().err
    assert "reduction=24 does not divide" in message
    assert "NoSuchNorm" in message
    assert message.count("\n") == 1
    assert not started


@pytest.mark.parametrize("norm", ["ILMGN", "BN"])
def test_a_norm_that_no_part_of_the_model_has_is_refused(
    datasets, tmp_path, monkeypatch, capsys, norm
):
    monkeypatch.chdir(tmp_path)
    place = "MODEL.SEM_SEG_HEAD.NORM"  # a detector without this head has the key, too
    assert compare(str(SHAPES), "GN", norm, "--at", place, "--dry-run", "--opts", *SMALL) == 2
    told = capsys.readouterr().err
    assert f"these norms do not fit at {place}: {norm}: the same model as with GN; " in told


def test_frozen_norms_stay_and_the_plan_says_so(config, capsys):
    part = "model.backbone.norm_cfg"
    words = f"{part}._delete_=True", f"{part}.type=BN", "model.backbone.frozen_stages=1"
    words += ("model.decode_head.norm_cfg.type=GN",)
    assert compare(config, GN, EN, "--dry-run", "--opts", *words) == 0
    printed = capsys.readouterr().out
    reason = "BN: model.backbone.frozen_stages = 1 freezes norms"
    assert f"keys that keep their norm:\n  model.backbone.norm_cfg  {reason}\n" in printed
    assert "model.backbone.norm_cfg.type=EN" not in printed
    assert f"  {EN}: 20 BatchNorm2d, 1 ExemplarNorm (1 adaptive, 20 plain norms left)" in printed


def test_a_stock_detector_without_trained_norms_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stock = model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    assert compare(stock, "GN", "ILMGN", "--dry-run", "--opts", "DATASETS.TEST", "()") == 2
    told = capsys.readouterr().err
    # Not of the box head, which has no convolution with a norm.
    place = "give a place, such as --at MODEL.FPN.NORM"
    assert f"MODEL.RESNETS.NORM keeps FrozenBN: it is not trained; {place}\n" in told


@pytest.mark.parametrize(
    "options, is_trained", [("normalizers=('IN', 'LN')", False), ("requires_grad=True", True)]
)
def test_the_norm_replaces_all_options_but_requires_grad(datasets, tmp_path, options, is_trained):
    """Which the norm may have, too."""
    path = write_mmengine_config(tmp_path / "fcn.py", datasets)
    opened = open_config(str(path), ["model.backbone.norm_cfg.requires_grad=False"])
    words = opened.with_norm(f"EN({options})", ["model.backbone.norm_cfg"])
    found = open_config(str(path), [*words]).config.model.backbone.norm_cfg
    given = {} if is_trained else {"normalizers": ("IN", "LN")}
    assert found == {"type": "EN", "requires_grad": is_trained, **given}


def test_a_dry_run_prints_the_commands(config, capsys):
    compare(config, GN, EN, "--seeds", "3", "4", "--dry-run")
    lines = [line for line in capsys.readouterr().out.splitlines() if " train " in line]
    assert len(lines) == 4
    assert "randomness.seed=3" in lines[0]


def test_a_dry_run_tells_each_length_and_the_time_of_the_runs(config, capsys, monkeypatch):
    """Which an arm may change, and a base may have set to a large dataset's."""
    seconds = {GN: {"seconds": 1.0}, EN: {"seconds": 2.0}, "SN": {"seconds": 3.0}}
    monkeypatch.setattr(compared_models, "measure_steps", lambda *_: seconds)
    words = ["--arm", EN, EN, "train_cfg.max_iters=30", "--seeds", "0", "1", "--dry-run"]
    compare(config, GN, EN, "SN", *words)
    printed = capsys.readouterr().out
    told = "length of each run:\n  4 iterations of 2 images, 2.0 epochs of 4 images\n"
    assert f"{told}  30 iterations of 2 images, 15 epochs of 4 images\n" in printed
    times = f"0:00:04 with {GN}, 0:01:00 with {EN}, 0:00:12 with SN, of all 6 runs 0:02:32; loading"
    assert f"all steps of a run take about {times} and tests add to it\n" in printed


def test_an_arm_has_a_norm_and_overrides_by_a_name_of_its_own(config, tmp_path):
    """Two arms may have the same norm; compare.json tells what each name stands for."""
    key = "optim_wrapper.optimizer.lr"
    arms = Arms({"GN+fast": Arm(GN, [f"{key}=0.5"])})
    plan = plan_of(config, [GN, "GN+fast"], [0], tmp_path / "out", arms=arms)
    fast = plan.source.open("GN+fast").config
    assert (fast.model.decode_head.norm_cfg.type, fast.optim_wrapper.optimizer.lr) == ("GN", 0.5)
    words = plan.source.training("GN+fast", 0, plan.folder("GN+fast", 0))
    assert f"work_dir={tmp_path / 'out' / 'GN+fast' / 'seed0'}" in words
    plan.save_settings()
    settings = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert settings["--arm GN+fast"] == [GN, f"{key}=0.5"]


def test_an_arm_without_a_place_among_the_norms_comes_after_them(config, capsys):
    words = ["--arm", "GN+fast", GN, "optim_wrapper.optimizer.lr=0.5", "--dry-run"]
    assert compare(config, EN, *words) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if " train " in line]
    assert ["lr=0.5" in line for line in commands] == [False, True]


@pytest.mark.parametrize(
    "norms, rate, is_allowed",
    [([GN, EN], 0.5, True), ([GN, EN], 0.1, False), ([GN, EN, "SN"], 0.5, True), ([GN], 0, True)],
    ids=["the same", "another rate", "a further norm", "without the norm"],
)
def test_a_folder_keeps_the_overrides_for_a_norm(config, tmp_path, norms, rate, is_allowed):
    def plan(norms, rate):
        arm = Arm(EN, [f"optim_wrapper.optimizer.lr={rate}"])
        return plan_of(config, norms, [0], tmp_path / "out", arms=Arms({EN: arm} if rate else {}))

    plan([GN, EN], 0.5).save_settings()
    with nullcontext() if is_allowed else pytest.raises(UserError, match="was begun with --arm EN"):
        plan(norms, rate).save_settings()


@pytest.mark.parametrize(
    "words, message",
    [
        ("--test dusk fcn.py --test dusk fcn.py", "two --test have the same name"),
        ("--test test fcn.py", "--test 'test': give a name of letters and digits, not 'test'"),
        ("--test .. fcn.py", "--test '..': give a name of letters and digits"),
        ("--arm GN4 GN(num_groups=4) a='b", "No closing quotation; close each quote"),
        ("--arm a GN lr=1 --arm a GN lr=2", "two --arm have the name 'a'; give each another"),
        ("--arm .. GN lr=1", "norm '..': give a name of letters and digits"),
        ("--weights typo.pth", "typo.pth' does not exist"),
        ("--opts default_hooks.checkpoint.out_dir=all", "'all': all runs would write to it"),
        (GN, "is given twice"),
        ("--seeds 1 0 1", "--seeds 1 0 1: give each seed once"),
        (
            "--at model.neck.norm_cfg",
            "the config has no model.neck; give another place, such as --at model.backbone.norm_cf",
        ),
        (
            "--at model.decode_head",
            "decode_head: it is a part, not a norm; give another place, such",
        ),
    ],
)
def test_a_mistake_begins_no_comparison(config, capsys, words, message):
    assert compare(config, GN, *words.split()) == 2
    assert message in capsys.readouterr().err
    assert not Path("out/compare.json").exists()


def test_weights_that_have_changed_are_named(config, tmp_path):
    weights = tmp_path / "gn.pth"
    plan = plan_of(config, [GN], [0], tmp_path / "out", weights=weights)
    weights.write_bytes(b"1")
    plan.save_settings()
    weights.write_bytes(b"2")
    with pytest.raises(UserError, match="was begun with --weights, SHA-256 = "):
        plan.save_settings()


def evaluation(plan, test):
    return plan.source.evaluation(GN, 0, test, plan.folder(GN, 0, test), Path("a.pth"))


def test_a_further_test_keeps_its_own_test_set(config):
    words = ["test_dataloader.dataset.data_root=mine", "train_cfg.max_iters=2"]
    plan = plan_of(config, [GN], [0], Path("out"), tests={"dusk": "dusk.py"}, overrides=words)
    assert {*words} <= {*evaluation(plan, "")}
    assert {*words} & {*evaluation(plan, "dusk")} == {words[1]}


def test_unsafe_is_passed_on(config, capsys):
    assert compare(config, GN, "--unsafe", "--dry-run") == 0
    assert " --unsafe " in capsys.readouterr().out


def test_ctrl_c_tells_how_to_continue(config, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ilm_plugins.cli.compare.run_all", interrupt)
    assert compare(config, GN) == 130
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith(": stopped; the same command continues")
    )


def test_an_unknown_metric_ends_a_comparison_after_its_first_test(compared, started, capsys):
    started.clear()
    assert compare(compared, GN, "SN", "--metric", "mine", *TEST) == 2
    assert "--metric 'mine': the runs have aAcc, mIoU, mAcc" in capsys.readouterr().err
    assert not started


def test_a_run_without_its_checkpoint_is_a_row(compared, tmp_path):
    shutil.copytree("out", tmp_path / "out")
    plan = plan_of(compared, [GN], [0], tmp_path / "out", tests={"dusk": "dusk.py"})
    (plan.folder(GN, 0) / "last_checkpoint").unlink()
    shutil.rmtree(plan.folder(GN, 0, "dusk"))
    plan.folder(GN, 0, "dusk.log").unlink()
    executors.run_all(plan, Execution())
    assert "last_checkpoint does not exist" in outcomes.failure(plan, GN, 0, "dusk")


def test_a_run_that_was_stopped_is_told_from_one_that_was_not_started(config, tmp_path):
    """As after Ctrl-C in a training function."""
    plan = plan_of(config, [GN], [0, 1], tmp_path)
    plan.folder(GN, 0).mkdir(parents=True)
    found = [outcomes.failure(plan, GN, seed) for seed in plan.seeds]
    assert found == ["stopped", "not run"]


def test_a_training_that_stops_early_is_complete(tmp_path):
    record = {"planned": 4, "run": 2, "stopped early": True}
    write_record(tmp_path / "record.json", record)
    assert folders.is_complete(tmp_path)


def test_steps_are_measured_before_the_trainings(config, started, monkeypatch, capsys):
    before = []
    there = Path("out/steps.json").exists
    patched = "ilm_plugins.cli.compare.run_all"
    monkeypatch.setattr(patched, lambda *_, **__: before.append(there()))
    compare(config, GN, EN, "--opts", "train_cfg.max_iters=1000")
    assert before == [True]
    steps = json.loads(Path("out/steps.json").read_text())
    assert all(steps[norm]["seconds"] > 0 for norm in (GN, EN))
    hours = [str(timedelta(seconds=round(1000 * steps[norm]["seconds"]))) for norm in (GN, EN)]
    told = f"all steps of a run take about {hours[0]} with {GN}, {hours[1]} with {EN}, of all 2 "
    assert told in capsys.readouterr().out


def test_where_a_config_has_our_layers_they_are_compared_unless_at_names_others():
    ours, plain = (("MODEL.ROI_BOX_HEAD.NORM", norm) for norm in ("ILMGN", "GN"))
    assert ConfigSource(str(SHAPES), overrides=ours).own_norms == dict([ours])
    assert len(ConfigSource(str(SHAPES), overrides=plain).own_norms) > 1
    places = ("MODEL.FPN.NORM",)
    assert [*ConfigSource(str(SHAPES), places, ours).own_norms] == [*places]


def test_a_step_that_fails_ends_nothing(config, started, capsys):
    """A hook, or other processes, may belong to the step, as in self-supervised training."""
    started.clear()
    compare(config, GN, EN, "--opts", "optim_wrapper.optimizer.type=Unknown")
    assert "the cost of a step was not measured: " in capsys.readouterr().out
    assert started


@pytest.mark.wide
def test_an_unsafe_config_is_measured_in_a_process_of_its_own(datasets):
    """As on a GPU; the process must know --unsafe and the datasets."""
    plain = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    overrides = [*SMALL, "MODEL.RETINANET.NUM_CLASSES", "4", "DATASETS.TRAIN", "('shapes_train',)"]
    config = model_zoo.get_config_file(plain)
    source = ConfigSource(config, ["MODEL.FPN.NORM"], overrides, unsafe=True)
    steps = compared_config.in_own_process(compared_models.measure_steps, source, ["BN"])
    assert steps["BN"]["seconds"] > 0


@pytest.fixture(scope="module")
def switched(datasets, tmp_path_factory):
    """The starts of SN, the baseline, and BN, and the state of the file of a BN model."""
    folder = tmp_path_factory.mktemp("switched")
    key, weights = "MODEL.ROI_BOX_HEAD.NORM", folder / "bn.pth"
    source = ConfigSource(str(SHAPES), [key], SMALL, weights=weights)
    state = randomized(source.open("BN").build_model()).state_dict()
    torch.save({"model": state}, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start_weights, "BATCHES", 1)
        start_weights.write_starts(source, ["SN", "BN"], folder, source.start_state)
    found = {norm: torch.load(folder / norm / "weights.pth")["model"] for norm in ("SN", "BN")}
    return found, state


def means_of_box_head(state):
    return [value for name, value in state.items() if "box_head" in name and "_mean" in name]


def test_statistics_of_a_baseline_that_is_sn_are_measured(switched):
    found, state = switched
    pairs = zip(means_of_box_head(found["SN"]), means_of_box_head(state), strict=True)
    assert not any(torch.equal(*pair) for pair in pairs)


def test_a_norm_starts_from_the_file_whatever_the_baseline_is(switched):
    found, state = switched
    pairs = zip(means_of_box_head(found["BN"]), means_of_box_head(state), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_norms_of_the_file_that_a_start_would_lack_are_refused(config, tmp_path):
    """Else the report compares what no run starts from."""
    words = open_config(config).with_norm("BN", ["model.backbone.norm_cfg"])
    model = open_config(config, words).build_model()
    gate = {"backbone.bn1.gate": torch.ones(1)}
    torch.save({"state_dict": {**model.state_dict(), **gate}}, "bn.pth")
    source = ConfigSource(config, ["model.backbone.norm_cfg"])
    state = start_weights.read_weights(Path("bn.pth"))
    with pytest.raises(
        UserError, match=r"the file become no EN.*, as backbone.bn1: it has gate beside"
    ):
        start_weights.write_starts(source, ["BN", EN], tmp_path / "out", state)


def test_starts_are_written_where_there_is_no_gpu(config, tmp_path):
    """As on a machine that submits jobs to others with GPUs."""
    words = open_config(config).with_norm("BN", ["model.backbone.norm_cfg"])
    torch.save({"state_dict": open_config(config, words).build_model().state_dict()}, "bn.pth")
    options = {"at": ["model.backbone.norm_cfg"], "weights": Path("bn.pth"), "num_gpus": 1}
    plan = plan_of(config, ["BN", EN], [0], tmp_path / "out", **options)
    comparison.compare_plan(plan, "", lambda plan: None)
    assert (tmp_path / "out/EN-reduction=8/weights.pth").is_file()


@pytest.mark.wide
def test_a_norm_is_compared_with_other_options_of_itself(started, datasets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = open_config(str(SHAPES), [*SMALL, "SOLVER.MAX_ITER", "2"]).config
    Path("my_mask_rcnn.yaml").write_text(config.dump())
    norms = ["GN", "ILMGN", "ILMGN(init='identity')"]
    assert compare("my_mask_rcnn.yaml", *norms, "--at", "MODEL.ROI_BOX_HEAD.NORM") == 0
    assert list(frame().query("metric == 'bbox/AP'")["norm"]) == norms


@pytest.mark.wide
def test_synchronized_norms_start_from_weights_and_have_further_tests(config, started):
    Path("dusk.py").write_text(DUSK.format("fcn.py"))
    words = open_config("fcn.py").with_norm("BN")
    model = open_config("fcn.py", words).build_model()
    torch.save({"state_dict": model.backbone.state_dict()}, "resnet50_bn.pth")
    norms = ["SyncBN", "EN(sync=True)", "SN(sync=True)"]
    assert compare("fcn.py", *norms, "--weights", "resnet50_bn.pth", *TEST) == 0
    found = frame().query("metric == 'mIoU'")
    assert {*found["norm"]} == {*norms}
    start = torch.load("out/SN-sync=True/weights.pth")["state_dict"]
    assert torch.equal(start["backbone.conv1.weight"], model.backbone.state_dict()["conv1.weight"])
    assert {*found["test"]} == {"test", "dusk"}


@pytest.mark.parametrize(
    "words, overrides",
    [
        ("c.yaml GN EN --at A.B.NORM --opts SOLVER.MAX_ITER 3 --seeds 0", "SOLVER.MAX_ITER 3"),
        ("c.yaml GN --opts A.B -1 --opts C.D 2 --at A.B.NORM", "A.B -1 C.D 2"),
        ("c.py EN(eps=1e-3) --arm EN EN lr=1 --arm a.b GN --lr=2 --opts a=1 b.c=2", "a=1 b.c=2"),
    ],
)
def test_overrides_are_behind_opts(words, overrides):
    assert parsers.compare(words.split()).overrides == overrides.split()


@pytest.mark.parametrize(
    "words, message",
    [
        ("c.yaml GN EN SOLVER.MAX_ITER 3", "unrecognized arguments: SOLVER.MAX_ITER"),
        ("c.py GN EN train_cfg.max_iters=3", "unrecognized arguments: train_cfg.max_iters=3"),
        ("c.yaml GN EN --jobs 2 A.B 3", "unrecognized arguments: A.B 3"),
    ],
)
def test_an_override_elsewhere_is_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        parsers.compare(words.split())
    assert f"{message}; give overrides behind --opts" in capsys.readouterr().err
