"""The registry of importance criteria. To add one: a function in a file beside these and a line here."""

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.importance.criteria.base import Criterion, Loss, elastic_parameters
from bootstrapnas.importance.criteria.gate import score_gate
from bootstrapnas.importance.criteria.geometric_median import score_geometric_median
from bootstrapnas.importance.criteria.magnitude import score_l1, score_l2
from bootstrapnas.importance.criteria.taylor import score_taylor
from bootstrapnas.importance.criteria.wanda import score_wanda

CRITERIA: dict[str, Criterion] = {
    "l1": score_l1,
    "l2": score_l2,
    "geometric_median": score_geometric_median,
    "taylor": score_taylor,
    "gate": score_gate,
    "wanda": score_wanda,
}
WITHOUT_DATA = ("l1", "l2", "geometric_median")
"""Those that look at the weights alone."""


def find_criterion(name: str) -> Criterion:
    """Return the criterion of that name, or raise `UserError`."""
    if name not in CRITERIA:
        raise UserError(f"unknown importance criterion {name!r} (known: {listed(CRITERIA)}){near_miss(name, CRITERIA)}")
    return CRITERIA[name]


__all__ = ["CRITERIA", "WITHOUT_DATA", "Criterion", "Loss", "elastic_parameters", "find_criterion"]
