"""Which norms of a model are converted, which are left, and why."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from helpers.close import EQUAL, assert_close
from helpers.swapped_norms import BOTH, GN4, double, randomized, small
from ilm_plugins import NORMS, ILMGroupNorm, SwitchNorm, surgery
from ilm_plugins.layers import OptionError


def test_norms_are_chosen_by_name():
    model = nn.ModuleDict({"stem": nn.ModuleList([nn.ReLU(), GN4(32)]), "tail": GN4(32)})
    for operate, kept in ((surgery.convert, nn.GroupNorm), (surgery.revert, ILMGroupNorm)):
        to = ["ILMGN"] * (kept is nn.GroupNorm)
        model, report = operate(model, *to, match=["stem.?", "neck.*"])
        assert [*report.converted] == ["stem.1"]
        assert type(model["tail"]) is kept
        model, _ = surgery.convert(model, "ILMGN")


def test_the_report_notes_patterns_that_fit_no_norm():
    _, report = surgery.convert(small(), "ILMGN", match=["stem.*", "haed.*"])
    assert report.converted
    assert report.notes == {"pattern of match that fits no norm": ["haed.*"]}


class Renamed(nn.GroupNorm):
    pass


def test_types_are_taken_exactly():
    model = nn.Sequential(nn.GroupNorm(4, 32), Renamed(4, 32))
    _, report = surgery.convert(model, "ILMGN", types=[Renamed])
    assert report.converted.keys() == {"1"}
    assert report.left == {"0": "GroupNorm, which is not among types"}


PARAMETRIZED = nn.utils.parametrize.register_parametrization(GN4(32), "weight", nn.Identity())
prune.random_unstructured((PRUNED := ILMGroupNorm(32)).encode, "weight", 1)
LEFT = [
    (Renamed(4, 32), "ILMGN", "Renamed derives from GroupNorm and may compute"),
    (nn.BatchNorm2d(32), "ILMGN", "replaces GroupNorm; give --replacing BN, or replacing='BN' in"),
    (nn.LayerNorm(32), "ILMLN", "LayerNorm, but ILMLN replaces GroupNorm"),
    (nn.InstanceNorm2d(32, track_running_stats=True), "ILMIN", "with track_running_stats"),
    (nn.BatchNorm2d(32, track_running_stats=False), "EN", "without running"),
    (type("FrozenBatchNorm2d", (nn.Module,), {})(), "EN", "Norm2d, but EN replaces BatchNorm"),
    (nn.GroupNorm(4, 32), "ILMLN", "num_groups=4, where the layer has 1"),
    (ILMGroupNorm(32), "ILMGN", "is ILMGroupNorm, already a layer of this package"),
    (PARAMETRIZED, "ILMGN", "remove_parametrizations"),
    (prune.random_unstructured(GN4(32), "weight", 1), "ILMGN", "prune.remove"),
    (PRUNED, "ILMGN", "prune.remove"),
    (nn.BatchNorm2d(32, momentum=None), "EN", "momentum=None"),
]


@pytest.mark.parametrize("module, to, words", LEFT)
def test_what_cannot_be_swapped_is_left_with_the_reason(module, to, words):
    same, report = surgery.convert(module, to)
    assert same is module
    assert words in report.left[""]


def test_an_option_that_does_not_divide_the_width_leaves_a_norm_with_the_reason():
    _, report = surgery.convert(nn.GroupNorm(4, 24), "ILMGN", key_group_size=16)
    assert "key_group_size=16 does not divide num_channels=24" in report.left[""]


def test_options_reach_the_layers():
    model, _ = surgery.convert(small(), "ILMGN", key_group_size=8, hidden=3)
    assert model.head[1].num_key_groups == 4
    assert model.head[1].hidden == 3
    _, report = surgery.convert(small(), "ILMGN", activations=("relu", "sigmoid"))
    assert "init='identity' does not exist for activations" in report.left["stem.1"]
    _, report = surgery.convert(nn.BatchNorm2d(32), "EN", normalizers=("IN", "LN"))
    assert report.left[""].startswith("the layer cannot compute BN")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"to": "XN"}, "'XN' is no norm to convert to; give one of ILMGN, "),
        ({"key_group_sise": 8}, "unknown option 'key_group_sise'"),
        ({"num_groups": 8}, "num_groups comes from each norm"),
        ({"dtype": None, "device": "cpu"}, "device, dtype comes from each norm"),
        ({"replacing": "IN"}, "replacing='IN' is unknown; set it to one of 'GN', 'BN'"),
        ({"init": "default"}, "init='default'"),
        ({"match": "backbone.*"}, "fits none of the 2 norms, such as 'stem.1'"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(OptionError, match=words):
        surgery.convert(small(), **{"to": "ILMGN", **options})


def test_the_report_lists_names_by_what_became_of_them():
    model = nn.ModuleDict({"a": GN4(32), "b": GN4(32), "c": nn.BatchNorm2d(8)})
    *lines, skipped, name = surgery.convert(model, "ILMGN")[1].names().splitlines()
    assert lines == ["converted, GroupNorm -> ILMGroupNorm (2):", "    a", "    b"]
    assert skipped.startswith("skipped, BatchNorm2d, but")
    assert skipped.endswith(" (1):")
    assert name == "    c"


ONE_OF_EACH = surgery.Report({"": "A -> B"}, missing=["d.weight"], notes={"mind": []})


def test_the_report_lists_remarks_on_all_norms_without_names():
    text = "converted, A -> B (1):\n    (root)\nmissing (1):\n    d.weight\nnote, mind"
    assert ONE_OF_EACH.names() == text


def test_a_printed_report_has_a_line_for_each_kind():
    assert str(ONE_OF_EACH) == "converted, A -> B (1): (root)\nmissing (1): d.weight\nnote, mind"


def test_a_printed_report_has_the_first_names():
    report = surgery.Report({name: "A -> B" for name in "abcd"})
    assert str(report) == repr(report) == "converted, A -> B (4): a, b, c, ..."


def test_a_module_under_two_names_stays_one_in_both_directions():
    shared = nn.GroupNorm(4, 16)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(nn.ReLU(), shared)})
    model, report = surgery.convert(model, "ILMGN", match="b.*")
    assert report.converted.keys() == {"a.0", "b.1"}
    assert model["a"][0] is model["b"][1]
    assert type(model["a"][0]) is ILMGroupNorm
    model, report = surgery.revert(model, match="b.*")
    assert report.converted.keys() == {"a.0", "b.1"}
    assert model["a"][0] is model["b"][1]
    assert type(model["a"][0]) is nn.GroupNorm


def test_a_state_dict_fits_a_layer_under_each_of_its_names():
    norm, layer = nn.GroupNorm(4, 16), ILMGroupNorm(16, num_groups=4)
    state = nn.Sequential(norm, norm).state_dict()
    _, report = surgery.fit_state(state, nn.Sequential(layer, layer))
    assert report.converted.keys() == {"0", "1"}
    assert not report.missing


@pytest.mark.parametrize("make, to", [(GN4, "ILMGN"), (nn.BatchNorm2d, "EN"), (SwitchNorm, "SSN")])
def test_norms_with_a_common_parameter_are_left(make, to):
    a, b, c = make(32), make(32), make(32)
    b.weight = a.weight
    model, report = surgery.convert(nn.Sequential(a, b, c), to)
    assert report.left == dict.fromkeys("01", "it shares its weight with another module")
    assert model[0] is a
    assert model[1] is b
    assert report.converted.keys() == {"2"}


@pytest.mark.parametrize("module", ["torchvision.ops", "transformers.models", "detectron2.layers"])
def test_frozen_batchnorm_becomes_a_frozen_en(module):
    frozen = pytest.importorskip("torchvision", reason="needs torchvision").ops.FrozenBatchNorm2d
    make = type("DetrFrozenBatchNorm2d", (frozen,), {"__module__": module})
    model, x = small(make), double(2, 3, 9, 9)
    expected = model(x)
    model, report = surgery.convert(model, "EN", reduction=16)
    assert [*report.converted] == BOTH
    assert not report.left
    for _ in range(2):  # the first call must not move the statistics
        assert model.training
        assert_close(model(x), expected, EQUAL)


@pytest.mark.parametrize("to, replacing", [("EN", None), ("SN", None), ("ILMGN", "BN")])
def test_the_report_tells_of_layers_whose_parameters_are_fixed_as_the_norms_were(to, replacing):
    ops = pytest.importorskip("torchvision", reason="needs torchvision: make install-test").ops
    fixed = nn.BatchNorm2d(32).requires_grad_(False)
    norms = nn.Sequential(ops.FrozenBatchNorm2d(32), nn.BatchNorm2d(32), fixed)
    _, report = surgery.convert(norms, to, replacing=replacing)
    told = [names for words, names in report.notes.items() if words.startswith("parameters fixed")]
    assert told == [["0", "2"]]


@pytest.fixture
def frozen_of_eps_0():
    """A norm of torchvision's detectors, with variances far above and far below 1e-5."""
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision: make install-test")
    norm = randomized(torchvision.ops.FrozenBatchNorm2d(32, eps=0.0)).double()
    norm.running_var[:4] = torch.tensor([1e-3, 1e-5, 1e-7, 1e-12])
    return norm


