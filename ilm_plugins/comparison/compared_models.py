"""The models of a comparison, one for each norm, and the time of their training steps."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from torch import nn

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
        model, described = build_model(config, norm)
        if model is None:
            # Before further norms: after an import that failed, they have errors of their own.
            if not errors:
                check_own_model(config)
            errors.append(f"{norm}: {described}")
        else:
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


def build_model(config: ComparedConfig, norm: str) -> tuple[nn.Module | None, str]:
    """Return the model of a norm and its norms; None and the error if it cannot be built."""
    try:
        opened = config.open(norm, "cpu")
        model = opened.build_model()
        return model, opened.describe_norms(model, config.at)
    except ImportError as error:
        if error.name == OPERATORS:
            raise
        raise broken_import(config.config, error) from error
    # A norm that does not fit, or is unknown to the framework; other errors have other causes.
    except (UserError, ValueError, TypeError, KeyError, AssertionError) as error:
        return None, f"{type(error).__name__}: {one_line(error)}"


def check_own_model(config: ComparedConfig) -> None:
    """Raise UserError if the config's own norms cannot be built, either."""
    model, error = build_model(config, AS_IS)
    if model is None:
        raise UserError(
            f"{config.config}: the model cannot be built, with its own norms, too: {error}; "
            "correct the config or the overrides"
        )


def measured_steps(
    config: ComparedConfig,
    commands: Mapping[str, str],
    path: Path,
    is_trained: bool,
    is_dry: bool = False,
) -> dict[str, dict[str, float]]:
    """Return the time of each norm's training step; it is kept, except by a dry run.

    It is empty if the steps cannot be measured. A failure that tells of the trainings, where
    ``is_trained``, is a UserError; ``commands`` is norm -> its command.
    """
    if path.is_file():
        steps = read_object(path, {"": {"": int | float}})
        if steps.keys() == commands.keys() and all(step.get("seconds") for step in steps.values()):
            return steps
    if config.num_gpus and not available_gpus():
        say("the cost of a step is not measured: this machine has no GPU")
        return {}
    say("a training step of each norm ...")
    try:
        steps = call_on_device(measure_steps, config, [*commands], 1 if is_dry else ROUNDS)
    except (StepError, FloatingPointError, UserError) as error:
        if is_trained:
            check_certain(config, commands, error)
        say(f"the cost of a step was not measured: {one_line(error)}")
        return {}
    if not is_dry:
        write_text(path, json.dumps(steps, indent=1))
    return steps


def check_certain(config: ComparedConfig, commands: Mapping[str, str], error: Exception) -> None:
    """Raise UserError if the trainings would fail by the error of a step."""
    if isinstance(error, UserError):
        raise error
    if isinstance(error, StepError):
        norm, reason = error.args
        # The first norm, or other processes, may fail by a hook that a step alone lacks.
        is_certain = norm != next(iter(commands)) and config.num_gpus <= 1
        if is_certain or isinstance(error, MemoryOfStepError):
            raise UserError(
                f"{norm}: a training step fails with {reason}; no run was started; correct the "
                "config, give a smaller batch, or leave out the norm; this command shows more: "
                f"{commands[norm]}"
            ) from error


class StepError(Exception):
    """A norm's step failed: the norm, and the error in words."""

    def __str__(self) -> str:
        return ": ".join(self.args)


class MemoryOfStepError(StepError):
    """The step needs more memory than the GPU has."""


def measure_steps(
    config: ComparedConfig, norms: Sequence[str], rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Return norm -> median "seconds" of a step."""
    try:
        return _measured_in_turn(config, norms, rounds)
    except MemoryOfStepError:
        pass  # behind this statement, as the error holds the models
    steps = {}
    for norm in norms:
        torch.cuda.empty_cache()
        steps |= _measured_in_turn(config, [norm], rounds)
    return steps


def _measured_in_turn(
    config: ComparedConfig, norms: Sequence[str], rounds: int
) -> dict[str, dict[str, float]]:
    """Measure the steps of norms in turn, after one of each that warms up."""
    steps: dict[str, Callable[[], None]] = {}
    seconds: dict[str, list[float]] = {norm: [] for norm in norms}
    for norm in norms:
        with _explaining(norm):
            steps[norm] = config.open(norm).training_step(max(1, config.num_gpus))
            _measure(steps[norm], config.num_gpus > 0)
    for norm in [*norms] * rounds:
        with _explaining(norm):
            seconds[norm].append(_measure(steps[norm], config.num_gpus > 0))
    return {norm: {"seconds": median(seconds[norm])} for norm in norms}


@contextmanager
def _explaining(norm: str) -> Iterator[None]:
    """Raise StepError for an error of a norm's step."""
    try:
        yield
    except (FloatingPointError, UserError):
        raise
    except Exception as error:  # of the framework's or the user's own code and data
        is_memory = isinstance(error, torch.cuda.OutOfMemoryError)
        kind = MemoryOfStepError if is_memory else StepError
        raise kind(norm, f"{type(error).__name__}: {one_line(error)}") from error


def _measure(step: Callable[[], None], on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin
