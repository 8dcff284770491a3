"""Config files: find their framework, and explain their mistakes."""

import difflib
import importlib.util
import re
import symtable
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from .. import configs
from ..errors import DISK, OPERATORS, UserError, broken_import, missing, one_line

#: Code by which a config in Python is one of detectron2.
DETECTRON2 = re.compile(
    r"^\s*(from\s+detectron2[\w.]*\s+import|import\s+detectron2)\b", re.MULTILINE
)
#: Code that only configs of MMEngine have, such as ``model = dict(type="ResNet")``.
MMENGINE = re.compile(
    r"^\s*(from|import)\s+mm|\b(_base_|custom_imports|default_scope|read_base)\b"
    r"|\bdict\([^()]*\btype=|[\"']type[\"']\s*:",
    re.MULTILINE,
)
#: Names that a LazyConfig has, by which one without code of detectron2 is told from a script.
LAZY_CONFIG = {"dataloader", "model", "train"}
#: Code by which a config may get its model from other files.
OTHER_FILES = re.compile(r"^\s*from\s+(\.|.*\bimport\s+\*)|\b_base_\b", re.MULTILINE)
#: Least similarity, 0 to 1, of a key that is a misspelt one; "decoder" is to "encoder" .857.
NEAR = 0.86
#: Framework of a config, a package of ilm_plugins.frameworks -> the package that it needs.
PACKAGES = {"detectron2": "detectron2", "openmmlab": "mmengine"}


def module_for(framework: str, name: str, config: str) -> ModuleType:
    """Import our module for the framework of a config; UserError says which package is missing."""
    check_is_config(config)
    if not installed(PACKAGES[framework]):
        raise missing(config, PACKAGES[framework])
    try:
        return import_module(f"{__package__}.{framework}.{name}")
    except ModuleNotFoundError as error:
        raise missing(config, error) from error


def check_is_config(path: str) -> None:
    """Raise UserError, before it runs, for a Python file that is not a config, such as a script."""
    if Path(path).suffix != ".py":
        return
    code = Path(path).read_text(encoding="utf-8", errors="replace")
    named = names_in(path, code)
    of_framework = DETECTRON2.search(code) or MMENGINE.search(code)
    if not OTHER_FILES.search(code) and not named >= ({"model"} if of_framework else LAZY_CONFIG):
        raise UserError(
            f"config file {path!r} is no config of detectron2 or MMEngine, but other code; give a "
            "config, or in your own script give the norm as norm_layer, or call surgery.convert"
        )


def names_in(path: str, code: str) -> set[str]:
    """Return the names that the code of a config assigns or imports; UserError for a mistake."""
    try:
        symbols = symtable.symtable(code, path, "exec").get_symbols()
    except SyntaxError as error:
        raise UserError(
            f"config file {path!r}: {error.msg} in line {error.lineno}; correct the file"
        ) from error
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Replace the error of a framework that reads a config by a UserError, with its line of code.

    An OSError of the disk, and the lack of mmcv's operators, are raised as they are.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        if error.name == OPERATORS:
            raise
        raise broken_import(path, error) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK:
            raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f" in line {lines[-1]}" if lines else ""
        reason = one_line(error.args[0] if isinstance(error, KeyError) else error)
        if len(reason) > 300:  # a type mismatch of yacs may show a whole section of the config
            reason = f"{reason[:150]} ... {reason[-150:]}"
        kind = type(error).__name__
        raise UserError(f"config file {path!r}: {kind}{where}: {reason}; correct it") from error


def check_overrides(
    overrides: Iterable[str], config: Mapping, others: Iterable[str] = (), strict: bool = True
) -> None:
    """Raise UserError for an override KEY=VALUE of an unknown key, with the nearest known one.

    The frameworks add keys that a config lacks, which then have no effect. At the top all keys but
    the config's and ``others`` are unknown if ``strict``; below, as above otherwise, only those
    nearly equal to a key beside them, because a constructor may have arguments that no config
    gives. hydra's "+KEY=VALUE" adds a key, and "~KEY" deletes one.
    """
    for override in overrides:
        if override.startswith(("+", "~")) or "=" not in override:
            continue
        node, keys = config, [*config, *others]
        names = override.partition("=")[0].split(".")
        for depth, name in enumerate(names):
            if name not in keys:
                is_called = depth + 1 == len(names) and bool({"type", "_target_"} & {*node})
                cutoff = 0.0 if strict and depth == 0 else NEAR
                near = difflib.get_close_matches(name, keys, n=1, cutoff=cutoff)
                if near and not is_called:  # a wrong argument of a call is an error anyway
                    raise UserError(
                        f"override {override!r}: the config has no "
                        f"{'.'.join(names[: depth + 1])!r}; did you mean "
                        f"{'.'.join([*names[:depth], near[0]])!r}? If code of yours reads a new "
                        "key, write it into the config file"
                    )
                break
            node = node.get(name)
            if not isinstance(node, Mapping):
                break
            keys = [*node]


def unknown_norm(setting: str, norm: str, keys: Iterable[str]) -> UserError:
    """The error of a norm that the framework does not know, with the nearest keys."""
    by_lower_case = {key.lower(): key for key in keys}
    (word,) = re.match(r"\s*(\w*)", norm).groups()
    near = difflib.get_close_matches(word.lower(), by_lower_case, n=3, cutoff=0)
    return UserError(
        f"{setting} is {norm!r}, an unknown norm; near ones are "
        f"{', '.join(by_lower_case[key] for key in near)}; all are {', '.join(keys)}"
    )


def installed(framework: str) -> bool:
    """Whether a package can be imported; a folder of that name without code does not count."""
    spec = importlib.util.find_spec(framework)
    return spec is not None and spec.origin is not None


def framework_of(path: str) -> str:
    """Return "detectron2" or "openmmlab", by a config's suffix and, of a .py, its content."""
    if not Path(path).is_file():
        problem = "is a folder" if Path(path).is_dir() else "does not exist"
        choice = f"a path, or {configs.SCHEME}NAME for one of this package's configs"
        raise UserError(f"config file {path!r} {problem}; give {choice}")
    suffix = Path(path).suffix
    if suffix not in (".yaml", ".yml", ".py"):
        raise UserError(f"config file {path!r} is no .yaml or .py file; give the path of one")
    if suffix != ".py":
        return "detectron2"
    code = Path(path).read_text(encoding="utf-8", errors="replace")
    return "detectron2" if DETECTRON2.search(code) or not MMENGINE.search(code) else "openmmlab"
