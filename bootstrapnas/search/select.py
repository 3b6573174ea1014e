"""The rules that choose one subnet from a search's candidates."""

from __future__ import annotations

from collections.abc import Sequence

from bootstrapnas.errors import UserError
from bootstrapnas.search.base import TOLERANCE, Candidate, Objective


class NothingQualifiesError(UserError):
    """No candidate meets the demand; the message says how near the nearest comes."""


def select_best(
    candidates: Sequence[Candidate], metric: Objective, cost: str, ref_metric: float | None, acc_delta: float
) -> Candidate:
    """Return the cheapest candidate whose metric is at least ``ref_metric`` minus the tolerated drop.

    This is BootstrapNAS's rule, but for two points: NNCF asks for strictly more than the threshold, and its default
    reference is the maximum subnet's accuracy with the wrong sign, which lets every candidate pass. Where less of the
    metric is better (a perplexity), it may exceed the reference by `acc_delta` percent of it.

    Parameters
    ----------
    candidates
        What the search proposed; metrics of which more is better are fractions.
    metric, cost
        The values to compare; smaller costs are better.
    ref_metric
        A fraction, or a percentage if above 1; as it is where less is better. `None` or -1 stands for the metric of the
        maximum subnet (all genes 0).
    acc_delta
        Tolerated drop in points of a percent.

    Raises
    ------
    NothingQualifiesError
        If all candidates are beyond the threshold.
    UserError
        If there is no reference, as the maximum subnet is not among the candidates.
    """
    if ref_metric is None or ref_metric == -1:
        reference = _maximum_metric(candidates, metric.name)
    else:
        reference = ref_metric / 100 if metric.maximise and ref_metric > 1 else ref_metric
    threshold = reference - acc_delta / 100 if metric.maximise else reference * (1 + acc_delta / 100)
    qualified = [each for each in candidates if metric.minimised(each.values) <= metric.sign * threshold + TOLERANCE]
    if not qualified:
        nearest = min(candidates, key=lambda each: metric.minimised(each.values)).values[metric.name]
        unit = "percent" if not metric.maximise else "point" if acc_delta == 1 else "points"
        asked, tolerated, change = (">=", "less", "lower") if metric.maximise else ("<=", "plus", "raise")
        raise NothingQualifiesError(
            f"no subnet found has {metric.name} {asked} {threshold:.4f} (ref_acc {reference:.4f} {tolerated} acc_delta "
            f"{acc_delta:g} {unit}); the best has {nearest:.4f}: "
            f"{change} ref_acc or raise acc_delta"
        )
    return min(qualified, key=lambda each: (each.values[cost], metric.minimised(each.values)))


def select_by_budget(candidates: Sequence[Candidate], metric: Objective, cost: str, budget: float) -> Candidate:
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
    return min(qualified, key=lambda candidate: (metric.minimised(candidate.values), candidate.values[cost]))


def _maximum_metric(candidates: Sequence[Candidate], metric: str) -> float:
    for candidate in candidates:
        if not any(candidate.genome):
            return candidate.values[metric]
    raise UserError("ref_acc is not given and the search did not evaluate the maximum subnet: give ref_acc")
