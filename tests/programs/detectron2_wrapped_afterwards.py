"""Another package wraps detectron2's get_norm after ilm_plugins has changed it."""

import warnings

import ilm_plugins
import detectron2.modeling
from detectron2.layers import batch_norm
from ilm_plugins.frameworks import install_import_hooks

ours = batch_norm.get_norm


def theirs(norm, channels):
    return ("theirs", channels) if norm == "Own" else ours(norm, channels)


batch_norm.get_norm = theirs

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    install_import_hooks()

assert not [w for w in caught if "ilm_plugins" in str(w.message)]
found = batch_norm.get_norm
assert found("Own", 64) == ("theirs", 64)
assert found("", 64) is None
assert type(found("EN", 64)) is ilm_plugins.ExemplarNorm
assert type(found("SN", 64)) is ilm_plugins.SwitchNorm
assert type(found("FrozenBN", 64)) is batch_norm.FrozenBatchNorm2d
