"""First-order Taylor expansion per unit: what the loss would change by without the unit's output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint, Parameter
from bootstrapnas.importance.criteria.base import Loss, add_up_gradients, elastic_parameters


def score_gate(
    model: nn.Module, blueprint: Blueprint, batches: Iterable[Mapping[str, Any]], loss: Loss
) -> dict[str, Tensor]:
    """Score the units that a linear layer reads by ``|dL/dg|``, g = 1 being a factor on the unit's output.

    The derivative is the sum of ``w * dL/dw`` over all weights that read the unit, signs included: what the weights of
    a unit do to the loss may cancel, which `score_taylor` cannot see. Absolute values are summed over the batches
    (Michel et al. 2019; Molchanov et al. 2017). Only weights that read units have scores, [1, inputs]: a unit's is
    spread evenly over them. Gradients and the training mode of the model stay as they were.

    Raises
    ------
    UserError
        If there is no batch.
    """
    reading = {
        name: parameter
        for name, parameter in elastic_parameters(model, blueprint).items()
        if blueprint.parameters[name].applied and _reads_units(blueprint, blueprint.parameters[name])
    }
    return add_up_gradients(
        "gate", model, reading, batches, loss, lambda name, product: _gates(blueprint, name, product)
    )


def _reads_units(blueprint: Blueprint, parameter: Parameter) -> bool:
    return any(key in blueprint.widths for product in parameter.axes[parameter.input] for key in product)


def _gates(blueprint: Blueprint, name: str, product: Tensor) -> Tensor:
    """Return the absolute derivative per input of ``w * dL/dw``, shape [outputs, inputs]: [1, inputs].

    Of a weight that is held as [in, out] the shapes are so as well.
    """
    found = []
    parameter = blueprint.parameters[name]
    axis, other = parameter.axes[parameter.input], parameter.output
    for keys, part in zip(axis, product.sum(other).split([blueprint.product(keys, {}) for keys in axis]), strict=True):
        sizes = [blueprint.full[key] for key in keys]
        within = [position for position, key in enumerate(keys) if not blueprint.dims[key.dim].elastic]
        grid = part.view(sizes)
        units = grid.sum(within, keepdim=True) if within else grid
        found.append((units.abs() * units.numel() / grid.numel()).expand(sizes).flatten())
    return torch.cat(found).unsqueeze(other) / product.shape[other]
