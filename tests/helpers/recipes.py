"""What the papers and the pilots of the study say of a config, with the source: ``recipes``."""

from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import yaml

#: The recipes of the package's configs, and of the reproduction's.
TESTS = Path(__file__).parents[1]
FOLDERS = TESTS / "configs", TESTS / "reproduction" / "configs"


@cache
def entries(framework: str) -> list[dict]:
    paths = (folder / "recipes" / f"{framework}.yaml" for folder in FOLDERS)
    texts = (path.read_text() for path in paths if path.exists())
    return [entry for text in texts for entry in yaml.load(text, yaml.CSafeLoader)]


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
