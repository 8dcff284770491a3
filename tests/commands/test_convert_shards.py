"""The command convert, for checkpoints in several files with an index, as of transformers."""

import json

import pytest
import torch
from converting import refused, run
from torch import nn

from close import EQUAL, assert_close
from ilm_plugins.checkpoints import PARTIAL, read, write
from ilm_plugins.surgery import convert
from swaps import randomized


@pytest.fixture
def plain():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32)
    return randomized(nn.Sequential(*layers)).double().eval()


def save(state, folder, ending, cut=5):
    """Two shards, the first with ``cut`` tensors, and their index."""
    if ending == "safetensors":
        pytest.importorskip("safetensors", reason="its files need safetensors")
    stem = "model" if ending == "safetensors" else "pytorch_model"
    names = [*state]
    shards = [f"{stem}-0000{i}-of-00002.{ending}" for i in (1, 2)]
    weight_map = {name: shards[i >= cut] for i, name in enumerate(names)}
    for shard in shards:
        part = {name: state[name] for name in names if weight_map[name] == shard}
        write(part, folder / shard, {"format": "pt", "made by": "a test"})
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.fixture(params=["safetensors", "bin"])
def index(request, plain, tmp_path):
    """A checkpoint whose first BatchNorm is cut between its running mean and variance."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return save(plain.state_dict(), tmp_path / "in", request.param)


@pytest.fixture
def converted(index, tmp_path):
    """The index of the converted checkpoint, in another folder under the same name."""
    assert run(index, tmp_path / "out" / index.name, "--to", "EN") == 0
    return tmp_path / "out" / index.name


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_outputs(path, plain):
    """A checkpoint of EN computes what the plain model does."""
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected = plain(x)
    ours, _ = convert(plain, "EN")
    ours.load_state_dict(read(path))
    assert_close(ours(x), expected, EQUAL)


def test_a_norm_that_two_shards_share_keeps_its_outputs(converted, plain):
    check_outputs(converted, plain)


def test_shards_keep_their_names_and_tensors(converted, index):
    old, new = (json.loads(path.read_text())["weight_map"] for path in (index, converted))
    kept = old.keys() & new.keys()
    assert "1.weight" in kept
    assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
    assert {p.name for p in converted.parent.iterdir()} == {p.name for p in index.parent.iterdir()}


def test_a_new_tensor_is_in_a_shard_of_its_norm(converted):
    shards = json.loads(converted.read_text())["weight_map"]
    assert shards["3.ratio.weight"] == shards["3.weight"]


def test_an_index_names_the_shard_of_each_tensor_and_their_size(converted):
    contents = json.loads(converted.read_text())
    size = 0
    for shard in {*contents["weight_map"].values()}:
        tensors = read(converted.with_name(shard))
        named = {name for name, file in contents["weight_map"].items() if file == shard}
        assert tensors.keys() == named
        size += sum(tensor.nbytes for tensor in tensors.values())
    assert contents["metadata"] == {"total_size": size}


def test_another_name_of_the_index_renames_the_shards(index, tmp_path):
    assert run(index, tmp_path / "in" / "en.safetensors.index.json", "--to", "EN") == 0
    made = {path.name for path in index.parent.iterdir() if path.name.startswith("en")}
    shards = {f"en-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert made == shards | {"en.safetensors.index.json"}


def test_shards_become_one_file(index, plain, tmp_path):
    assert run(index, tmp_path / "whole.pth", "--to", "EN") == 0
    check_outputs(tmp_path / "whole.pth", plain)


def test_a_reverted_checkpoint_in_shards_is_the_original(converted, plain, tmp_path):
    assert run(converted, tmp_path / "back.pth", "--revert") == 0
    assert_close(dict(read(tmp_path / "back.pth")), dict(plain.state_dict()), 16)


@pytest.mark.parametrize("with_index", [True, False], ids=["beside its index", "alone"])
def test_one_shard_that_cuts_a_norm_is_refused_with_the_missing_names(
    index, tmp_path, capsys, with_index
):
    if not with_index:
        index.unlink()
    lacking = "1.num_batches_tracked, 1.running_var" if with_index else "1.running_var"
    for shard, names in zip(
        sorted(index.parent.glob("*-of-*")),
        (lacking, "1.bias, 1.running_mean, 1.weight"),
        strict=True,
    ):
        error = refused(capsys, shard, tmp_path / "out.pth", "--to", "EN")
        assert f"which lack {names}; give the index of all shards" in error
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("with_index", [True, False], ids=["beside its index", "alone"])
def test_one_shard_with_whole_norms_is_converted(plain, tmp_path, with_index):
    index = save(plain.state_dict(), tmp_path, "bin", cut=7)
    if not with_index:
        index.unlink()
    first, _ = sorted(tmp_path.glob("*-of-*"))
    assert run(first, tmp_path / "out.pth", "--to", "EN") == 0
    assert "1.ratio.weight" in read(tmp_path / "out.pth")


def test_a_norm_of_this_package_that_is_cut_is_refused(plain, tmp_path, capsys):
    ours, _ = convert(plain, "EN")
    state = ours.state_dict()
    save(state, tmp_path, "bin", cut=1 + [*state].index("1.expand.weight"))
    first, _ = sorted(tmp_path.glob("*-of-*"))
    error = refused(capsys, first, tmp_path / "out.pth", "--revert")
    assert "cuts norms, which lack 1.expand.bias, " in error


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["", "--overwrite"])
@pytest.mark.parametrize("there", ["index", "shard"])
def test_shards_and_indexes_are_never_replaced(index, tmp_path, capsys, there, more):
    out = tmp_path / "out" / index.name
    name = out.name if there == "index" else min(p.name for p in index.parent.glob("*-of-*"))
    out.with_name(name).write_text("before")
    assert "never replaced" in refused(capsys, index, out, "--to", "EN", *more)
    assert files(out.parent) == {name: b"before"}


def test_a_shard_that_appears_during_the_work_stays(index, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out" / index.name
    second = max(p.name for p in index.parent.glob("*-of-*"))

    def read_and_make(path):
        out.with_name(second).write_text("of another process")
        return read(path)

    monkeypatch.setattr("ilm_plugins.cli.convert.read_checkpoint", read_and_make)
    assert "exists by now" in refused(capsys, index, out, "--to", "EN")
    assert files(out.parent) == {second: b"of another process"}


def test_a_full_disk_leaves_no_shard(index, tmp_path, capsys, small_files):
    first, second = (path.stat().st_size for path in sorted(index.parent.glob("*-of-*")))
    assert first < second // 2
    with small_files(second // 2):
        error = refused(capsys, index, tmp_path / "out" / index.name, "--to", "EN")
    assert "cannot be written (File too large)" in error
    assert not files(tmp_path / "out")


def test_an_index_as_output_needs_one_as_input(plain, tmp_path, capsys):
    write(plain.state_dict(), tmp_path / "in.pth")
    words = tmp_path / "in.pth", tmp_path / "out.bin.index.json", "--to", "EN"
    assert "INPUT is none; give a file as OUTPUT" in refused(capsys, *words)


@pytest.mark.parametrize(
    "contents, expected",
    [
        (b"{", "cannot be read (JSONDecodeError: "),
        (b"\xff", "cannot be read (UnicodeDecodeError: "),
        (b"[]", "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": ["a"]}', "has no weight_map"),
        (b'{"weight_map": {"a": 1}}', "names 1; its shards must be files beside it"),
        (b'{"weight_map": {"a": ""}}', "names ''; its shards must be files beside it"),
        (b'{"weight_map": {"a": "../a.bin"}}', "its shards must be files beside it"),
        (b'{"weight_map": {"a": "/etc/a.bin"}}', "its shards must be files beside it"),
        (b'{"weight_map": {"a": "absent.bin"}}', "absent.bin' does not exist"),
        (b'{"weight_map": {"a": "list.bin"}}', "list.bin' holds a list"),
        (b'{"weight_map": {"a": "a.bin", "b": "a.bin"}}', "names 1 tensors that its shards lack"),
    ],
)
def test_a_damaged_index_is_told_in_one_line(tmp_path, capsys, contents, expected):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.bin")
    torch.save([1], tmp_path / "list.bin")
    (tmp_path / "in.bin.index.json").write_bytes(contents)
    words = tmp_path / "in.bin.index.json", tmp_path / "out.pth", "--to", "EN"
    assert expected in refused(capsys, *words)


def test_no_partial_file_stays(converted):
    assert not [*converted.parent.glob(f"*{PARTIAL}")]
