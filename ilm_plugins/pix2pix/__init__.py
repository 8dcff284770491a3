"""Image translation by pix2pix, on MMEngine: networks, pairs of images, metrics, training."""

from ..frameworks.openmmlab import import_after


def install_import_hooks() -> None:
    """Register pix2pix's networks, dataset and hooks once MMEngine's runner is imported."""
    import_after("mmengine.runner", (f"{__name__}.networks", f"{__name__}.training"))