def test_batchnorm_of_eps_0_becomes_en_with_the_same_outputs(frozen_of_eps_0):
    x = double(2, 32, 5, 5) * frozen_of_eps_0.running_var.sqrt().view(32, 1, 1)
    expected = frozen_of_eps_0(x)
    layer, report = surgery.convert(frozen_of_eps_0, "EN")
    assert "eps=0 becomes 1e-05" in str(report)
    assert_close(layer(x), expected, EQUAL)
    assert_close(surgery.revert(layer)[0].eval()(x), expected, EQUAL)


def test_batchnorm_of_eps_0_whose_outputs_are_infinite_is_left(frozen_of_eps_0):
    frozen_of_eps_0.running_var[0] = 0
    _, report = surgery.convert(frozen_of_eps_0, "EN")
    assert "its running variance has zeros" in report.left[""]


def test_a_norm_of_each_image_is_left_with_advice_if_its_eps_is_0():
    _, report = surgery.convert(nn.GroupNorm(4, 32, eps=0.0), "ILMGN")
    assert "set the norm's eps to 1e-05" in report.left[""]


@pytest.mark.parametrize(
    "path",
    [
        "mmengine.model.utils._BatchNormXd",
        "timm.layers.norm_act.SyncBatchNormAct",
        "mmengine.utils.dl_utils.parrots_wrapper.SyncBatchNorm",
    ],
)
def test_batchnorms_of_other_packages_are_known_by_name(path):
    module, name = path.rsplit(".", 1)
    norm = type(name, (nn.modules.batchnorm._BatchNorm,), {"__module__": module})
    assert surgery.convert(nn.Sequential(norm(32)), "EN")[1].converted.keys() == {"0"}


