"""detectron2's checkpoints: zoo files, conversion for a config, code, and what a kill leaves."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn

from helpers.close import assert_close, assert_equal
from helpers.swapped_norms import randomized
from helpers.workers import Harmful
from ilm_plugins import ExemplarNorm, ILMGroupNorm, SwitchNorm
from ilm_plugins.__main__ import main
from ilm_plugins.checkpoints import CheckpointError, write
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.detectron2.checkpoints import Checkpointer
from ilm_plugins.trust import loading

FOLDER = "configs/detectron2/shapes"
GN, ILMGN = (f"{FOLDER}/mask_rcnn_R_18_FPN_{norm}.yaml" for norm in ("gn", "ilmgn"))


@pytest.fixture
def plain(root):
    torch.manual_seed(0)
    return randomized(open_config(str(root / GN)).build_model()).eval()


def run(*words):
    return main(["convert", *map(str, words)])


def test_a_zoo_checkpoint_of_gn_computes_the_same(root, plain, tmp_path, capsys):
    state = {name: tensor.numpy() for name, tensor in plain.state_dict().items()}
    path, out = tmp_path / "model_final.pkl", tmp_path / "ilmgn.pkl"
    write({"model": state, "__author__": "Detectron2 Model Zoo"}, path)
    assert run(path, out, "--config-file", root / ILMGN) == 0
    printed = capsys.readouterr().out
    assert "converted, GN or IN -> ILMGroupNorm (4):" in printed
    assert "skipped" not in printed
    assert "missing" not in printed
    model = open_config(str(root / ILMGN)).build_model().eval()
    Checkpointer(model).load(str(out))
    assert type(model.roi_heads.box_head.conv1.norm) is ILMGroupNorm
    boxes = torch.randn(2, 64, 7, 7, dtype=torch.float64)
    before, after = (m.double().roi_heads.box_head(boxes) for m in (plain, model))
    assert_close(after, before, 2**20)


@pytest.mark.parametrize("part, near", [("backbon", "backbone"), ("box_head", "roi_heads.box_hea")])
def test_an_unknown_part_is_told_with_near_ones(root, plain, tmp_path, capsys, part, near):
    write(plain.state_dict(), tmp_path / "in.pth")
    words = tmp_path / "in.pth", tmp_path / "out.pth", "--config-file", root / ILMGN
    assert run(*words, "--part", part) == 2
    told = capsys.readouterr().err
    assert f"--part {part}: the model has no such part; near ones are " in told
    assert near in told
    assert ", ," not in told


def test_a_config_has_what_a_state_dict_lacks(root, plain, tmp_path, capsys):
    write(plain.state_dict(), tmp_path / "in.pth")
    words = tmp_path / "in.pth", tmp_path / "out.pth"
    assert run(*words, "--config-file", root / ILMGN) == 0
    assert "eps" not in capsys.readouterr().out
    assert run(*words, "--overwrite", "--to", "ILMGN", "--match", "*") == 0
    assert "a state dict has no eps" in capsys.readouterr().out


def load(path, contents):
    model = torch.nn.Linear(2, 2)
    write(contents, path)
    with loading():
        Checkpointer(model).load(str(path))
    return model


def test_files_of_caffe2_are_loaded(tmp_path):
    arrays = {"weight": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)}
    blobs = {**arrays, "weight_momentum": np.ones(1)}
    for contents in (blobs, {"blobs": blobs, "cfg": "MODEL: {}"}):
        assert load(tmp_path / "caffe2.pkl", contents).weight.eq(1).all()


def test_arrays_with_names_of_modules_are_no_file_of_caffe2(tmp_path):
    """Their names, which may be ends of the model's, keep their underscores."""
    model = torch.nn.ModuleDict({"stem": torch.nn.ModuleDict({"a_b": torch.nn.Linear(2, 2)})})
    write({"a_b.weight": np.ones((2, 2), np.float32)}, tmp_path / "c.pkl")
    Checkpointer(model).load(str(tmp_path / "c.pkl"))
    assert model["stem"]["a_b"].weight.eq(1).all()


