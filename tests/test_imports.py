"""Which part of the package imports which: only parts of lower levels."""

import re

#: The parts of ilm_plugins by level, the lowest first; at last the root, which knows all.
LEVELS = "errors version", "configs ops", "layers", "checkpoints data", "surgery", "analysis"
LEVELS += "frameworks", "pix2pix reproduction", "cli", "__init__ __main__"


def test_parts_import_only_lower_levels(root):
    heights = {part: height for height, parts in enumerate(LEVELS) for part in parts.split()}
    for path in (root / "ilm_plugins").rglob("*.py"):
        *folders, file = path.relative_to(root / "ilm_plugins").with_suffix("").parts
        here = (*folders, file)[0]
        for dots, name, names in re.findall(
            r"^ *from (\.+)([\w.]*) import (.*)", path.read_text(), re.M
        ):
            above = folders[: len(folders) + 1 - len(dots)]
            parts = [*above, name][:1] if above or name else re.findall(r"\w+", names)
            for there in (part.split(".")[0] for part in parts):
                there = there if there in heights else "__init__"
                assert there == here or heights[there] < heights[here], f"{path} imports {there}"