@pytest.mark.parametrize("name", ["BatchNormAct2d", "FrozenBatchNormAct2d", "GroupNormAct"])
def test_timms_norms_keep_their_activation(name):
    make = getattr(pytest.importorskip("timm.layers.norm_act", reason="needs timm"), name)
    to, options = ("ILMGN", {"num_groups": 8}) if name == "GroupNormAct" else ("EN", {})
    joined = make(32, drop_layer=nn.Dropout, **options)
    model = randomized(nn.Sequential(joined, make(32, apply_act=False, **options)))
    model, x = model.double().eval(), double(2, 32, 5, 5)
    expected = model(x)
    model, report = surgery.convert(model, to)
    assert report.converted.keys() == {"0", "1"}
    assert not report.left
    assert [type(m) for m in (*model[0], model[1])] == [NORMS[to], nn.Dropout, nn.ReLU, NORMS[to]]
    assert_close(model(x), expected, EQUAL)


def in_list(model):
    model.order = [model.norm]


def as_attribute(model):
    vars(model)["alias"] = model.norm


def in_default(model):
    model.normalize = lambda x, norm=model.norm: norm(x)


HOLDING = [in_list, as_attribute, in_default]


@pytest.mark.parametrize("hold", HOLDING)
@pytest.mark.parametrize("swap", [partial(surgery.convert, to="EN"), surgery.revert])
def test_a_norm_that_another_attribute_holds_stays(hold, swap):
    """The forward pass may use the attribute, which would still be the old norm."""
    is_reverted = swap is surgery.revert
    norm = surgery.convert(nn.BatchNorm2d(32), "EN")[0] if is_reverted else nn.BatchNorm2d(32)
    model = nn.ModuleDict({"norm": norm, "other": copy.deepcopy(norm)})
    model.cycle = [1]
    model.cycle.append(model.cycle)
    hold(model)
    model, report = swap(model)
    assert model["norm"] is norm
    assert "ModuleDict." in report.left["norm"]
    assert "also refers to the norm: remove this reference, then" in report.left["norm"]
    assert report.converted.keys() == {"other"}


