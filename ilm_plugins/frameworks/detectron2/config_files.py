"""Read detectron2's yaml configs without running code that they hold."""

import ast
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import detectron2
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from ... import checkpoints
from ...errors import UserError

#: Key of a config whose value is the path of the config, or configs, that it extends.
BASE = "_BASE_"
TAGS = "tag:yaml.org,2002:"
#: Maximum number of files that one config may consist of.
FILES = 100
#: Maximum number of values in a file, with every alias expanded.
VALUES = 20_000
#: Limits of :func:`compute`: length of the text, steps, integer exponents and integers.
CHARACTERS = 1_000
STEPS = 10_000
LARGEST_EXPONENT = 64
LARGEST_INTEGER = 2**63


def read_config(path: str) -> CfgNode:
    """Read a yaml config and its ``_BASE_`` files on top of detectron2's default settings.

    Files of the installed detectron2 load as in detectron2. In other files Python tags are errors,
    except ``!!python/tuple`` and ``!!python/object/apply:eval`` of what :func:`compute` accepts.
    Within ``checkpoints.loading(unsafe=True)`` every file loads as in detectron2, and may run code.

    Raises:
        UserError: a file cannot be read, holds code, or has settings that detectron2 does not.
    """
    cfg = get_cfg()
    with _naming_config(path):
        if checkpoints.code_is_allowed():
            cfg.merge_from_file(path)
            return cfg
        loaded = _load(path, [])
        # merge_from_file finds this before its class's own loader, which allows all tags.
        cfg.__dict__["load_yaml_with_base"] = lambda *args, **options: loaded
        cfg.merge_from_file(path)
        del cfg.__dict__["load_yaml_with_base"]
        return cfg


@contextmanager
def _naming_config(path: str) -> Iterator[None]:
    """Within this context, convert exceptions to UserErrors that name the config's path."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # yaml, yacs and path handlers raise many types
        kind, message = type(error).__name__, " ".join(str(error).split())[:300]
        raise UserError(
            f"config {path!r} cannot be read: {kind}: {message}; correct the file"
        ) from error


def _load(path: str, files: list[str]) -> dict[str, Any]:
    """Load a file on top of its ``_BASE_`` files, as fvcore's ``load_yaml_with_base`` does.

    Args:
        path: the file.
        files: the files loaded so far, to detect loops; ``path`` is appended.

    Returns:
        The merged settings, a nested dict.

    Raises:
        UserError: a file is missing, is not a mapping, holds code, or there are too many files.
    """
    files.append(path)
    if len(files) > FILES:
        raise UserError(
            f"config {files[0]!r} has more than {FILES} files behind {BASE}; remove files, or a "
            "loop between them"
        )
    if _is_stock(path):
        return CfgNode.load_yaml_with_base(path, allow_unsafe=True)
    with _naming_config(path), PathManager.open(path, "r") as file:
        loader = Loader(file)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UserError(
                f"config {path!r} cannot be read: it has no settings; write a mapping of keys to "
                "values"
            )
        _count_values(node, {})
        settings = loader.construct_document(node)
    whole: dict[str, Any] = {}
    bases = settings.pop(BASE, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UserError(f"config {path!r}: {BASE} is {base!r:.80}; give a path")
        base = os.path.expanduser(base)
        if not base.startswith(("/", "https://", "http://")):
            base = os.path.join(os.path.dirname(path), base)
        if "://" not in base and not os.path.isfile(base):
            raise UserError(
                f"config {path!r} cannot be read: its {BASE} {base!r} does not exist; give a file"
            )
        _merge(_load(base, files), whole)
    _merge(settings, whole)
    return whole


def _merge(settings: dict[str, Any], into: dict[str, Any]) -> None:
    """Merge a nested dict into another, in place; raise ValueError if a dict replaces a value."""
    for key, value in settings.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ValueError(f"{key} has keys of its own, and is a value in {BASE}")
            _merge(value, into[key])
        else:
            into[key] = value


def _is_stock(path: str) -> bool:
    """Whether a file belongs to the installed detectron2, after resolving symbolic links."""
    if "://" in path:
        return False
    package = os.path.dirname(detectron2.__file__)
    # A build in a checkout links its configs into the package.
    folders = package, os.path.join(package, "model_zoo", "configs")
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def _count_values(node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
    """Count the values in a node of a yaml file, with every alias expanded.

    Args:
        node: the root of the part to count.
        known: a cache of counts by node, filled here; None marks a node that is being counted.

    Raises:
        UserError: there are more than ``VALUES``, or the node contains itself.
    """
    if node in known:
        if known[node] is None:
            raise _error_at(node, "an anchor refers to itself; write its values out")
        return known[node]
    known[node] = None
    children = node.value if isinstance(node, yaml.CollectionNode) else ()
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in children for child in pair]
    total = 1 + sum(_count_values(child, known) for child in children)
    if total > VALUES:
        raise _error_at(node, f"it stands for more than {VALUES:,} values; make it smaller")
    known[node] = total
    return total


def _error_at(node: yaml.Node, reason: str) -> UserError:
    """Return a UserError that names the file and the line of a node."""
    mark = node.start_mark
    return UserError(f"config {mark.name!r}, line {mark.line + 1}: {reason}")


class Loader(yaml.SafeLoader):
    """yaml's safe loader, extended by Python tuples and computed values (:func:`compute`)."""

    def refuse(self, node: yaml.Node) -> None:
        """Raise UserError for a node with an unknown tag."""
        tag = node.tag.replace(TAGS, "!!", 1)
        if tag.startswith("!!python/"):
            raise _error_at(node, f"it has {tag!r}, which may run code{checkpoints.TRUST}")
        raise _error_at(node, f"it has {tag!r}, which is unknown; remove it")

    def construct_tuple(self, node: yaml.Node) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))

    def construct_eval(self, node: yaml.Node) -> Any:
        """Return the value of a node ``!!python/object/apply:eval ["EXPRESSION"]``."""
        words = node.value if isinstance(node, yaml.SequenceNode) else []
        try:
            if [word.tag for word in words] != [f"{TAGS}str"]:
                raise ValueError("it takes one string in a list")
            return compute(words[0].value)
        except ValueError as error:
            reason = f"cannot compute '!!python/object/apply:eval': {error}"
            raise _error_at(node, f"{reason}{checkpoints.TRUST}") from error


