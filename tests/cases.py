"""Every layer, with every switch of the papers' tables, beside its transcription."""

import os
from functools import partial

import pytest
import torch

import transcription
from ilm_plugins import (
    AssocNorm,
    ExemplarNorm,
    ILMGroupNorm,
    ILMInstanceNorm,
    ILMLayerNorm,
    SwitchNorm,
)
from ilm_plugins.ops import cpu

#: The backend of the compiled C kernels; where they are not built, what takes their place.
KERNELS = "cpu" if cpu.is_built() else "auto"
needs_kernels = pytest.mark.skipif(not cpu.is_built(), reason="needs the compiled C kernels")

CHANNELS = 12
#: Of all random numbers here; pytest's --seed.
SEED = 1000 * int(os.environ.get("ILM_PLUGINS_TEST_SEED", "0"))

#: Half units in the last place of its largest term by which a sum may differ in another order:
#: about the root of the number of terms, of which the longest has 32,782, and 5.7 times that.
ROUNDINGS = 1024


def by_ilm(layer, x):
    return transcription.ilm_norm(
        x,
        layer.weight,
        layer.bias,
        layer.encode.weight,
        layer.decode_mean.weight,
        layer.decode_var.weight,
        num_groups=layer.num_groups,
        key_group_size=layer.num_channels // layer.num_key_groups,
        eps=layer.eps,
        activations=layer.activations,
        omega_offset=layer.omega_offset,
    )


def by_assoc(layer, x):
    return transcription.assoc_norm(
        x,
        layer.weight,
        layer.bias,
        layer.encode.weight,
        layer.decode_mean.weight,
        layer.decode_var.weight,
        num_groups=layer.num_groups,
        num_key_groups=layer.num_key_groups,
        eps=layer.eps,
        combine=layer.combine,
        omega_offset=layer.omega_offset,
    )


def _mixture(layer):
    running = {}
    if "BN" in layer.normalizers and not layer.training:
        running = {"running_mean": layer.running_mean, "running_var": layer.running_var}
    return {
        "normalizers": layer.normalizers,
        "num_groups": layer.num_groups,
        "eps": layer.eps,
        **running,
    }


def by_exemplar(layer, x):
    y, _ = exemplar_with_ratios(layer, x)
    return y


def exemplar_with_ratios(layer, x):
    return transcription.exemplar_norm(
        x,
        layer.weight,
        layer.bias,
        layer.reduce.weight if layer.ratio_net == "conv" else None,
        layer.expand.weight,
        layer.expand.bias,
        layer.ratio.weight,
        layer.ratio.bias,
        reduction=layer.reduction,
        activation=layer.activation,
        ratio_net=layer.ratio_net.replace("_", ""),
        **_mixture(layer),
    )


def by_switch(layer, x):
    return transcription.switch_norm(
        x, layer.weight, layer.bias, layer.mean_weight, layer.var_weight, **_mixture(layer)
    )


ilm = partial(ILMGroupNorm, CHANNELS, 4, key_group_size=3, hidden=3)
assoc = partial(AssocNorm, CHANNELS, 4, num_key_groups=6, hidden=3)
exemplar = partial(ExemplarNorm, CHANNELS, reduction=4, expansion=3)
switch = partial(SwitchNorm, CHANNELS)

#: name -> (constructor of a layer of 12 channels, the same layer by its paper's equations)
CASES = {
    "ILMGN": (ilm, by_ilm),
    "ILMGN-identity": (partial(ilm, init="identity"), by_ilm),
    "ILMGN-key-groups-of-1": (partial(ilm, key_group_size=1), by_ilm),
    "ILMGN-key-groups-across-groups": (
        partial(ILMGroupNorm, CHANNELS, 4, key_group_size=2),
        by_ilm,
    ),
    "ILMGN-key-groups-coarser": (partial(ILMGroupNorm, CHANNELS, 6, key_group_size=6), by_ilm),
    "ILMGN-eps": (partial(ilm, eps=0.1), by_ilm),
    "ILMIN": (partial(ILMInstanceNorm, CHANNELS, key_group_size=3), by_ilm),
    "ILMLN": (partial(ILMLayerNorm, CHANNELS, key_group_size=3), by_ilm),
    "AssocNorm": (assoc, by_assoc),
    "AssocNorm-identity": (partial(assoc, init="identity"), by_assoc),
    "AssocNorm-key-groups-of-1": (partial(assoc, num_key_groups=CHANNELS), by_assoc),
    "EN": (exemplar, by_exemplar),
    "EN-GN": (partial(exemplar, normalizers=("GN", "BN", "LN", "IN"), num_groups=3), by_exemplar),
    "EN-without-BN": (partial(exemplar, normalizers=("IN", "LN")), by_exemplar),
    "EN-mlp": (partial(exemplar, ratio_net="mlp"), by_exemplar),
    "EN-without-conv": (partial(exemplar, ratio_net="no_conv"), by_exemplar),
    "EN-relu": (partial(exemplar, activation="relu"), by_exemplar),
    "EN-single-affine": (partial(exemplar, shared_affine=True), by_exemplar),
    "SN": (switch, by_switch),
    "SN-GN": (partial(switch, normalizers=("LN", "GN"), num_groups=6), by_switch),
}
UNBOUNDED = "relu", "leaky_relu", "relu6", "identity"
PAIRS = (
    *(("sigmoid", "sigmoid"), ("tanh", "tanh"), ("sigmoid", "tanh")),  # with the default, Table 7
    *((mean, "sigmoid") for mean in UNBOUNDED),
    *(("tanh", var) for var in UNBOUNDED),
)
for mean, var in PAIRS:
    CASES[f"ILMGN-{mean}-{var}"] = (partial(ilm, activations=(mean, var)), by_ilm)
for combine in ("a(WE)", "a(WE+B)", "a(WE)*B"):
    CASES[f"AssocNorm-{combine}"] = (partial(assoc, combine=combine), by_assoc)

#: Cases whose evaluation is another computation than their training: they have running statistics.
WITH_RUNNING = [name for name in CASES if name[:2] in ("EN", "SN") and name != "EN-without-BN"]
WITH_RUNNING.remove("SN-GN")

#: The six layers alone.
MAIN = {name: CASES[name][0] for name in ("ILMGN", "ILMIN", "ILMLN", "AssocNorm", "EN", "SN")}


def modes(names):
    """Parametrize by name and training; evaluation only of layers in which it differs."""
    pairs = [(name, mode) for name in names for mode in (True, False)]
    pairs = [(name, mode) for name, mode in pairs if mode or name in WITH_RUNNING]
    ids = [f"{name}-{'train' if mode else 'eval'}" for name, mode in pairs]
    return pytest.mark.parametrize("name, training", pairs, ids=ids)


def randomized(make, dtype=torch.float64, seed=0):
    """A layer whose every parameter and running statistic is random, none at its initial value."""
    generator = torch.Generator().manual_seed(SEED + seed)
    layer = make().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for name, buffer in layer.named_buffers():
            if name == "running_mean":
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif name == "running_var":
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return layer


def inputs(*shape, dtype=torch.float64, seed=1):
    """Random input whose channels differ in mean and in deviation."""
    generator = torch.Generator().manual_seed(SEED + seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    per_channel = (1, shape[1]) + (1,) * (len(shape) - 2)
    scale = torch.rand(per_channel, generator=generator, dtype=torch.float64) + 0.5
    shift = torch.randn(per_channel, generator=generator, dtype=torch.float64)
    return (x * scale + shift).to(dtype)
