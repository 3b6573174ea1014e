"""Putting the important units first, once, so that every subnet is a prefix. The function does not change."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError


@torch.no_grad()
def reorder(model: nn.Module, blueprint: Blueprint, orders: Mapping[Key, Tensor]) -> None:
    """Permute the units of each key in every parameter of its coupled group, in place.

    Parameters
    ----------
    model
        The full-size model (elastic or not).
    blueprint
        Its blueprint.
    orders
        Key -> permutation of its units, shape [full size]: ``order[i]`` is the old index of the new unit i.

    Raises
    ------
    UserError
        If the model has no such key, or an order is not a permutation of the key's units; nothing is changed then.
    """
    for key, order in orders.items():
        blueprint.check({key: blueprint.full.get(key, 1)})
        if order.sort().values.tolist() != list(range(blueprint.full[key])):
            raise UserError(f"the order of {key} is not a permutation of its {blueprint.full[key]} units")
    parameters = dict(model.named_parameters(remove_duplicate=False))
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
            tensor = parameters[parameter.name]
            tensor.copy_(tensor.index_select(position, torch.cat(parts).to(tensor.device)))