@pytest.mark.parametrize("entry", ["model", None])
def test_a_pkl_by_torch_is_loaded_as_a_pth(tmp_path, entry):
    """Its names stay; the names in a file of Caffe2 would change."""
    source, target = randomized(SwitchNorm(4)), SwitchNorm(4)
    state = source.state_dict()
    torch.save({entry: state} if entry else state, tmp_path / "m.pkl")
    Checkpointer(target).load(str(tmp_path / "m.pkl"))
    assert_equal(dict(target.state_dict()), dict(source.state_dict()))


def test_a_file_of_pycls_is_loaded(tmp_path, monkeypatch):
    state = {
        "weight": torch.ones(2, 2),
        "bias": torch.zeros(2),
        "num_batches_tracked": torch.ones(1),
    }
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    assert load(tmp_path / "c.pyth", {"model_state": state}).weight.eq(1).all()


@pytest.mark.parametrize("suffix", [".pth", ".pyth"])
def test_a_state_dict_in_an_entry_of_another_name_is_loaded(tmp_path, suffix):
    state = {"weight": torch.full((2, 2), 3.0), "bias": torch.zeros(2)}
    loaded = load(tmp_path / f"c{suffix}", {"epoch": 3, "model_state_dict": state})
    assert loaded.weight.unique().tolist() == [3.0]


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth"])
def test_code_is_refused(tmp_path, suffix):
    contents = {"model": {"weight": Harmful(tmp_path / "ran")}, "__author__": "nobody"}
    with pytest.raises(CheckpointError, match=r"os\.makedirs"):
        load(tmp_path / f"c{suffix}", contents)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_weights_of_another_model_are_refused(tmp_path, suffix):
    other = {"model": {"fc.weight": np.ones(3), "bias": np.ones(3)}, "__author__": "nobody"}
    if suffix == ".pth":
        other["model"] = {name: torch.tensor(value) for name, value in other["model"].items()}
    with pytest.raises(CheckpointError, match="is of another model"):
        load(tmp_path / f"other{suffix}", other)


@pytest.mark.parametrize(
    "suffix, contents, held",
    [
        *((".pth", [1, 2], "a list"), (".pyth", [1, 2], "a list")),
        (".pkl", {"model": {1: np.ones(2)}, "__author__": "nobody"}, "an entry named 1"),
    ],
)
def test_a_file_without_a_state_dict_is_told(tmp_path, suffix, contents, held):
    with pytest.raises(CheckpointError, match=f"holds {held}, expected a state dict"):
        load(tmp_path / f"c{suffix}", contents)


def block(norm):
    """A residual block in a model, with names as in a detector."""
    stage = nn.Sequential(BasicBlock(64, 64, norm=norm))
    return nn.ModuleDict({"backbone": nn.ModuleDict({"res2": stage})})


def in_caffe2(name):
    """Caffe2's name of a norm's or convolution's tensor in a block."""
    for ours, theirs in (("conv1", "branch2a"), ("conv2", "branch2b"), ("norm", "bn")):
        name = name.replace(ours, theirs)
    for ours, theirs in (("weight", "s" if "bn" in name else "w"), ("bias", "b")):
        name = name.replace(ours, theirs)
    return name.replace(".", "_")


def write_block(path, model, form):
    """Write a model as a file of detectron2, of its zoo or of Caffe2, which has affine maps."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    short = {name.removeprefix("backbone."): value for name, value in state.items()}
    if form == "detectron2":
        write({"model": state, "__author__": "nobody"}, path)
    elif form == "zoo":
        write({"model": short, "__author__": "zoo", "matching_heuristics": True}, path)
    else:
        affine = {n: v for n, v in short.items() if n.endswith((".weight", ".bias"))}
        write({"blobs": {in_caffe2(name): value for name, value in affine.items()}}, path)


in_every_form = pytest.mark.parametrize("form", ["detectron2", "zoo", "Caffe2"])


@pytest.fixture
def warnings_of(tmp_path, caplog):
    """The function (source, target, form) -> warnings of the norms, when a file is loaded."""
    caplog.set_level("WARNING", logger="fvcore")

    def load(source, target, form="detectron2"):
        caplog.clear()
        write_block(tmp_path / "block.pkl", source, form)
        Checkpointer(target).load(str(tmp_path / "block.pkl"))
        return [r.message for r in caplog.records if "layers, such as" in r.message]

    return load


@in_every_form
@pytest.mark.parametrize(
    "norm, ours",
    [(norm, "EN") for norm in ("BN", "GN", "FrozenBN")]
    + [("GN", ours) for ours in ("ILMGN", "ILMLN", "AssocNorm", "AN")],
)
def test_weights_of_another_norm_give_one_warning_to_convert_them(warnings_of, norm, ours, form):
    (told,) = warnings_of(block(norm), block(ours), form)
    assert "another norm's weights for 2 layers, such as backbone.res2.0.conv1.norm" in told
    assert "keep initial values" in told
    assert "by the command convert" in told
    assert "init='identity'" in told


@pytest.fixture
def doubles():
    """New tensors are of float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@in_every_form
