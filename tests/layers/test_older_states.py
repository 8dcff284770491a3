"""State dicts of older versions load; their running variances have BatchNorm's name."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from cases import MIXTURES, randomized
from close import assert_equal
from ilm_plugins import NORMS, surgery
from ilm_plugins.checkpoints import find_absent

C = 64


def older(state):
    """The same state dict, with the name that older versions gave to the running variance."""
    return {name.replace("running_variance", "running_var"): t for name, t in state.items()}


def make(key):
    return nn.Sequential(nn.Conv2d(3, C, 1), randomized(lambda: NORMS[key](C))).double()


@pytest.fixture(params=MIXTURES)
def key(request):
    return request.param


@pytest.mark.parametrize(
    "wrap",
    [
        nn.Sequential,
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
    ],
    ids=["Sequential", "DataParallel", "AveragedModel", "compile"],
)
def test_they_load_strictly_through_wrappers(key, wrap):
    trained = wrap(make(key))
    model = wrap(nn.Sequential(nn.Conv2d(3, C, 1), NORMS[key](C)).double())
    model.load_state_dict(older(trained.state_dict()))
    assert_equal(model.state_dict(), trained.state_dict())


def test_the_given_state_dict_is_not_changed(key):
    state = older(make(key).state_dict())
    names = list(state)
    make(key).load_state_dict(state)
    assert list(state) == names


def test_an_older_entry_replaces_the_models_own_in_a_merged_state_dict(key):
    trained, model = make(key), nn.Sequential(nn.Conv2d(3, C, 1), NORMS[key](C)).double()
    model.load_state_dict({**model.state_dict(), **older(trained.state_dict())})
    assert_equal(model.state_dict(), trained.state_dict())


def test_a_distributed_checkpoint_is_loaded_under_its_names(key, tmp_path):
    trained, model = make(key), nn.Sequential(nn.Conv2d(3, C, 1), NORMS[key](C)).double()
    dcp.save(older(trained.state_dict()), checkpoint_id=tmp_path)
    dcp.load(older(model.state_dict()), checkpoint_id=tmp_path)
    assert_equal(model.state_dict(), trained.state_dict())


def test_no_tensor_is_called_absent(key):
    model = make(key)
    assert not find_absent(older(model.state_dict()), model)


def test_fit_state_renames_the_variance(key):
    trained, model = make(key), nn.Sequential(nn.Conv2d(3, C, 1), NORMS[key](C)).double()
    state, report = surgery.fit_state(older(trained.state_dict()), model)
    assert report.converted == {"1": "renamed"}
    assert not report.left
    assert_equal(dict(state), dict(trained.state_dict()))


@pytest.mark.parametrize(
    "convert",
    [
        lambda state: surgery.convert_state(state, "SSN")[0],
        lambda state: surgery.fit_state(state, nn.Sequential(nn.Identity(), NORMS["SSN"](C)))[0],
    ],
    ids=["convert_state", "fit_state"],
)
def test_sn_becomes_ssn_with_the_same_tensors(convert):
    state = make("SN").state_dict()
    expected, found = convert(copy.copy(state)), convert(older(state))
    assert "1.running_variance" in found
    assert_equal(found, dict(expected))


def test_en_leads_back_to_batch_norm_under_its_name():
    plain = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C)).double()
    plain[1].running_var.uniform_(1, 2)
    state, _ = surgery.convert_state(plain.state_dict(), "EN")
    back, _ = surgery.revert_state(older(state))
    assert_equal(dict(back), dict(plain.state_dict()))
