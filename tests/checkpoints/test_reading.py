"""Reading checkpoints: arrays are data, code is refused; state dicts, and whether they fit."""

import argparse
import datetime
import os
import pathlib
import pickle
import re
import sys
import tarfile
from collections import Counter, OrderedDict, defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode

from helpers import processes
from helpers.close import assert_equal
from helpers.workers import Built, Harmful
from ilm_plugins import checkpoints, trust
from ilm_plugins.checkpoints import CheckpointError, read, read_named
from ilm_plugins.checkpoints.formats.pickle_files import as_zoo
from ilm_plugins.trust import code_is_allowed, loading


def save(contents, path, protocol=pickle.HIGHEST_PROTOCOL):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(contents, protocol))
    else:
        torch.save(contents, path)
    return path


every_format = pytest.mark.parametrize("suffix", [".pth", ".pkl", ".anything"])


@pytest.fixture
def trapped(tmp_path, suffix):
    """A checkpoint that would make a folder, and the folder."""
    trap = tmp_path / "unpickled"
    return save({"model": Harmful(trap)}, tmp_path / f"c{suffix}"), trap


@every_format
def test_code_is_not_run(trapped):
    path, trap = trapped
    with pytest.raises(CheckpointError):
        read(path)
    assert not trap.exists()


@every_format
def test_a_refusal_names_the_code(trapped):
    path, _ = trapped
    with pytest.raises(CheckpointError, match=r"holds os.makedirs, .*give --unsafe$") as told:
        read(path)
    assert str(path) in str(told.value)


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO")
def test_a_framework_that_reads_a_file_itself_runs_no_code_within_loading(tmp_path):
    trap = tmp_path / "unpickled"
    path = save({"model": Harmful(trap)}, tmp_path / "c.pth")
    with loading(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO")
def test_a_framework_that_reads_a_file_itself_runs_code_within_unsafe_loading(tmp_path):
    trap = tmp_path / "unpickled"
    path = save({"model": Harmful(trap)}, tmp_path / "c.pth")
    with loading(unsafe=True):
        torch.load(path)
    assert trap.exists()


def test_unsafe_loading_allows_code_until_it_ends(tmp_path):
    trap = tmp_path / "unpickled"
    path = save({"model": Harmful(trap)}, tmp_path / "c.pth")
    with loading(unsafe=True):
        assert code_is_allowed()
        read(path)
    assert trap.exists()
    assert not code_is_allowed()


def test_a_thread_that_reads_with_unsafe_allows_no_code_in_another(tmp_path):
    trusted = save(Harmful(tmp_path / "made"), tmp_path / "trusted.pkl")
    other = save(Harmful(tmp_path / "never made"), tmp_path / "other.pkl")

    def read_trusted():
        for _ in range(200):
            read(trusted, unsafe=True)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_trusted)
        while not reading.done():
            with pytest.raises(CheckpointError, match="may run code"):
                read(other)
        reading.result()
    assert not (tmp_path / "never made").exists()


def test_safe_loading_within_unsafe_loading_allows_no_code():
    with loading(unsafe=True), loading():
        assert not code_is_allowed()


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("names", [[trust.ALLOW_CODE], [trust.ALLOW_CODE, trust.REFUSE_CODE]])
def test_the_environment_allows_no_code(tmp_path, monkeypatch, suffix, names):
    trap = tmp_path / "unpickled"
    path = save({"model": Harmful(trap)}, tmp_path / f"c{suffix}")
    for name in names:
        monkeypatch.setenv(name, "1")
    with pytest.raises(CheckpointError, match="which may run code"):
        read(path)
    assert not trap.exists()
    assert not code_is_allowed()


def test_loading_gives_the_environment_back(monkeypatch):
    monkeypatch.setenv(trust.ALLOW_CODE, "yes")
    for unsafe in (False, True):
        with loading(unsafe):
            assert os.environ.get(trust.REFUSE_CODE) == (None if unsafe else "1")
            assert os.environ.get(trust.ALLOW_CODE) == ("1" if unsafe else None)
        assert os.environ[trust.ALLOW_CODE] == "yes"
        assert trust.REFUSE_CODE not in os.environ


