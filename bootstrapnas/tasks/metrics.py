"""Metrics of classification and regression, by name; greater is better for every one of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bootstrapnas.artefacts import write_text
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.tasks.glue import GLUE

if TYPE_CHECKING:
    from bootstrapnas.tasks.spec import TaskSpec

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Metric:
    """A function of predictions and labels (both ``[rows]``), and the number of outputs it is for (None: 2 or more)."""

    function: Callable[[Array, Array], float]
    num_labels: int | None = None

    def fits(self, num_labels: int) -> bool:
        """Whether the metric is for a model with `num_labels` outputs (1: a regression)."""
        return num_labels > 1 if self.num_labels is None else num_labels == self.num_labels


def _accuracy(predictions: Array, labels: Array) -> float:
    return float((predictions == labels).mean())


def _f1(predictions: Array, labels: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0.0))


def _macro_f1(predictions: Array, labels: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews_correlation(predictions: Array, labels: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: Array, labels: Array) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def _spearmanr(predictions: Array, labels: Array) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(measure: Callable[..., tuple[float, float]], predictions: Array, labels: Array) -> float:
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(measure(predictions.astype(np.float64), labels.astype(np.float64))[0])


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "f1": Metric(_f1, num_labels=2),
    "macro_f1": Metric(_macro_f1),
    "matthews_correlation": Metric(_matthews_correlation),
    "pearson": Metric(_pearson, num_labels=1),
    "spearmanr": Metric(_spearmanr, num_labels=1),
}


def check_metric(name: str, num_labels: int) -> None:
    """Raise `UserError` unless `name` is a metric for a model with `num_labels` outputs (1: a regression)."""
    if name not in METRICS:
        raise UserError(f"unknown metric {name!r}{near_miss(name, METRICS)}; known: {listed(METRICS)}")
    if not METRICS[name].fits(num_labels):
        fitting = listed(known for known, metric in METRICS.items() if metric.fits(num_labels))
        kind = "a regression" if num_labels == 1 else f"{num_labels} classes"
        raise UserError(f"metric {name!r} is not for {kind}; choose from {fitting}")


def default_metrics(spec: TaskSpec) -> tuple[str, ...]:
    """Return the names of the metrics that are reported for a task, the one it is selected by first."""
    if spec.task_name in GLUE:
        usual = GLUE[spec.task_name].metrics
    else:
        usual = ("pearson", "spearmanr") if spec.is_regression else ("accuracy", "macro_f1")
    return tuple(dict.fromkeys((spec.metric, *usual)))


def compute_metrics(spec: TaskSpec, logits: Array, labels: Array) -> dict[str, float]:
    """Compute every metric of a task, as fractions of 1.

    Parameters
    ----------
    spec
        The task.
    logits
        Outputs of the model, ``[rows, num_labels]``; for a regression ``[rows]`` will do.
    labels
        Class indices or numbers, ``[rows]``.

    Returns
    -------
    dict
        Metric -> value, the metric that selects first. A correlation that is not defined, because all predictions (or
        all labels) are equal, counts as 0: a model that says the same of every row has found out nothing, and a NaN
        would compare as neither better nor worse in a search.

    Raises
    ------
    ValueError
        If there are no rows, the shapes disagree, or the logits hold NaN or infinity.
    """
    found = _predicted(spec, logits)
    if labels.shape != found.shape or not len(labels):
        raise ValueError(f"labels of shape {labels.shape} do not fit predictions of shape {found.shape}, or are empty")
    return {name: METRICS[name].function(found, labels) for name in default_metrics(spec)}


def predictions(spec: TaskSpec, logits: Array) -> list[str] | list[float]:
    """Turn logits (as in `compute_metrics`) into one label name, or for a regression one number, a row."""
    found = _predicted(spec, logits)
    if spec.is_regression:
        return [float(value) for value in found]
    return [spec.label_names[int(index)] for index in found]


def write_predictions(path: str | os.PathLike[str], spec: TaskSpec, logits: Array) -> None:
    """Write the predictions as JSON lines ``{"index": row, "prediction": label name or number}``, atomically."""
    rows = enumerate(predictions(spec, logits))
    write_text(path, "".join(f"{json.dumps({'index': index, 'prediction': value})}\n" for index, value in rows))


def _predicted(spec: TaskSpec, logits: Array) -> Array:
    """Return class indices or numbers, ``[rows]``."""
    if spec.is_regression and logits.ndim == 1:
        logits = logits[:, None]
    if logits.ndim != 2 or logits.shape[1] != spec.num_labels:
        raise ValueError(f"logits of shape {logits.shape} do not fit {spec.num_labels} outputs")
    if not np.isfinite(logits).all():
        raise ValueError("the logits hold NaN or infinity: the model has diverged")
    return logits[:, 0] if spec.is_regression else logits.argmax(axis=1)
