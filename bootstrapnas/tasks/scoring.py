"""From a model's outputs to a task's metrics and predictions."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from bootstrapnas.artefacts import write_json, write_text
from bootstrapnas.outputs import Outputs
from bootstrapnas.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from datasets import Dataset


def compute_metrics(spec: TaskSpec, outputs: Outputs, rows: Dataset, features: Dataset) -> dict[str, float]:
    """Compute every metric of a task, as fractions of 1.

    Parameters
    ----------
    spec
        The task.
    outputs
        Of the model, by name: an array a feature.
    rows, features
        A split of `load_task`, and what `tokenize` made of it.

    Returns
    -------
    dict
        Metric -> value, the metric that selects first. A correlation that is not defined, because all predictions (or
        all labels) are equal, counts as 0: a model that says the same of every row has found out nothing, and a NaN
        would compare as neither better nor worse in a search.

    Raises
    ------
    ValueError
        If there are no rows, the shapes disagree, or the outputs hold NaN or infinity.
    """
    found = spec.kind.measure(spec, spec.kind.decode(spec, outputs, rows, features), rows)
    return {name: found[name] for name in dict.fromkeys((spec.metric, *found))}


def predictions(spec: TaskSpec, outputs: Outputs, rows: Dataset, features: Dataset) -> list[dict[str, Any]]:
    """Return what a model says of each row, from its outputs (as in `compute_metrics`), for people."""
    return spec.kind.show(spec, spec.kind.decode(spec, outputs, rows, features), rows)


def write_predictions(
    path: str | os.PathLike[str], spec: TaskSpec, outputs: Outputs, rows: Dataset, features: Dataset
) -> None:
    """Write the predictions, atomically: JSON lines ``{"index": row, "prediction": …}`` at least.

    A file that is called ``.json`` gets one object instead, the prediction by the row's id (of questions, as SQuAD's
    own program reads it) or index. Rows are called what they are in messages: by their numbers in the file.
    """
    entries = predictions(spec, outputs, rows, features)
    if str(path).endswith(".json"):
        write_json(path, {str(entry.get("id", entry["index"])): entry["prediction"] for entry in entries})
    else:
        write_text(path, "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries))