REACHES = Built(getattr, (np.ndarray, "tofile")), Built(np.load, ("f",)), torch.nn.Identity()


@pytest.mark.parametrize("contents", REACHES)
def test_what_may_reach_code_is_refused(tmp_path, contents):
    with pytest.raises(CheckpointError, match="may run code"):
        read(save([contents], tmp_path / "c.pkl"))


class Settings(dict):
    """As yacs's CfgNode: a dict with attributes."""

    def __init__(self, **options):
        super().__init__(options)
        self.frozen = True


BESIDE = {
    "argparse.Namespace": argparse.Namespace(lr=0.1, out=None, values=[1], items=2, update="x"),
    f"pathlib.{'_local.' if sys.version_info >= (3, 13) else ''}PosixPath": pathlib.PosixPath("a"),
    "datetime.datetime": datetime.datetime(2026, 1, 2),
    "test_reading.Settings": Settings(lr=0.1, part=Settings()),
    "collections.defaultdict": defaultdict(int, {"a": 1}),
    "torchvision.transforms.functional.InterpolationMode": InterpolationMode.BILINEAR,
    "numpy.load": Built(np.load, ("absent.npy",)),
    "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 3),
}


@pytest.mark.parametrize("name, value", BESIDE.items(), ids=BESIDE)
def test_what_is_no_data_becomes_an_empty_dict_and_is_named(tmp_path, name, value):
    state = torch.nn.BatchNorm1d(3).state_dict()
    path = save({"model": state, "args": value, "last": [value]}, tmp_path / "c.pth")
    with pytest.warns(UserWarning, match=f"'{path}' holds .*{name}.* only --unsafe reads it$"):
        found = read(path)
    assert_equal(found["model"], state)
    assert found["model"]._metadata == state._metadata
    assert type(found["args"]) is OrderedDict
    assert not vars(found["args"])


@pytest.mark.parametrize("key, other", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averaged_weights_beside_the_weights_are_named(tmp_path, key, other):
    contents = {"epoch": 3, key: {"x": torch.ones(2)}, other: {"x": torch.zeros(2)}}
    with pytest.warns(UserWarning, match=f"the weights '{key}', which are read, and '{other}'"):
        assert checkpoints.find_state(contents, "c.pth")[0] == key


def write_script(path):
    torch.jit.script(torch.nn.Linear(2, 3)).save(str(path))


def write_tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))


@pytest.mark.parametrize(
    "write, words",
    [(write_script, "got a torchscript checkpoint"), (write_tar, "TarFile, which may run code")],
)
def test_a_format_that_may_run_code_is_refused(tmp_path, write, words):
    write(tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path / "c.pth")


FORMATS = [(".pth", 2), *((".pkl", protocol) for protocol in range(6))]


@pytest.mark.parametrize("suffix, protocol", FORMATS)
@pytest.mark.parametrize("code", [*"?bhilqBHILQefdgFDG", "<f4", ">f4", ">i2", "S3", "U3", ">U3"])
def test_arrays_are_data(tmp_path, suffix, protocol, code):
    values = np.arange(6).reshape(2, 3).astype(code)
    given = {"plain": values, "fortran": np.asfortranarray(values), "part": values[:, 1:]}
    given |= {"none": values[:0], "number": values[1, 1], "whole": np.array(values[1, 1])}
    given |= {"axes": np.arange(24).reshape(2, 3, 4).astype(code).transpose(2, 0, 1)}
    contents = OrderedDict(given, n=[1, None])
    found = read(save(contents, tmp_path / f"c{suffix}", protocol))
    assert found.pop("n") == [1, None]
    for name, array in given.items():
        assert isinstance(found[name], np.generic if name == "number" else np.ndarray)
        native = array.astype(array.dtype.newbyteorder("="))
        np.testing.assert_array_equal(found[name], native, strict=True)


