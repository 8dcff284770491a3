"""Each framework's own ways, each in one place: nothing outside this folder knows a framework."""

import importlib.util


def installed(framework: str) -> bool:
    """Whether a package can be imported; a mere folder of that name is none."""
    spec = importlib.util.find_spec(framework)
    return spec is not None and spec.origin is not None


def arm() -> None:
    """Make the layers' keys valid in every framework, whether installed or imported yet or not."""
    from . import openmmlab
    from .detectron2 import datasets, norms

    norms.arm()
    datasets.arm()
    openmmlab.arm()
