"""Read detectron2's yaml configs without running code that they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import detectron2
import yaml
from detectron2.config import CfgNode, get_cfg

from ... import checkpoints, configs
from ...errors import UserError
from ..command import reading_config

#: The configs that detectron2 is installed with.
MODEL_ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"

# In the whole process, since fvcore takes no other loader; a tuple runs no code.
yaml.SafeLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple", yaml.FullLoader.construct_python_tuple
)


def read_config(path: str) -> CfgNode:
    """Read a yaml config and its ``_BASE_`` files on top of detectron2's default settings.

    Python's tags are errors, except ``!!python/tuple``, and the tags in files of detectron2's model
    zoo and copies of them. Within ``checkpoints.loading(unsafe=True)`` every file loads as in
    detectron2, and may run code.

    Returns:
        The settings, not frozen.

    Raises:
        UserError: a file is missing, cannot be read, holds code, or has settings that detectron2
            does not.
    """
    cfg = get_cfg()
    with reading_config(path), explaining_unknown_keys(path):
        if checkpoints.code_is_allowed():
            cfg.merge_from_file(path)
            return cfg
        # merge_from_file finds this before its class's own method, which allows all tags.
        cfg.__dict__["load_yaml_with_base"] = _SafeFiles.load_yaml_with_base
        cfg.merge_from_file(path)
        del cfg.__dict__["load_yaml_with_base"]
        return cfg


@contextmanager
def explaining_unknown_keys(path: str) -> Iterator[None]:
    """Within this context, the error of a key that detectron2 lacks says what to do."""
    try:
        yield
    except KeyError as error:
        if "Non-existent config key" not in str(error):
            raise
        raise UserError(
            f"{path}: {error.args[0]}; this command knows detectron2's own keys, and none of a "
            "project such as PointRend: correct the key, or import ilm_plugins in the project's "
            "train_net.py and train with that"
        ) from error


class _SafeFiles(CfgNode):
    """detectron2's CfgNode, which executes Python's tags only in detectron2's own files."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Load a file on top of its ``_BASE_`` files, for which fvcore calls this method again.

        Args:
            filename: the file, a path or a URL.
            allow_unsafe: ignored; the file's content decides.

        Returns:
            The merged settings, a nested dict.

        Raises:
            UserError: the file has a Python tag that is not allowed. Other errors of reading and
                parsing it pass unchanged.
        """
        filename = configs.resolve(filename)
        with cls._open_cfg(filename) as file:
            text = file.read()
        theirs = (path.read_text() for path in MODEL_ZOO.rglob(Path(filename).name))
        try:
            return super().load_yaml_with_base(filename, allow_unsafe=text in theirs)
        except yaml.constructor.ConstructorError as error:
            problem = error.problem.replace("tag:yaml.org,2002:", "!!")
            _, _, tag = problem.partition("constructor for the tag ")
            if not tag.startswith("'!!python/"):
                raise
            raise UserError(
                f"config {filename!r}, line {error.problem_mark.line + 1}: it has {tag}, which may "
                f"run code{checkpoints.TRUST}"
            ) from error
