"""Prefix slices of labelled tensors."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Axis, Subnet

Index: TypeAlias = "int | Tensor | None"
"""What to keep of one axis: everything (None), a prefix (int), or listed entries (fused axes)."""


def axis_index(blueprint: Blueprint, axis: Axis, subnet: Subnet) -> Index:
    """Return which entries of an axis belong to a subnet.

    A prefix of the outermost dimension is a prefix of the axis; anything else is a list of entries.
    """
    if blueprint.extent(axis, subnet) == blueprint.extent(axis, {}):
        return None
    if len(axis) == 1 and all(blueprint.size(key, subnet) == blueprint.full[key] for key in axis[0][1:]):
        return blueprint.product(axis[0], subnet)
    parts, base = [], 0
    with torch.inference_mode(mode=False):  # an index made while evaluating may be used in a backward pass later
        for product in axis:
            grid = torch.arange(blueprint.product(product, {})).view([blueprint.full[key] for key in product])
            kept = grid[tuple(slice(blueprint.size(key, subnet)) for key in product)]
            parts.append(base + kept.reshape(-1))
            base += grid.numel()
        return torch.cat(parts)


def parameter_index(blueprint: Blueprint, name: str, subnet: Subnet) -> tuple[Index, ...]:
    """Return `axis_index` of every axis of a parameter."""
    return tuple(axis_index(blueprint, axis, subnet) for axis in blueprint.uses[name].axes)


def apply_index(tensor: Tensor, index: tuple[Index, ...]) -> Tensor:
    """Return the indexed part of `tensor`: a view wherever the index is a prefix, differentiable."""
    for position, kept in enumerate(index):
        if isinstance(kept, Tensor):
            tensor = tensor.index_select(position, kept.to(tensor.device))
        elif kept is not None:
            tensor = tensor.narrow(position, 0, kept)
    return tensor


def select(blueprint: Blueprint, name: str, tensor: Tensor, subnet: Subnet) -> Tensor:
    """Return the part of the parameter `name` (given as `tensor`, full size) that belongs to a subnet."""
    return apply_index(tensor, parameter_index(blueprint, name, subnet))
