"""The rules that choose one subnet from a search's candidates."""

from __future__ import annotations

from collections.abc import Sequence

from bootstrapnas.errors import UserError
from bootstrapnas.search.base import Candidate

TOLERANCE = 1e-9  # 0.93 - 0.01 is above 0.92 in floating point


class NothingQualifiesError(UserError):
    """No candidate meets the demand; the message says how near the nearest comes."""


def select_best(
    candidates: Sequence[Candidate], metric: str, cost: str, ref_metric: float | None, acc_delta: float
) -> Candidate:
    """Return the cheapest candidate whose metric is at least ``ref_metric`` minus the tolerated drop.

    This is BootstrapNAS's rule, but for two points: NNCF asks for strictly more than the threshold, and its default
    reference is the maximum subnet's accuracy with the wrong sign, which lets every candidate pass.

    Parameters
    ----------
    candidates
        What the search proposed; metrics are fractions.
    metric, cost
        Names of the values to compare: larger metrics and smaller costs are better.
    ref_metric
        A fraction, or a percentage if above 1. `None` or -1 stands for the metric of the maximum subnet (all genes 0).
    acc_delta
        Tolerated drop in points of a percent.

    Raises
    ------
    NothingQualifiesError
        If all candidates are below the threshold.
    UserError
        If there is no reference, as the maximum subnet is not among the candidates.
    """
    if ref_metric is None or ref_metric == -1:
        reference = _maximum_metric(candidates, metric)
    else:
        reference = ref_metric / 100 if ref_metric > 1 else ref_metric
    threshold = reference - acc_delta / 100
    qualified = [candidate for candidate in candidates if candidate.values[metric] >= threshold - TOLERANCE]
    if not qualified:
        nearest = max(candidate.values[metric] for candidate in candidates)
        raise NothingQualifiesError(
            f"no subnet found has {metric} >= {threshold:.4f} (ref_acc {reference:.4f} less acc_delta {acc_delta:g} "
            f"points); the best has {nearest:.4f}: lower ref_acc or raise acc_delta"
        )
    return min(qualified, key=lambda candidate: (candidate.values[cost], -candidate.values[metric]))


def select_by_budget(candidates: Sequence[Candidate], metric: str, cost: str, budget: float) -> Candidate:
    """Return the candidate with the best metric among those that cost at most `budget`; of equals the cheapest.

    Raises
    ------
    NothingQualifiesError
        If all candidates cost more.
    """
    qualified = [candidate for candidate in candidates if candidate.values[cost] <= budget]
    if not qualified:
        nearest = min(candidate.values[cost] for candidate in candidates)
        raise NothingQualifiesError(f"no subnet found has {cost} <= {budget:,.10g}; the smallest has {nearest:,.10g}")
    return max(qualified, key=lambda candidate: (candidate.values[metric], -candidate.values[cost]))


def _maximum_metric(candidates: Sequence[Candidate], metric: str) -> float:
    for candidate in candidates:
        if not any(candidate.genome):
            return candidate.values[metric]
    raise UserError("ref_acc is not given and the search did not evaluate the maximum subnet: give ref_acc")
