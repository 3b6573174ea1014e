"""NNCF's filter importance: what orders units by their weights alone, as they are at the moment."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.importance.criteria import CRITERIA
from bootstrapnas.importance.reduction import orders
from bootstrapnas.importance.rules import order_scores

FILTERS: Mapping[str, str] = {"L1": "l1", "L2": "l2", "geometric_median": "geometric_median"}
"""NNCF's name -> the criterion."""


def filter_orders(
    model: nn.Module, blueprint: Blueprint, filter_importance: str, also: Collection[str] = ()
) -> dict[Key, Tensor]:
    """Return per elastic width the order that puts the units with the largest filters first.

    `also` names the model-wide dimensions that are ordered as well.

    A unit counts the output rows of weights (a head its rows in query, key and value together), no biases and no
    columns. With ``"geometric_median"`` a head is one point; NNCF, which knows no heads, compares rows.
    """

    def no_loss(model: nn.Module, batch: Mapping[str, object]) -> Tensor:
        raise AssertionError("a criterion of filters asks for no loss")

    scores = CRITERIA[FILTERS[filter_importance]](model, blueprint, (), no_loss)
    return orders(order_scores(blueprint, scores, "rows", also=also))
