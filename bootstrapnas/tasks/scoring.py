"""From a model's outputs to a task's metrics and predictions."""

from __future__ import annotations

import json
import os

import numpy as np

from bootstrapnas.artefacts import write_text
from bootstrapnas.tasks.glue import GLUE
from bootstrapnas.tasks.metrics import METRICS, Array
from bootstrapnas.tasks.spec import TaskSpec


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
