"""Rules that turn scores of weights into scores of units, for choosing widths and for ordering.

To add one: a `Rule` and a line in `RULES`.
"""

from __future__ import annotations

from collections.abc import Collection
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
    """How member scores become one score per unit.

    Attributes
    ----------
    reduce
        ``max``, ``sum`` or ``mean`` over the entries of a unit.
    output_rows_only
        Whether only output rows of weights count, no biases and no input columns.
    relative
        Whether scores are divided by the root of their mean square over the units of a key (Molchanov et al. 2017),
        which takes the scale out that layers and kinds of layers differ in.
    """

    reduce: Literal["max", "sum", "mean"]
    output_rows_only: bool = False
    relative: bool = False

    def __call__(self, blueprint: Blueprint, scores: Scores, also: Collection[str] = ()) -> dict[Key, Tensor]:
        """Return key -> score per unit, shape [units], for every key of which a member that counts has scores."""
        counted = {name: s for name, s in scores.items() if not self.output_rows_only or s.dim() > 1}
        keys = scored_keys(blueprint, counted, also)
        if self.output_rows_only:
            keys = tuple(k for k in keys if any(p.name in counted and at == p.output for p, at in blueprint.members(k)))
        found = {key: unit_scores(blueprint, counted, key, reduce=self.reduce, counts=self._counts) for key in keys}
        return {key: _relative(s) for key, s in found.items()} if self.relative else found

    def _counts(self, parameter: Parameter, position: int) -> bool:
        return not self.output_rows_only or position == parameter.output


def _relative(scores: Tensor) -> Tensor:
    scale = scores.square().mean().sqrt()
    return scores / scale if scale > 0 else scores


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
    # Additive scores: what a unit is worth is what its entries are worth together. A head has many more than a channel.
    "sum": Rule(widths=Reduction("sum"), order=Reduction("sum")),
    # The same per parameter, and so per multiply-accumulate: what is cut first is worth least for what it costs.
    "mean": Rule(widths=Reduction("mean"), order=Reduction("sum")),
    # Scores whose scale says nothing between layers: per parameter, and relative to the other units of the layer.
    "relative": Rule(widths=Reduction("mean", relative=True), order=Reduction("sum")),
    # NNCF's filter importance: output rows alone.
    "rows": Rule(
        widths=Reduction("mean", output_rows_only=True, relative=True), order=Reduction("sum", output_rows_only=True)
    ),
}

_DEFAULTS = {"movement": "prefix", "external": "rows"}


def default_rule(criterion: str) -> str:
    """Return the rule for a criterion's scores; ``relative`` for those of `CRITERIA`."""
    return _DEFAULTS.get(criterion, "relative")


def width_scores(
    blueprint: Blueprint, scores: Scores, rule: str = "prefix", also: Collection[str] = ()
) -> dict[Key, Tensor]:
    """Return key -> score per unit, shape [units], to be compared with a threshold when widths are chosen.

    Keys without scores are left out, and so are model-wide dimensions that `also` does not name.

    Raises
    ------
    UserError
        If the rule is unknown, no elastic key has scores, or a score grid does not divide its parameter.
    """
    return find_rule(rule).widths(blueprint, scores, also)


def order_scores(
    blueprint: Blueprint, scores: Scores, rule: str = "prefix", also: Collection[str] = ()
) -> dict[Key, Tensor]:
    """Return key -> score per unit, shape [units], by which units are put in order; see `reduction.orders`.

    Keys without scores are left out, and so are model-wide dimensions that `also` does not name.

    Raises
    ------
    UserError
        If the rule is unknown, no elastic key has scores, or a score grid does not divide its parameter.
    """
    return find_rule(rule).order(blueprint, scores, also)


def find_rule(name: str) -> Rule:
    """Return the rule of that name, or raise `UserError`."""
    if name not in RULES:
        raise UserError(f"unknown importance rule {name!r} (known: {listed(RULES)}){near_miss(name, RULES)}")
    return RULES[name]
