"""Prefix slices of labelled tensors."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Axis, Subnet


class Grid(NamedTuple):
    """One product of an axis as a grid of its dimensions: how large it is, and how much of each one is kept."""

    full: tuple[int, ...]
    kept: tuple[int, ...]


Index: TypeAlias = "int | tuple[Grid, ...] | None"
"""What to keep of one axis: everything (None), a prefix (int), or a part of each product (fused or inner axes)."""


def axis_index(blueprint: Blueprint, axis: Axis, subnet: Subnet) -> Index:
    """Return which entries of an axis belong to a subnet.

    A prefix of the outermost dimension is a prefix of the axis; anything else is a part of each product's grid.
    """
    if blueprint.extent(axis, subnet) == blueprint.extent(axis, {}):
        return None
    if len(axis) == 1 and all(blueprint.size(key, subnet) == blueprint.full[key] for key in axis[0][1:]):
        return blueprint.product(axis[0], subnet)
    return tuple(
        Grid(tuple(blueprint.full[key] for key in product), tuple(blueprint.size(key, subnet) for key in product))
        for product in axis
    )


def parameter_index(blueprint: Blueprint, name: str, subnet: Subnet) -> tuple[Index, ...]:
    """Return `axis_index` of every axis of a parameter."""
    return tuple(axis_index(blueprint, axis, subnet) for axis in blueprint.uses[name].axes)


def apply_index(tensor: Tensor, index: tuple[Index, ...]) -> Tensor:
    """Return the indexed part of `tensor`, differentiable: a view if every axis is whole or a prefix, else a copy.

    A copy is small beside the matrix product that follows. Leaving it out, by a product for each part of a fused
    weight, costs more: then the results, which have as many rows as the batch has tokens, are what must be joined.
    """
    for position, kept in enumerate(index):  # first what is a view: only what is kept is copied
        if isinstance(kept, int):
            tensor = tensor.narrow(position, 0, kept)
    for position, kept in enumerate(index):
        if isinstance(kept, tuple):
            tensor = _parts(tensor, position, kept)
    return tensor


def _parts(tensor: Tensor, position: int, grids: tuple[Grid, ...]) -> Tensor:
    """Return the kept part of each product of an axis, one after the other."""
    if grids[1:] != grids[:-1]:
        products = tensor.split([math.prod(grid.full) for grid in grids], position)
        return torch.cat(
            [_parts(part, position, (grid,)) for part, grid in zip(products, grids, strict=True)], position
        )
    full, kept = grids[0]
    tensor = tensor.unflatten(position, (len(grids), *full))  # equal products: their number is one more dimension
    for offset, size in enumerate(kept, start=1):
        tensor = tensor.narrow(position + offset, 0, size)
    return tensor.flatten(position, position + len(full))


def select(blueprint: Blueprint, name: str, tensor: Tensor, subnet: Subnet) -> Tensor:
    """Return the part of the parameter `name` (given as `tensor`, full size) that belongs to a subnet."""
    return apply_index(tensor, parameter_index(blueprint, name, subnet))
