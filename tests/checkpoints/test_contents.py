"""Checks of state dicts against models and optimizers."""

import pytest
import torch

from ilm_plugins.checkpoints import (
    CheckpointError,
    check_fits,
    check_resumes,
    check_state,
    find_absent,
)


def test_a_checkpoint_of_another_model_is_told_from_one_of_a_part():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    names = list(model.state_dict())
    check_fits("c.pth", model, names[:1], names[1:])
    with pytest.raises(
        CheckpointError, match=r"'c.pth' is of another model.* 4 tensors.*fc.weight"
    ):
        check_fits("c.pth", model, ["fc.weight"], names)
    check_fits("c.pth", torch.nn.ReLU(), [], [])


def test_counts_of_batches_may_be_absent():
    model = torch.nn.BatchNorm2d(3)
    state = {name: t for name, t in model.state_dict().items() if name != "num_batches_tracked"}
    assert find_absent(state, model) == []
    state["running_var"] = torch.ones(4)
    del state["weight"]
    assert find_absent(state, model) == ["weight", "running_var"]
    with pytest.raises(CheckpointError, match="is of another model"):
        check_fits("c.pth", model, [], find_absent({}, model))


def test_a_state_dict_is_where_it_is_looked_for():
    state = {"weight": torch.ones(1), "step": 3}
    for contents in (state, {"model": state}, {"state_dict": state, "meta": {}}):
        check_state(contents, "c.pth")
    check_state({"model": 3, "blobs": {"a": torch.ones(1).numpy()}}, "c.pkl", ["blobs"])
    for contents in ([1], 3, None, {}, {"model": 3, "a": torch.ones(1)}, {"model": {0: state}}):
        with pytest.raises(CheckpointError, match=r"'c.pth' holds no state dict, neither under"):
            check_state(contents, "c.pth")


def test_what_a_training_can_go_on_from():
    def built(kind, width=3):
        model = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))
        optimizer = kind(model.parameters(), lr=0.1)
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()
        return model, optimizer

    def check(kind, theirs=None, width=3):
        model, optimizer = built(kind, width)
        pairs = [(theirs or state_of_optimizer, optimizer)]
        check_resumes("c.pth", state, model, pairs, "load_from")

    model, optimizer = built(torch.optim.Adam)
    # As DistributedDataParallel has it, and without what some frameworks do without.
    state = {f"module.{k}": v for k, v in model.state_dict().items() if "batches" not in k}
    state_of_optimizer = optimizer.state_dict()
    check(torch.optim.Adam)
    # What torch has added to it since is no other optimizer.
    older = {k: v for k, v in state_of_optimizer["param_groups"][0].items() if k != "foreach"}
    check(torch.optim.Adam, {**state_of_optimizer, "param_groups": [older]})
    with pytest.raises(CheckpointError, match="state is another's: it has no dampening, momentum"):
        check(torch.optim.SGD)
    with pytest.raises(CheckpointError, match=r"0.weight is \(3, 2\) in it, not \(5, 2\), and 5 o"):
        check(torch.optim.Adam, width=5)
    moments = state_of_optimizer["state"][0]
    moments["exp_avg"] = moments["exp_avg"][:1]
    with pytest.raises(CheckpointError, match="its optimizer's exp_avg is of other parameters"):
        check(torch.optim.Adam)
    del state["module.1.weight"]
    with pytest.raises(CheckpointError, match=r"\(1.weight is missing in it\).* as load_from"):
        check(torch.optim.Adam)
