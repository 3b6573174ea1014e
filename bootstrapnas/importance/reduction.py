"""From scores of weights to scores of units: a fold over the axis labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from bootstrapnas.blueprint import Blueprint, Parameter
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError

Scores: TypeAlias = Mapping[str, Tensor]
"""Parameter name -> scores: a grid of equal blocks, each axis dividing the parameter's (1 = one score for all)."""


def expand(scores: Tensor, shape: tuple[int, ...], name: str = "scores") -> Tensor:
    """Repeat block scores [a, b, …] to the parameter's `shape`, each block covering ``shape // scores.shape`` entries.

    Raises
    ------
    UserError
        If the grid does not divide the shape.
    """
    if scores.dim() != len(shape) or any(full % blocks for full, blocks in zip(shape, scores.shape, strict=True)):
        raise UserError(f"scores of {name!r} have shape {tuple(scores.shape)}, which does not divide {shape}")
    for axis, (full, blocks) in enumerate(zip(shape, scores.shape, strict=True)):
        if 1 < blocks < full:
            scores = scores.repeat_interleave(full // blocks, axis)
    return scores.expand(shape)


def unit_parts(blueprint: Blueprint, parameter: Parameter, position: int, tensor: Tensor, key: Key) -> Iterator[Tensor]:
    """Yield what the units of `key` own along an axis of a parameter, given at full size as `tensor`.

    Views of shape [units, ...], one per part of a fused axis: what is written into them is written into `tensor`.
    """
    axis = parameter.axes[position]
    parts = tensor.movedim(position, 0).split([blueprint.product(product, {}) for product in axis])
    for product, part in zip(axis, parts, strict=True):
        if key in product:
            yield part.unflatten(0, [blueprint.full[k] for k in product]).movedim(product.index(key), 0)


def unit_scores(
    blueprint: Blueprint,
    scores: Scores,
    key: Key,
    *,
    reduce: str = "max",
    counts: Callable[[Parameter, int], bool] = lambda parameter, position: True,
) -> Tensor:
    """Return one score per unit of `key`, shape [full size of key].

    Parameters
    ----------
    blueprint
        The labelled model.
    scores
        Scores of parameters; parameters of the coupled group without scores do not count.
    key
        The elastic dimension.
    reduce
        ``"max"``: a unit is as important as its most important member block or bias, so that the units above a
        threshold are those of which any member is above it. ``"sum"``: the sum over all member entries. ``"mean"``:
        their mean, so that units of different sizes compare.
    counts
        Restricts which (parameter, axis) members take part.

    Raises
    ------
    UserError
        If no member of the group has scores.
    """
    found, entries = [], 0
    for parameter, position in blueprint.members(key):
        if parameter.name not in scores or not counts(parameter, position):
            continue
        shape = blueprint.shape(parameter.name, {})
        full = expand(scores[parameter.name].detach().float(), shape, parameter.name)
        for part in unit_parts(blueprint, parameter, position, full, key):
            units = part.reshape(len(part), -1)
            found.append(units.amax(1) if reduce == "max" else units.sum(1))
            entries += units.shape[1]
    if not found:
        raise UserError(f"no scores for any parameter of the coupled group {key}")
    stacked = torch.stack(found)
    if reduce == "max":
        return stacked.amax(0)
    return stacked.sum(0) / (entries if reduce == "mean" else 1)


def orders(unit_scores_by_key: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Return per key the permutation that puts the highest score first; equal scores keep their order."""
    return {key: torch.argsort(s, descending=True, stable=True) for key, s in unit_scores_by_key.items()}
