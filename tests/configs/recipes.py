"""What the papers say of each shipped config, as ``recipes/FRAMEWORK.yaml`` quotes them.

An entry names files below ``configs/FRAMEWORK`` by patterns, and values with their sources; later
entries win.
"""

from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def configs(framework: str) -> list[str]:
    """The configs that a framework's users run, below configs/FRAMEWORK; base files are not."""
    folder = ROOT / "configs" / framework
    found = (p.relative_to(folder) for p in (*folder.rglob("*.py"), *folder.rglob("*.yaml")))
    return sorted(str(p) for p in found if "_base_" not in p.parts and p.name[:4] != "Base")


@cache
def entries(framework: str) -> list[dict]:
    path = Path(__file__).parent / "recipes" / f"{framework}.yaml"
    return yaml.load(path.read_text(), yaml.CSafeLoader)


def recipe(framework: str, config: str) -> dict:
    """name -> the value that the paper gives for a config."""
    values = {}
    for entry in entries(framework):
        if any(fnmatch(config, pattern) for pattern in entry["files"]):
            for name, quoted in entry.items():
                if name != "files":
                    assert quoted["says"], (framework, name, "has no source")
                    values[name] = quoted["is"]
    return values
