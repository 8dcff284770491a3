"""Each framework's own ways, each in one place: nothing outside this folder knows a framework."""


def arm() -> None:
    """Make the layers' keys valid in every framework, whether installed or imported yet or not."""
    from .detectron2 import datasets, norms

    norms.arm()
    datasets.arm()
