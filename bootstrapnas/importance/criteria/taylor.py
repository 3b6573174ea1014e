"""First-order Taylor expansion: what the loss would change by without a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.errors import UserError
from bootstrapnas.importance.criteria.base import Loss, elastic_parameters


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
    names, weights = list(parameters), list(parameters.values())
    totals = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    training, batch = model.training, None
    frozen = [weight for weight in weights if not weight.requires_grad]
    model.eval()
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        for batch in batches:
            gradients = torch.autograd.grad(loss(model, batch), weights)
            for total, weight, gradient in zip(totals, weights, gradients, strict=True):
                total += (weight.detach() * gradient).abs()
    finally:
        model.train(training)
        for weight in frozen:
            weight.requires_grad_(False)
    if batch is None:
        raise UserError("the criterion 'taylor' needs data, but there is no batch")
    return dict(zip(names, totals, strict=True))