def test_a_norm_that_is_compiled_under_one_of_its_names_stays():
    model = nn.ModuleDict({"norm": nn.BatchNorm2d(32)})
    model["fast"] = torch.compile(model["norm"], backend="eager")
    model, report = surgery.convert(model, "SN")
    assert "convert the model before you compile it" in report.left["norm"]
    assert type(model["norm"]) is nn.BatchNorm2d


def test_a_tensor_that_someone_has_added_to_a_norm_is_named():
    (norm := nn.BatchNorm2d(32)).register_buffer("mask", torch.ones(32))
    _, report = surgery.convert(nn.Sequential(norm, nn.BatchNorm2d(32)), "EN")
    (names,) = (names for note, names in report.notes.items() if note.startswith("mask inside"))
    assert names == ["0"]


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_a_parametrization_of_a_weight_is_not_taken_for_a_norm(name):
    convolution = getattr(nn.utils.parametrizations, name)(nn.Conv2d(3, 8, 1))
    assert str(surgery.convert(convolution, "EN")[1]) == "no norms"


def test_what_is_named_like_a_norm_is_listed():
    rms, pre = (type(name, (nn.Sequential,), {}) for name in ("RMSNorm", "PreNorm"))
    model = nn.Sequential(rms(), pre(nn.Sequential(rms(), nn.BatchNorm2d(32))))
    _, report = surgery.convert(model, "EN")
    assert report.left.keys() == {"0", "1.0.0"}
    assert "RMSNorm" in report.left["0"]
    assert report.converted.keys() == {"1.0.1"}


@pytest.mark.parametrize("swap", [lambda m: surgery.convert(m, "ILMGN"), surgery.revert])
@pytest.mark.parametrize(
    "norm, reason", [(nn.BatchNorm2d(32), "BatchNorm"), (nn.ReLU(), "no norms")]
)
def test_a_conversion_of_nothing_warns(swap, norm, reason):
    reason = "no norms" if swap is surgery.revert else reason
    with pytest.warns(UserWarning, match=f"nothing was converted: .*{reason}"):
        swap(nn.Sequential(norm))


@pytest.mark.parametrize(
    "swap", [lambda state: surgery.convert_state(state, "ILMGN"), surgery.revert_state]
)
def test_a_conversion_of_nothing_in_a_state_dict_warns(swap):
    with pytest.warns(UserWarning, match="nothing was converted: "):
        swap(nn.BatchNorm2d(32).state_dict())
