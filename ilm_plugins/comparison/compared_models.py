"""The models of a comparison, one for each norm, and the time of their training steps."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from ..errors import OPERATORS, UserError, broken_import, one_line, say
from ..files import read_object, write_text
from ..frameworks.config import AS_IS
from ..frameworks.run.processes import available_gpus
from .compared_config import ComparedConfig, call_on_device

#: How many times the training step of each norm is measured.
ROUNDS = 7
#: The file of a comparison's folder with the times of training steps.
FILE = "steps.json"


def build_models(config: ComparedConfig, norms: Sequence[str]) -> dict[str, str]:
    """Return the norms of each norm's model; UserError names norms that do not fit it."""
    models, errors = {}, []
    for norm in norms:
        try:
            opened = config.open(norm, "cpu")
            described = opened.describe_norms(opened.build_model(), config.at)
        except ImportError as error:
            if error.name == OPERATORS:
                raise
            raise broken_import(config.config, error) from error
        # A norm that does not fit, or is unknown to the framework; other errors have other causes.
        except (UserError, ValueError, TypeError, KeyError, AssertionError) as error:
            errors.append(f"{norm}: {type(error).__name__}: {one_line(error)}")
            continue
        alike = [other for other, norms in models.items() if norms == described]
        others = {kind_of(config.arms[other].norm) for other in alike}
        others -= {kind_of(config.arms[norm].norm)}
        if others and AS_IS not in (config.arms[norm].norm, *others):
            errors.append(f"{norm}: the same model as with {min(others)}")
        models[norm] = described
    if errors:
        keys = ", ".join(config.own_norms)
        raise UserError(
            f"these norms do not fit at {keys}: {'; '.join(errors)}; leave them out, give them "
            "other options, or give another --at"
        )
    return models


def kind_of(norm: str) -> str:
    """Return a norm without its options; SyncBN, which is BN on the CPU, is "BN"."""
    return "BN" if "BN" in norm else norm.partition("(")[0]


def measured_steps(
    config: ComparedConfig, norms: Sequence[str], path: Path, is_dry: bool = False
) -> dict[str, dict[str, float]]:
    """Return the time of each norm's training step; it is kept, except by a dry run.

    It is empty if the steps cannot be measured.
    """
    if path.is_file():
        steps = read_object(path, {"": {"": int | float}})
        if steps.keys() == {*norms} and all(step.get("seconds") for step in steps.values()):
            return steps
    if config.num_gpus and not available_gpus():
        say("the cost of a step is not measured: this machine has no GPU")
        return {}
    say("a training step of each norm ...")
    try:
        steps = call_on_device(measure_steps, config, norms, 1 if is_dry else ROUNDS)
    except UserError as error:
        say(f"the cost of a step was not measured: {one_line(error)}")
        return {}
    if not is_dry:
        write_text(path, json.dumps(steps, indent=1))
    return steps


def measure_steps(
    config: ComparedConfig, norms: Sequence[str], rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Return norm -> median "seconds" of a step, measured in turn, after one that warms up."""
    steps: dict[str, Callable[[], None]] = {}
    seconds: dict[str, list[float]] = {norm: [] for norm in norms}
    for norm in [*norms] * (1 + rounds):
        try:
            if norm not in steps:
                steps[norm] = config.open(norm).training_step(max(1, config.num_gpus))
            seconds[norm].append(_measure(steps[norm], config.num_gpus > 0))
        except Exception as error:  # of the framework's or the user's own code and data
            raise UserError(f"{norm}: {type(error).__name__}: {one_line(error)}") from error
    return {norm: {"seconds": median(seconds[norm][1:])} for norm in norms}


def _measure(step: Callable[[], None], on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin
