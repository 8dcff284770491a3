"""The options --import and --dataset: a user's own code to run, and datasets to register."""

import hashlib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .code_digest import digest_of_files
from .config import kind_of


@dataclass(frozen=True)
class Registrations:
    """The options ``--import`` and ``--dataset``, which each process of a command obeys."""

    #: Absolute paths of .py files, and names of modules.
    imports: tuple[str, ...] = ()
    #: A name, and the absolute paths of a json of COCO instances and of the folder of its images.
    datasets: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def of_options(
        cls, imports: Sequence[str], datasets: Sequence[tuple[str, str, str]]
    ) -> "Registrations":
        """Return the registrations of a command line, with absolute paths."""
        paths = [os.path.abspath(code) if code.endswith(".py") else code for code in imports]
        named = [(name, *map(os.path.abspath, files)) for name, *files in datasets]
        return cls(tuple(paths), tuple(named))

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.datasets]

    @property
    def code(self) -> str:
        """A digest of the files of ``--import``."""
        return digest_of_files(Path(code) for code in self.imports if code.endswith(".py"))

    def arguments(self) -> list[str]:
        """Return the options for another command line."""
        options = [["--import", code] for code in self.imports]
        options += [["--dataset", *dataset] for dataset in self.datasets]
        return [argument for option in options for argument in option]

    def settings(self) -> dict[str, Any]:
        """Return option -> value, as compare.json has them; a digest tells if a json changes."""
        settings: dict[str, Any] = {f"--import {code}": True for code in self.imports}
        for name, json, images in self.datasets:
            digest = hashlib.sha256(Path(json).read_bytes()).hexdigest()
            settings[f"--dataset {name}"] = {"json": json, "SHA-256": digest, "images": images}
        return settings

    def register(self, config: str) -> None:
        """Run the imports, and register the datasets for a config that is read afterwards.

        What this process has done already is not done again. UserError says what cannot work.
        """
        for code in self.imports:
            run(code)
        kind_of(config).register(self.datasets)


def run(code: str) -> None:
    """Import a module, or a file by its name; errors of its own code pass.

    The folder of a file is on the path then, as a script's is, so that other code, and pickle, find
    the file by the same name.
    """
    path, name = Path(code), code
    if code.endswith(".py"):
        if not path.is_file():
            raise UserError(f"--import {code}: there is no such file; give the path of a .py file")
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        name = path.stem
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # of a module that it imports
            raise
        raise UserError(
            f"--import {code}: Python finds no such module; give the path of a .py file, or a "
            "module of an installed package or of this folder"
        ) from error
    other = getattr(module, "__file__", None)
    if code.endswith(".py") and not (other and path.samefile(other)):
        raise UserError(
            f"--import {code}: there is another module {name} ({other}); rename the file"
        )
