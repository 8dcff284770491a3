"""OpenMMLab: mmcv and MMEngine, and mmdet, mmseg and mmpretrain, which are built on them.

Registered in their registries: norms (`norms`), a hook that sets SSN's radius (`radius`). This
package's configs are bases (`shipped_configs`). Here are the names of norms, some of which tell the
norm's type.
"""

import re
from collections.abc import Iterator

#: Remark on norms whose name would be another in OpenMMLab.
NAME_STAYS = (
    "the name stays, where a model of OpenMMLab has gn1 or bn1 by the norm's type: for such a "
    "model, give its config to the command convert, or the model to surgery.fit_state"
)
#: A name by type; "agn" is the name of AN in its authors' code.
_BY_TYPE = re.compile(r"(.*\.|)(bn|gn|in|agn)(\d*)")


def names_by_type(name: str) -> Iterator[str]:
    """Yield the names that a norm has in models with norms of other types."""
    if by_type := _BY_TYPE.fullmatch(name):
        yield from (f"{by_type[1]}{kind}{by_type[3]}" for kind in ("bn", "gn", "in", "agn"))


def remark_on_name(name: str, is_group_norm: bool) -> str | None:
    """Return :data:`NAME_STAYS` if the name is of another type than a new norm."""
    by_type = _BY_TYPE.fullmatch(name)
    differs = by_type is not None and by_type[2] != ("gn" if is_group_norm else "bn")
    return NAME_STAYS if differs else None
