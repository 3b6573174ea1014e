"""Rules that turn scores of weights into scores of units, for choosing widths and for ordering.

To add one: a `Rule` and a line in `RULES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bootstrapnas.blueprint import Blueprint, Parameter
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.importance.reduction import Scores, unit_scores
from bootstrapnas.importance.structured import scored_keys


@dataclass(frozen=True, slots=True)
class Reduction:
    """How member scores become one score per unit: ``max`` or ``sum``, over all members or output rows of weights."""

    reduce: Literal["max", "sum"]
    output_rows_only: bool = False

    def __call__(self, blueprint: Blueprint, scores: Scores) -> dict[Key, Tensor]:
        """Return key -> score per unit, shape [units], for every key of which a member that counts has scores."""
        counted = {name: s for name, s in scores.items() if not self.output_rows_only or s.dim() > 1}
        return {
            key: unit_scores(blueprint, counted, key, reduce=self.reduce, counts=self._counts)
            for key in scored_keys(blueprint, counted)
        }

    def _counts(self, parameter: Parameter, position: int) -> bool:
        return not self.output_rows_only or position == 0


@dataclass(frozen=True, slots=True)
class Rule:
    """One reduction for widths (how many units are above a threshold) and one for the order of units."""

    widths: Reduction
    order: Reduction


RULES: dict[str, Rule] = {
    # One score for both, so the units above any threshold are the first ones in the order. For movement scores.
    "prefix": Rule(widths=Reduction("max"), order=Reduction("max")),
    # As published (EFTNAS): units are ordered by output rows alone (Q, K, V, or the FFN's first layer), without biases.
    "eftnas": Rule(widths=Reduction("max"), order=Reduction("sum", output_rows_only=True)),
    # Additive scores (l1, l2, taylor): what a unit is worth is what its entries are worth together.
    "sum": Rule(widths=Reduction("sum"), order=Reduction("sum")),
}


def default_rule(criterion: str) -> str:
    """Return the rule for a criterion's scores: ``prefix`` for movement, ``sum`` for additive ones."""
    return "prefix" if criterion == "movement" else "sum"


def width_scores(blueprint: Blueprint, scores: Scores, rule: str = "prefix") -> dict[Key, Tensor]:
    """Return key -> score per unit, shape [units], to be compared with a threshold when widths are chosen.

    Keys without scores are left out.

    Raises
    ------
    UserError
        If the rule is unknown, no elastic key has scores, or a score grid does not divide its parameter.
    """
    return find_rule(rule).widths(blueprint, scores)


def order_scores(blueprint: Blueprint, scores: Scores, rule: str = "prefix") -> dict[Key, Tensor]:
    """Return key -> score per unit, shape [units], by which units are put in order; see `reduction.orders`.

    Keys without scores are left out.

    Raises
    ------
    UserError
        If the rule is unknown, no elastic key has scores, or a score grid does not divide its parameter.
    """
    return find_rule(rule).order(blueprint, scores)


def find_rule(name: str) -> Rule:
    """Return the rule of that name, or raise `UserError`."""
    if name not in RULES:
        raise UserError(f"unknown importance rule {name!r} (known: {listed(RULES)}){near_miss(name, RULES)}")
    return RULES[name]
