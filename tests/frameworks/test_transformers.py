"""Models of transformers hold the layers: initialized, saved and loaded."""

from functools import partial

import pytest
import torch
from torch import nn

from contract import assert_initialized
from helpers.close import assert_close, assert_equal
from ilm_plugins import NORMS

transformers = pytest.importorskip("transformers", reason="needs transformers")
if not transformers.is_torch_available():
    pytest.skip("this transformers needs a newer torch", allow_module_level=True)


class Config(transformers.PretrainedConfig):
    model_type = "one_norm"

    def __init__(self, norm="GN", **options):
        super().__init__(**options)
        self.norm = norm


class Model(transformers.PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        options = {"init": "identity"} if config.norm in WITH_IDENTITY else {}
        norm = NORMS.get(config.norm, partial(nn.GroupNorm, 32))
        self.norm = norm(512, **options)
        self.post_init()


WITH_IDENTITY = "ILMGN", "AssocNorm", "AN"


@pytest.fixture(autouse=True)
def new_memory_holds_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("norm", NORMS)
def test_a_new_model_is_initialized(norm):
    assert_initialized(Model(Config(norm)).norm)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("norm", NORMS)
def test_loaded_tensors_are_kept_and_missing_ones_initialized(norm, start, tmp_path):
    model = Model(Config(norm))
    state = {key: torch.full_like(value, 7) for key, value in model.state_dict().items()}
    saved = dict([*state.items()][start::2])
    model.save_pretrained(tmp_path, state_dict=dict(saved))  # which it empties
    loaded = Model.from_pretrained(tmp_path)
    loaded.init_weights()  # as a model around it does
    assert_equal({key: loaded.state_dict()[key] for key in saved}, saved)
    missing = [key.removeprefix("norm.") for key in state if key not in saved]
    assert_initialized(loaded.norm, missing)


@pytest.mark.parametrize("norm", WITH_IDENTITY)
def test_a_checkpoint_of_group_norm_gives_its_outputs(norm, tmp_path):
    plain, x = Model(Config("GN")).norm, torch.randn(2, 512, 4, 4)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    state = {f"norm.{key}": value for key, value in plain.state_dict().items()}
    Model(Config("GN")).save_pretrained(tmp_path, state_dict=state)
    loaded = Model.from_pretrained(tmp_path, config=Config(norm))
    assert_close(loaded.norm(x), plain(x), 64)
