"""The test of an MMEngine config: its classes, and its metrics' units."""

from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, Registry

from ..config import OpenConfig
from .datasets import set_scope, unwrapped

#: Metrics of mmdet that are percentages; its others are fractions.
PERCENTAGES = {"CocoPanopticMetric", "SemSegMetric", "RefSegMetric"}


def classes_of_test(opened: OpenConfig) -> tuple[str, ...] | None:
    """Return the names of the test set's classes, in order; None if the config does not tell."""
    set_scope(opened.config)
    loader = opened.config.get("test_dataloader") or {}
    dataset = next(unwrapped(loader.get("dataset") or {}))
    metainfo = dict(getattr(_class_of(dataset, DATASETS), "METAINFO", {}))
    metainfo |= dataset.get("metainfo") or {}
    classes = metainfo.get("classes")
    return tuple(classes) if isinstance(classes, list | tuple) else None  # not a file of names


def unit(opened: OpenConfig, metric: str) -> str | None:
    """Return the unit of a metric, "percent" or "fraction"; None if it is unknown."""
    given, fitting = metric.rpartition("/")[0], []
    for evaluator, cls in _evaluators(opened.config):
        prefix = evaluator.get("prefix") or getattr(cls, "default_prefix", None) or ""
        if given.endswith(prefix):
            fitting.append((len(prefix), cls))
    _, cls = max(fitting, key=lambda pair: pair[0], default=(0, None))
    package = getattr(cls, "__module__", "").partition(".")[0]
    if package == "mmdet":
        return "percent" if cls.__name__ in PERCENTAGES else "fraction"
    is_share = package in ("mmengine", "mmpretrain", "mmseg") and cls.__name__ != "DepthMetric"
    return "percent" if is_share else None


def _evaluators(cfg: Config) -> Iterator[tuple[dict, type | None]]:
    """Yield the config and the class of each metric of the test."""
    set_scope(cfg)
    given = cfg.get("test_evaluator") or []
    for evaluator in given if isinstance(given, list | tuple) else [given]:
        several = evaluator.get("metrics")  # of an Evaluator
        for metric in several if isinstance(several, list | tuple) else [evaluator]:
            yield metric, _class_of(metric, METRICS)


def _class_of(settings: dict, registry: Registry) -> type | None:
    kind = settings.get("type")
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as of_scope:
        return of_scope.get(kind)
