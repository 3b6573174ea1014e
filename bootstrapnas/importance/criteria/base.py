"""What an importance criterion is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint, Parameter
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError

Loss: TypeAlias = Callable[[nn.Module, Mapping[str, Any]], Tensor]
"""(model, batch) -> the loss, scalar."""

Criterion: TypeAlias = Callable[[nn.Module, Blueprint, Iterable[Mapping[str, Any]], Loss], dict[str, Tensor]]
"""(model, blueprint, batches, loss) -> parameter name -> scores, non-negative.

Scores have the parameter's shape or are a grid that divides it. They are per entry: what a row or a unit is worth as a
whole is spread evenly over its entries, so that their sum is what it is worth.
"""


def elastic_parameters(model: nn.Module, blueprint: Blueprint) -> dict[str, nn.Parameter]:
    """Return the parameters that carry an elastic width of a layer, by name: those whose scores decide about units."""
    names = {p.name for key in blueprint.widths for p, _ in blueprint.members(key)}
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def elastic_axis(blueprint: Blueprint, parameter: Parameter) -> tuple[int, tuple[Key, ...]]:
    """Return the first axis of a parameter that carries elastic widths of its layer, and these."""
    return next(_elastic_axes(blueprint, parameter))


def _elastic_axes(blueprint: Blueprint, parameter: Parameter) -> Iterator[tuple[int, tuple[Key, ...]]]:
    for position, axis in enumerate(parameter.axes):
        keys = dict.fromkeys(key for product in axis for key in product if key in blueprint.widths)
        if keys:
            yield position, tuple(keys)


def add_up_gradients(
    criterion: str,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Mapping[str, Any]],
    loss: Loss,
    score: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return per parameter the sum over batches of ``score(name, w * dL/dw)``, float32, without dropout.

    Gradients, the training mode of the model and what is frozen stay as they were.

    Raises
    ------
    UserError
        If there is no batch.
    """
    totals: dict[str, Tensor] = {}
    training = model.training
    frozen = [parameter for parameter in parameters.values() if not parameter.requires_grad]
    model.eval()
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for batch in batches:
            gradients = torch.autograd.grad(loss(model, batch), list(parameters.values()))
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                found = score(name, (parameter.detach() * gradient).float())
                totals[name] = totals[name] + found if name in totals else found
    finally:
        model.train(training)
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not totals:
        raise UserError(f"the criterion {criterion!r} needs data, but there is no batch")
    return totals