@pytest.mark.parametrize("suffix, protocol", FORMATS)
def test_arrays_can_be_written_to(tmp_path, suffix, protocol):
    array = read(save([np.zeros((2, 3))], tmp_path / f"c{suffix}", protocol))[0]
    array += 1
    assert array.sum() == 6


def test_a_counter_keeps_its_counts(tmp_path):
    """As of MultiStepLR's milestones."""
    counts = Counter({30: 1, 60: 2})
    assert read(save({"milestones": counts}, tmp_path / "c.pth"))["milestones"] == counts


class Own:
    """A class of the user's that torch.load may make."""


@pytest.fixture
def accepted():
    """Own, and numpy's function for arrays, as names that torch.load accepts."""
    before = torch.serialization.get_safe_globals()
    own = {Own, np.zeros(1).__reduce__()[0], np.dtype}
    torch.serialization.add_safe_globals([*own])
    yield own
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_what_the_user_lets_torch_load_stays_so(tmp_path, accepted):
    before = {*torch.serialization.get_safe_globals()}
    assert accepted <= before
    found = read(save([Own(), np.ones(2)], tmp_path / "c.pth"))
    assert type(found[0]) is Own
    assert found[1].tolist() == [1, 1]
    assert {*torch.serialization.get_safe_globals()} == before