@pytest.mark.parametrize("norm", ["ILMGN", "AssocNorm", "AN"])
def test_a_plain_norm_continues_in_the_identity_without_a_warning(doubles, warnings_of, norm, form):
    plain, target = randomized(block("GN")), block(f"{norm}(init='identity')")
    assert warnings_of(plain, target, form) == []
    x = torch.randn(2, 64, 5, 4)
    found, expected = (model["backbone"]["res2"](x) for model in (target, plain))
    assert_close(found, expected)


def test_batchnorm_in_the_identity_of_groupnorm_gives_a_warning(warnings_of):
    (told,) = warnings_of(block("BN"), block("ILMGN(init='identity')"))
    assert "another norm's weights for 2 layers" in told


@pytest.mark.parametrize("stored, ours", [("SN", "SSN"), ("SSN", "SN")])
def test_ratios_of_another_function_give_a_warning(warnings_of, stored, ours):
    """Their parameters have the same names and shapes; only SSN has further buffers."""
    (told,) = warnings_of(block(stored), block(ours))
    assert "another norm's weights for 2 layers" in told


def test_networks_of_other_sizes_give_a_warning(warnings_of):
    target = block("ILMGN(key_group_size=8, init='identity')")
    (told,) = warnings_of(block("ILMGN(key_group_size=16)"), target)
    assert "another norm's weights for 2 layers" in told


@in_every_form
def test_norms_that_a_file_lacks_give_no_warning_to_convert_it(warnings_of, form):
    assert warnings_of(block(""), block("EN"), form) == []


def test_counters_beside_a_norm_give_no_warning(warnings_of):
    source = block("EN")
    source["backbone"]["res2"][0].conv1.norm.register_buffer("total_ops", torch.zeros(1))
    assert warnings_of(source, block("EN")) == []


@pytest.mark.parametrize("norm", ["", "EN"])
def test_a_norm_whose_name_ends_the_names_of_layers_gives_no_warning(warnings_of, norm):
    """Such as the last norm of a Swin Transformer, before its classifier."""
    source = block(norm)
    source["norm"] = nn.LayerNorm(7)
    assert warnings_of(source, block("EN"), "zoo") == []


@pytest.mark.parametrize("norm", ["BN", "EN", "ILMGN", "SSN"])
def test_the_same_norm_gives_no_warning(warnings_of, norm):
    assert warnings_of(block(norm), block(norm)) == []


def test_a_killed_save_or_one_of_infinite_weights_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_1", iteration=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    broken = torch.nn.Linear(2, 2)
    broken.weight.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="infinite"):
        Checkpointer(broken, str(tmp_path)).save("model_2")

    def cut(contents, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut)
    for name in ("model_1", "model_2"):
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save(name, iteration=2)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert Checkpointer(model, str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 1


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("make", [nn.BatchNorm2d, ExemplarNorm, SwitchNorm])
def test_a_batchnorm_of_another_width_is_skipped_with_every_norm(tmp_path, make, prefix):
    def model(norm, width):
        return nn.Sequential(nn.Conv2d(3, 32, 1), norm(32), nn.Conv2d(32, width, 1), norm(width))

    plain = model(nn.BatchNorm2d, 32)
    for norm in plain[1::2]:
        nn.init.constant_(norm.running_var, 2)
    state = {f"{prefix}{name}": tensor for name, tensor in plain.state_dict().items()}
    torch.save({"model": state}, tmp_path / "bn.pth")
    ours = model(make, 64)
    Checkpointer(ours, str(tmp_path)).load(str(tmp_path / "bn.pth"))
    variance = "running_var" if make is nn.BatchNorm2d else "running_variance"
    found = [getattr(norm, variance).unique().tolist() for norm in ours[1::2]]
    assert found == [[2.0], [1.0]]