Loader.add_constructor(None, Loader.refuse)
Loader.add_constructor(f"{TAGS}python/tuple", Loader.construct_tuple)
Loader.add_constructor(f"{TAGS}python/object/apply:eval", Loader.construct_eval)


def compute(text: str) -> Any:
    """Evaluate a Python expression of literals, arithmetic and comprehensions; run no other code.

    It may have numbers, strings, lists, tuples, sets and dicts; ``+ - * / // % **`` and ``not`` of
    numbers; comparisons; and comprehensions, whose variables are the only names.

    Raises:
        ValueError: the expression has another construct, fails, or exceeds a limit:
            1,000 characters, 10,000 steps, integers of 2**63 and integer exponents of 64.
    """
    if len(text) > CHARACTERS:
        raise ValueError(f"it is longer than {CHARACTERS:,} characters")
    try:
        return _Evaluation().of(ast.parse(text.strip(), mode="eval").body)
    except _Refusal:
        raise
    except Exception as error:  # also MemoryError and RecursionError of ast.parse
        reason = " ".join(str(error).split())
        raise ValueError(f"{text!r:.80} fails: {type(error).__name__}: {reason}") from error


class _Refusal(ValueError):
    """An expression has an unsupported construct or exceeds a limit."""


UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Not: operator.not_}
BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
COMPARISONS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class _Evaluation:
    """Evaluates one expression; raises _Refusal if it takes too many steps."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.steps = 0

    def of(self, node: ast.expr) -> Any:
        """Return the value of a node; raise _Refusal if its type is not supported."""
        self.add_steps(1)
        match node:
            case ast.Constant(value) if isinstance(value, int | float | str | None):
                return value if isinstance(value, str | None) else _checked_number(value)
            case ast.Name(name) if name in self.names:
                # Count a variable by its size, since nesting it makes values grow exponentially.
                self.add_steps(_size(self.names[name]))
                return self.names[name]
            case ast.UnaryOp(op, operand) if type(op) in UNARY:
                return UNARY[type(op)](_checked_number(self.of(operand)))
            case ast.BinOp(left, op, right) if type(op) in BINARY:
                return _apply(op, _checked_number(self.of(left)), _checked_number(self.of(right)))
            case ast.Compare(left, ops, others) if all(type(op) in COMPARISONS for op in ops):
                values = [self.of(one) for one in (left, *others)]
                return all(
                    COMPARISONS[type(op)](*pair)
                    for op, pair in zip(ops, pairwise(values), strict=True)
                )
            case ast.List(parts):
                return [self.of(part) for part in parts]
            case ast.Tuple(parts):
                return tuple(self.of(part) for part in parts)
            case ast.Set(parts):
                return {self.of(part) for part in parts}
            case ast.Dict(keys, values) if None not in keys:
                return {self.of(k): self.of(v) for k, v in zip(keys, values, strict=True)}
            case ast.ListComp(part, generators):
                return list(self.each(generators, lambda: self.of(part)))
            case ast.SetComp(part, generators):
                return set(self.each(generators, lambda: self.of(part)))
            case ast.DictComp(key, value, generators):
                return dict(self.each(generators, lambda: (self.of(key), self.of(value))))
        text = ast.unparse(node)[:80]
        raise _Refusal(
            f"unsupported expression {text!r}; use literals, arithmetic and comprehensions"
        )

    def each(self, loops: list[ast.comprehension], make: Callable[[], Any]) -> Iterator[Any]:
        """Run the loops of a comprehension.

        Args:
            loops: its ``for`` clauses, from the outermost.
            make: evaluates the element; called once an iteration, with the variables set.

        Yields:
            The elements.
        """
        if not loops:
            yield make()
            return
        first, *rest = loops
        if first.is_async:
            raise _Refusal("it has 'async'")
        outer = self.names
        for item in self.of(first.iter):
            self.add_steps(1)
            self.names = {**outer, **_bind(first.target, item)}
            if all(self.of(condition) for condition in first.ifs):
                yield from self.each(rest, make)
        self.names = outer

    def add_steps(self, steps: int) -> None:
        """Add to the number of steps; raise _Refusal if it exceeds the limit."""
        self.steps += steps
        if self.steps > STEPS:
            raise _Refusal(f"it takes more than {STEPS:,} steps")


def _checked_number(value: Any) -> int | float:
    """Return a value unchanged; raise _Refusal unless it is a number within the limits."""
    if not isinstance(value, int | float):
        raise _Refusal(f"{value!r:.80} is not a real number")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise _Refusal("integers must not exceed 2**63; write a float")
    return value


def _apply(op: ast.operator, left: int | float, right: int | float) -> int | float:
    """Return ``left op right``; raise _Refusal if an exponent or the result exceeds a limit."""
    whole = isinstance(left, int) and isinstance(right, int)
    if isinstance(op, ast.Pow) and whole and abs(right) > LARGEST_EXPONENT:
        raise _Refusal(f"integer exponents must not exceed {LARGEST_EXPONENT}")
    return _checked_number(BINARY[type(op)](left, right))


def _bind(target: ast.expr, value: Any) -> dict[str, Any]:
    """Assign a value to the target of a ``for`` clause; return variable name -> value.

    Raises:
        _Refusal: the target is neither a name nor a tuple or list of names, at any depth.
        ValueError: the value has more or fewer items than the target.
        TypeError: the target has several names, and the value no items.
    """
    match target:
        case ast.Name(name):
            return {name: value}
        case ast.Tuple(parts) | ast.List(parts):
            pairs = zip(parts, value, strict=True)
            return {k: v for part, one in pairs for k, v in _bind(part, one).items()}
    raise _Refusal(f"{ast.unparse(target)[:80]!r} is not a variable name")


def _size(value: Any) -> int:
    """Count the values in a nested container; 1 for any other value."""
    if isinstance(value, dict):
        return 1 + sum(_size(k) + _size(v) for k, v in value.items())
    return 1 + sum(map(_size, value)) if isinstance(value, list | tuple | set) else 1