def test_names_of_numpy_that_the_user_lets_torch_load_are_not_numpys_here(tmp_path, accepted):
    with pytest.raises(CheckpointError, match=r"numpy\.dtype"):
        read(save([np.array([None])], tmp_path / "c.pth"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_is_read_whatever_its_name(tmp_path, zipped):
    path = tmp_path / "c.pkl"
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    assert read(path)["x"].tolist() == [1, 1]


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_of_torch_is_not_run_whatever_its_name(tmp_path, zipped):
    path, trap = tmp_path / "c.pkl", tmp_path / "unpickled"
    torch.save({"x": Harmful(trap)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"holds os\.makedirs"):
        read(path)
    assert not trap.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_a_gpu_come_to_the_cpu(tmp_path, monkeypatch, zipped):
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"x": torch.ones(2)}, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    assert b"cuda:0" in (tmp_path / "c.pth").read_bytes()
    found = read(tmp_path / "c.pth")["x"]
    assert found.device.type == "cpu"
    assert found.tolist() == [1, 1]


@pytest.mark.parametrize("module", [b"numpy.core.", b"numpy._core."])
@pytest.mark.parametrize(
    "suffix, protocol", [(".pth", None), (".pkl", 0), (".pkl", 1), (".pkl", 2)]
)
def test_arrays_of_every_numpy_are_data(tmp_path, module, suffix, protocol):
    ours = np.arange(3.0).__reduce__()[0].__module__.removesuffix("multiarray").encode()
    given, path = {"a": np.arange(3.0), "b": np.float32(2)}, tmp_path / f"c{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(given, protocol))
    else:
        torch.save(given, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(ours, module))
    found = read(path)
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"] == 2


def test_arrays_of_python_2_are_data(tmp_path):
    """Their bytes are strings in latin1, and flags are numbers."""
    content = (
        b"(dp0\nS'a'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\n"
        b"S'b'\np5\ntp6\nRp7\n(I1\n(I2\ntp8\ncnumpy\ndtype\np9\n(S'i2'\np10\nI0\nI1\ntp11\nRp12\n"
        b"(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS'\\xff\\x00\\x01\\x00'\np15\ntp16\nbs."
    )
    (tmp_path / "c.pkl").write_bytes(content)
    assert read(tmp_path / "c.pkl")["a"].tolist() == [255, 1]


def test_logs_of_mmengine_are_data_without_mmengine(tmp_path):
    logging = pytest.importorskip("mmengine.logging", reason="needs mmengine")
    log = logging.HistoryBuffer([1.0, 2.0], [1, 1])
    path = save({"message_hub": {"loss": log}, "model": {}}, tmp_path / "c.pth")
    assert read(path)["message_hub"]["loss"].mean() == 1.5
    processes.run_program("read_a_log.py", path)


@pytest.fixture(params=[".pth", ".pkl", ".safetensors"])
def path(request, tmp_path):
    """The path of a checkpoint of each format that there is a reader for."""
    if request.param == ".safetensors":
        pytest.importorskip("safetensors", reason="its files need safetensors")
    return tmp_path / f"c{request.param}"


def test_a_missing_file_is_told(path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: b"",
        lambda whole: whole[:20],
        lambda whole: whole[:-20],
        lambda whole: b"GIF89a" + bytes(100),
    ],
    ids=["empty", "the beginning", "without the end", "a picture"],
)
def test_a_truncated_or_foreign_file_is_named_in_one_line(path, change):
    path.write_bytes(change(save({"weight": np.ones(100)}, path).read_bytes()))
    with pytest.raises(CheckpointError, match="truncated, or not a checkpoint") as told:
        read(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_a_state_dict_is_found_with_the_versions_of_its_modules(key):
    state = torch.nn.BatchNorm2d(3).state_dict()
    found, copy = checkpoints.find_state({key: state, "epoch": 3} if key else state, "c.pth")
    assert found == key
    assert copy == state
    assert copy._metadata == state._metadata


def test_numbers_in_arrays_of_a_state_dict_become_tensors():
    arrays = {code: np.ones(2, code) for code in ("?", "i8", "u1", "f4", "c8")}
    _, copy = checkpoints.find_state({"model": {**arrays, "classes": np.array(["cat"])}}, "c.pkl")
    assert copy.pop("classes").tolist() == ["cat"]
    assert all(map(torch.is_tensor, copy.values()))


@pytest.mark.parametrize(
    "contents, held",
    [
        *(([1], "list"), (3, "int"), ({}, ""), ({"model": 3}, "'model'")),
        *(({"model": {1: torch.ones(1)}}, "'model'"), ({"x": {"y": {}}}, "'x'")),
    ],
)
def test_a_file_without_a_state_dict_is_told(contents, held):
    with pytest.raises(CheckpointError, match=rf"'c.pth' holds no state dict, .* but .*{held}"):
        checkpoints.find_state(contents, "c.pth")


def beside_weights():
    """What the script of a training saves beside the state dict."""
    (learned := torch.ones(2, requires_grad=True)).sum().backward()
    optimizer = torch.optim.Adam([learned])
    optimizer.step()
    return {
        "epoch": 3,
        "loss": torch.ones(1),
        "optimizer_state_dict": optimizer.state_dict(),
        "metrics": {"accuracy": torch.tensor(0.9), "AP": np.float64(0.4)},
        "rng": {"torch": torch.get_rng_state()},
    }


@pytest.mark.parametrize("key", ["model_state_dict", "net", "module", "params_ema", "generator"])
def test_a_state_dict_is_found_in_the_only_entry_with_weights(key):
    state = torch.nn.BatchNorm2d(3).state_dict()
    assert checkpoints.find_state({**beside_weights(), key: state}, "c.pth") == (key, state)


def test_entries_with_weights_are_named_with_the_way_to_choose_one(tmp_path):
    state = torch.nn.BatchNorm2d(3).state_dict()
    contents = {"epoch": 3, "generator": state, "discriminator": state}
    torch.save(contents, path := tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="tensors in 'generator', 'discriminator'; ") as told:
        checkpoints.find_state(contents, path)
    new = tmp_path / "new.pth"
    (advice,) = re.findall(r"torch\.save\(.*\)$", str(told.value))
    exec(advice, {"torch": torch, "FILE": path, "NEW": new})
    assert checkpoints.read(new).keys() == state.keys()


STATE = {"weight": torch.ones(1)}


@pytest.mark.parametrize(
    "contents", [{"model": STATE}, {"net": STATE}, {"state_dict": STATE, "ema": STATE}]
)
def test_a_state_dict_is_given_under_the_key_that_a_framework_takes(tmp_path, contents):
    found = read_named(save({"epoch": 3, **contents}, tmp_path / "c.pth"), "model")
    assert found == {"epoch": 3, **contents, "model": STATE}


@pytest.mark.parametrize("contents", [STATE, {"a": STATE, "b": STATE}])
def test_a_framework_gets_the_contents_of_which_no_entry_is_the_state_dict(tmp_path, contents):
    assert read_named(save(contents, tmp_path / "c.pth"), "model") == contents


@pytest.mark.parametrize(
    "contents, held",
    [([1], "a list"), ({"model": 3}, "a int"), ({"model": {1: 2}}, "an entry named 1")],
)
def test_a_framework_gets_no_contents_but_a_state_dict(tmp_path, contents, held):
    with pytest.raises(CheckpointError, match=f"c.pth' holds {held}, expected a state dict"):
        read_named(save(contents, tmp_path / "c.pth"), "model")


ARRAY, TENSOR = np.ones(2), torch.ones(2)
CAFFE2 = {"model": {"conv_w": ARRAY}, "__author__": "Caffe2", "matching_heuristics": True}


@pytest.mark.parametrize(
    "contents, expected",
    [
        ({"model": {}, "epoch": 1}, {"model": {}, "epoch": 1}),
        ({"model": 1, "__author__": "me"}, {"model": 1, "__author__": "me"}),
        ({"conv_w": ARRAY, "conv_w_momentum": ARRAY}, CAFFE2),
        ({"blobs": {"conv_w": ARRAY, "conv_w_momentum": ARRAY}, "cfg": ""}, CAFFE2),
        *(
            (state, {"model": state, "matching_heuristics": heuristics})
            for state, heuristics in (
                *(({"conv.w": ARRAY}, True), ({"conv_w": TENSOR}, False), ({"blobs": {}}, True)),
                *(({"conv_w": ARRAY, "model": 1}, True), ({"w": ARRAY, "x": TENSOR}, False)),
            )
        ),
    ],
)
def test_contents_of_a_pkl_are_those_of_the_model_zoo(contents, expected):
    assert as_zoo(contents) == expected


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrappers_are_removed(prefix):
    model = torch.nn.BatchNorm2d(3)
    wrapped = OrderedDict((f"{prefix}{n}", tensor) for n, tensor in model.state_dict().items())
    wrapped._metadata = OrderedDict({prefix[:-1]: {"version": 2}})
    assert [*checkpoints.unwrap_state(wrapped, model)] == [*model.state_dict()]
    # What was given keeps its names.
    assert [*wrapped._metadata] == [prefix[:-1]]
    assert all(n.startswith(prefix) for n in wrapped)


def test_prefixes_are_removed_beside_entries_of_the_wrapper():
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.BatchNorm2d(4))
    names = checkpoints.unwrap_state(averaged.state_dict(), averaged.module).keys()
    assert names - {"n_averaged"} == averaged.module.state_dict().keys()


def test_a_models_own_child_called_module_keeps_its_prefix():
    model = torch.nn.ModuleDict({"module": torch.nn.BatchNorm2d(3)})
    assert [*checkpoints.unwrap_state(model.state_dict(), model)] == [*model.state_dict()]


@pytest.fixture
def model():
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def test_tensors_that_are_missing_or_of_another_shape_are_absent(model):
    state = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(4)}
    absent = ["0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert checkpoints.find_absent(state, model) == absent


def test_a_checkpoint_of_a_part_of_the_model_fits(model):
    checkpoints.check_fits("c.pth", model, ["0.bias"])


def test_a_checkpoint_without_any_tensor_of_the_model_is_of_another(model):
    with pytest.raises(CheckpointError, match=r"'c.pth' is of another model.* 6 tensors"):
        checkpoints.check_fits("c.pth", model, checkpoints.find_absent({}, model))
