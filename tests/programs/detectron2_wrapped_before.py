"""Another package wraps detectron2's get_norm before ilm_plugins is imported, and knows EN."""

import warnings

import detectron2.modeling
from detectron2.layers import batch_norm

original = batch_norm.get_norm


def theirs(norm, channels):
    if norm == "SN":
        raise ValueError("not the KeyError of an unknown key")
    return ("theirs", channels) if norm in ("Own", "EN") else original(norm, channels)


batch_norm.get_norm = theirs

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import ilm_plugins

(message,) = [str(w.message) for w in caught if "ilm_plugins" in str(w.message)]
assert "knows EN already" in message, message
found = batch_norm.get_norm
assert found("EN", 64) == ("theirs", 64)
assert found("Own", 64) == ("theirs", 64)
assert found("", 64) is None
assert type(found("SN", 64)) is ilm_plugins.SwitchNorm
assert type(found("FrozenBN", 64)) is batch_norm.FrozenBatchNorm2d
