"""Evaluations in parts, so that a search can stop one that will not reach the front."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

from bootstrapnas.errors import UserError
from bootstrapnas.pipeline.data import Part, Rows
from bootstrapnas.pipeline.models import outputs_of
from bootstrapnas.search import Estimate
from bootstrapnas.tasks import TaskSpec

LOOKS = 8
"""Parts of an evaluation at most; between two of them it may be stopped."""


def check_early_stop(confidence: float | None, spec: TaskSpec) -> None:
    """Raise `UserError` if evaluations cannot be stopped early with a confidence: nothing bounds the task's metric."""
    if confidence is None:
        return
    if not 0.5 <= confidence <= 1:
        raise UserError(f"--early_stop is a confidence from 0.5 to 1, not {confidence:g}; 0.99 is a usual one")
    bounded = [name for name in spec.metrics if name in spec.kind.means]
    if spec.metric not in bounded:
        other = f"search by --eval_metric_name {bounded[0]}" if bounded else f"task {spec.task_name} has none"
        raise UserError(f"--early_stop needs a metric that is a mean over rows, which {spec.metric} is not: {other}")


def split_up(rows: Rows, split: str) -> list[Part]:
    """Return a split in random parts of whole batches, `LOOKS` of them at most."""
    batches = math.ceil(len(rows.rows(split)) / rows.batch_size / LOOKS)
    return rows.parts(split, batches * rows.batch_size)


def estimates(model: Any, rows: Rows, parts: Sequence[Part], confidence: float) -> Generator[Estimate, None, None]:
    """Evaluate a model part by part; yield after each what its metric is so far, and what it may still come to.

    Parameters
    ----------
    model
        In evaluation as it is.
    rows
        Of the task, whose metric is a mean over rows.
    parts
        Of `split_up`.
    confidence
        With which all of an evaluation's bounds hold together; 1 for certain.
    """
    metric, total = rows.spec.metric, sum(len(part.rows) for part in parts)
    seen, right = 0, 0.0
    for part in parts:
        found = part.measure(outputs_of(model, rows, part.batches))[metric]
        seen, right = seen + len(part.rows), right + len(part.rows) * found
        bound = most_of_mean(right / seen, seen, total, (1 - confidence) / max(len(parts) - 1, 1))
        yield Estimate({metric: right / seen}, {metric: bound}, seen / total)


def most_of_mean(mean: float, seen: int, total: int, risk: float) -> float:
    """Return what the mean of `total` numbers from 0 to 1 is at most, given the mean of some that were drawn at random.

    All that were not seen may be 1. Beyond that it is Serfling's bound, which is Hoeffding's for drawing without
    replacement, and wrong with a probability of at most `risk` (R. J. Serfling, "Probability inequalities for the sum
    in sampling without replacement", Annals of Statistics 2, 1974).
    """
    certain = (mean * seen + total - seen) / total
    if not risk:
        return certain
    likely = mean + math.sqrt((1 - (seen - 1) / total) * math.log(1 / risk) / (2 * seen))
    return min(certain, likely)
