"""Putting the important units first, so that every subnet is a prefix. The function does not change."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError


@torch.no_grad()
def reorder(
    model: nn.Module,
    blueprint: Blueprint,
    orders: Mapping[Key, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Permute the units of each key in every parameter of its coupled group, in place.

    With the optimiser of a run that is under way, what it keeps for each parameter (Adam's moments) moves along, so
    that training goes on as that of the permuted model.

    Parameters
    ----------
    model
        The full-size model (elastic or not).
    blueprint
        Its blueprint.
    orders
        Key -> permutation of its units, shape [full size]: ``order[i]`` is the old index of the new unit i.
    optimizer
        What trains the model, if training has begun.

    Raises
    ------
    UserError
        If the model has no such key, an order is not a permutation of the key's units, these have no other order, or
        the optimiser keeps something that is not shaped as its parameter; nothing is changed then.
    """
    for key, order in orders.items():
        blueprint.check({key: blueprint.full.get(key, 1)})
        if order.sort().values.tolist() != list(range(blueprint.full[key])):
            raise UserError(f"the order of {key} is not a permutation of its {blueprint.full[key]} units")
        if blueprint.dims[key.dim].ordered:
            raise UserError(f"the units of {key} have no other order in family {blueprint.family.model_type!r}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    moments = {name: _moments(name, tensor, optimizer) for name, tensor in parameters.items()} if optimizer else {}
    for key, order in orders.items():
        for parameter, position in blueprint.members(key):
            parts, base = [], 0
            for product in parameter.axes[position]:
                sizes = [blueprint.full[k] for k in product]
                grid = torch.arange(math.prod(sizes)).view(sizes)
                if key in product:
                    grid = grid.index_select(product.index(key), order.cpu())
                parts.append(base + grid.reshape(-1))
                base += grid.numel()
            for tensor in (parameters[parameter.name], *moments.get(parameter.name, ())):
                tensor.copy_(tensor.index_select(position, torch.cat(parts).to(tensor.device)))


def _moments(name: str, parameter: Tensor, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return what an optimiser keeps per entry of a parameter; numbers, such as a count of steps, are left out."""
    kept = [value for value in optimizer.state.get(parameter, {}).values() if isinstance(value, Tensor) and value.dim()]
    for value in kept:
        if value.shape != parameter.shape:
            raise UserError(
                f"units cannot be put in order while training with {type(optimizer).__name__}: for {name!r} of shape "
                f"{tuple(parameter.shape)} it keeps a tensor of shape {tuple(value.shape)}; use --optim adamw_torch"
            )
    return kept
