"""First-order Taylor expansion: what the loss would change by without a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.importance.criteria.base import Loss, add_up_gradients, elastic_parameters


def score_taylor(
    model: nn.Module, blueprint: Blueprint, batches: Iterable[Mapping[str, Any]], loss: Loss
) -> dict[str, Tensor]:
    """Score a weight w by ``|w * dL/dw|``, summed over the batches (Molchanov et al. 2017), without dropout.

    Gradients and the training mode of the model stay as they were.

    Raises
    ------
    UserError
        If there is no batch.
    """
    parameters = elastic_parameters(model, blueprint)
    return add_up_gradients("taylor", model, parameters, batches, loss, lambda name, product: product.abs())
