"""What :mod:`ilm_plugins.frameworks` tells surgery about norms; surgery knows no framework.

``ilm_plugins.frameworks`` fills all tables but EXACT, and adds to IGNORED_TENSORS. A framework's
entry in :data:`FRAMEWORKS` is added when the framework is imported. Nothing here imports torch.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: FrozenBatchNorm2d, DetrFrozenBatchNorm2d and the like: BatchNorm computed from buffers, without a
#: momentum, and with an eps of 1e-5 if they have no such attribute.
FROZEN = r"(detectron2|mmdet|timm|torchvision|transformers)\..*FrozenBatchNorm(Act)?2d"
#: Pattern of a class's dotted name -> the name of the plain norm that the class computes exactly.
EXACT = {
    r"torch\.nn\.modules\.batchnorm\.(BatchNorm[123]d|SyncBatchNorm)": "BN",
    r"torch\.nn\.modules\.instancenorm\.InstanceNorm[123]d": "IN",
    r"torch\.nn\.modules\.normalization\.GroupNorm": "GN",
    FROZEN: "BN",
    r"mmengine\.model\.utils\._BatchNormXd": "BN",
    r"mmengine\.utils\.dl_utils\.parrots_wrapper\.SyncBatchNorm": "BN",
    r"timm\.layers\.norm_act\.(BatchNormAct2d|SyncBatchNormAct)": "BN",
    r"timm\.layers\.norm\.GroupNorm1?": "GN",
    r"timm\.layers\.norm_act\.GroupNorm1?Act": "GN",
    r"transformers\..*\.PoolFormerGroupNorm": "GN",
    r"(timm\.layers\.norm|torchvision\.models\.convnext)\.LayerNorm2d": "LN",
    r"timm\.layers\.norm\.LayerNorm(2dFp32|Exp2d)": "LN",
    r"timm\.layers\.norm_act\.LayerNormAct2d(Fp32)?": "LN",
    r"detectron2\.layers\.batch_norm\.LayerNorm": "LN",
    r"mmseg\.models\.utils\.san_layers\.LayerNorm2d": "LN",
    r"transformers\..*\.(VitDetLayerNorm|(Eomt|Videomt)LayerNorm2d)": "LN",
}
#: Patterns of the names of tensors in a norm that change nothing of its normalization, such as the
#: counters of thop.
IGNORED_TENSORS = {r"(.*\.|)total_(ops|params)"}
#: Keys of NORMS that are another package's norm in a framework.
TAKEN: set[str] = set()
#: Dotted names of heads that run each of their norms over all levels of a pyramid.
SHARED_HEADS: set[str] = set()
#: Each returns other names that a norm of a model may have in a state dict.
OTHER_NAMES: list[Callable[[str], Iterator[str]]] = []
#: (name, becomes a GroupNorm) -> remark for the report, or None.
NAME_REMARKS: list[Callable[[str, bool], str | None]] = []


class Framework:
    """What surgery asks about a framework's own modules; the defaults are of one without any."""

    def modules_after(self, norm: "nn.Module") -> list["nn.Module"]:
        """Return the modules that a norm runs after the normalization."""
        return []

    def join_activation(self, norm: Any, after: Iterable["nn.Module"]) -> "nn.Module | None":
        """Return a plain norm as a class that runs modules after it; None without such a class."""
        return None

    def as_replaced(self, norm: Any, path: str) -> "nn.Module | None":
        """Return a plain norm as the framework's class of this dotted name; None without one."""
        return None

    def finish(self, model: "nn.Module") -> None:
        """Adapt a model whose norms were replaced."""


#: Name of a framework -> its modules.
FRAMEWORKS: dict[str, Framework] = {}


def is_ignored_tensor(name: str) -> bool:
    """Return whether a norm's tensor, by its name in the norm, is not of the normalization."""
    return bool(re.fullmatch("|".join(IGNORED_TENSORS), name))


def path_of(cls: type | FunctionType) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def with_tensors(new: Any, norm: Any) -> Any:
    """Give a norm the tensors and the mode of another one; return it."""
    new._parameters, new._buffers = norm._parameters, norm._buffers
    new.training = norm.training
    return new
