"""What the papers and the pilots of the study say of a config, with the source: ``recipes``."""

from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import yaml


@cache
def entries(framework: str) -> list[dict]:
    path = Path(__file__).parent / "recipes" / f"{framework}.yaml"
    return yaml.load(path.read_text(), yaml.CSafeLoader)


def recipe(framework: str, config: str) -> dict:
    """The values by name that a source gives for a config, by the last entry that has each."""
    values = {}
    for entry in entries(framework):
        if any(fnmatch(config, pattern) for pattern in entry["files"]):
            for name, quoted in entry.items():
                if name != "files":
                    assert quoted["says"], (framework, name, "has no source")
                    values[name] = quoted["is"]
    return values
