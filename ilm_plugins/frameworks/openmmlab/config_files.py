"""Read MMEngine's configs."""

import inspect
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from ...errors import OPERATORS, UserError, missing
from ...layers import NORMS
from ..config import flat, norm_name
from ..config_files import check_overrides, installed, names_in, reading
from .checkpoints import use_safe_checkpoints

#: Default scopes of configs, which are also the names of packages that need mmcv.
SCOPES = "mmdet", "mmpretrain", "mmseg"
#: Top-level keys that have an effect, though the Runner has no such argument.
BESIDE_RUNNER = (
    *("activation_checkpointing", "channels_last", "compile", "efficient_conv_bn_eval"),
    *("find_unused_parameters", "model_wrapper_cfg", "runner_type", "strategy", "sync_bn"),
    *("train_pipeline", "tta_model", "tta_pipeline"),
)
#: Keys of paths that any run may have.
PATHS = "work_dir", "load_from"


def load_config(
    path: str, overrides: Sequence[str] = (), device: str | None = None, amp: bool = False
) -> Config:
    """Read a config with overrides as of MMEngine's ``--cfg-options``; ``device`` has no effect."""
    use_safe_checkpoints()  # a model may load a checkpoint, such as a teacher's, while it is built
    if wrong := [override for override in overrides if "=" not in override]:
        raise UserError(f"override {wrong[0]!r} of {path} is not KEY=VALUE; give it as one word")
    with reading(path):
        cfg, parsed = Config.fromfile(path), Namespace()
    scope = cfg.get("default_scope")
    for package in ("mmcv", scope) if scope in SCOPES else ():
        # Otherwise MMEngine says that a model or a norm is not in a registry.
        if not installed(package):
            raise missing(path, package)
    if scope == "mmdet" and not installed(OPERATORS):
        raise missing(path, OPERATORS)  # mmdet's import would fail, after a minute
    check_variables(path, cfg, overrides)
    DictAction([], "options")(None, parsed, overrides)
    cfg.merge_from_dict({**parsed.options, **_paths(overrides)})
    if cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs", Path(path).stem))
    if amp:
        # A constructor of several optimizers has a wrapper for each network.
        for wrapper in (cfg.optim_wrapper, *cfg.optim_wrapper.values()):
            if isinstance(wrapper, dict) and "optimizer" in wrapper:
                wrapper["type"] = "AmpOptimWrapper"
    return cfg


def check_variables(path: str, cfg: Config, overrides: Sequence[str]) -> None:
    """Raise UserError for an override of an unknown key, or a variable without effect.

    A variable is a key at the top that the Runner does not read. The file's own ``norm_cfg`` of a
    norm of this package has no effect if no part of the model has the norm.
    """
    read = [*inspect.signature(Runner.__init__).parameters, *BESIDE_RUNNER]
    strict = "runner_type" not in cfg  # a Runner of one's own may read other keys
    check_overrides(overrides, cfg, read, strict)
    settings = dict(flat(cfg.to_dict()))
    norm = settings.get("norm_cfg.type")
    types = [v for k, v in settings.items() if k.startswith("model.") and k.endswith(".type")]
    is_own = "norm_cfg" in names_in(path, Path(path).read_text(encoding="utf-8"))
    if strict and norm_name(norm) in NORMS and norm not in types and is_own:
        raise UserError(
            f"norm_cfg.type is {norm!r}, but no part of the model has this norm: norm_cfg is a "
            "variable of the config, without effect; give it to a part, as "
            "model.backbone.norm_cfg, or remove it"
        )
    for override in overrides if strict else ():
        name = override.partition("=")[0].partition(".")[0]
        if name not in read:
            places = [k for k in settings if k.partition(".")[0] in read and k.endswith(f".{name}")]
            where = f"give {', '.join(places)}" if places else "give the keys that have its value"
            raise UserError(
                f"override {override!r}: {name} is a variable of the config, without effect; "
                f"{where}"
            )


def _paths(overrides: Sequence[str]) -> dict[str, str | None]:
    """Return the overrides of PATHS as they are; DictAction drops spaces, and splits at commas."""
    pairs = (override.split("=", 1) for override in overrides)
    return {k: None if v == "None" else v.strip("'\"") for k, v in pairs if k in PATHS}
