"""What an importance criterion is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint, Parameter
from bootstrapnas.dims import Key

Loss: TypeAlias = Callable[[nn.Module, Mapping[str, Any]], Tensor]
"""(model, batch) -> the loss, scalar."""

Criterion: TypeAlias = Callable[[nn.Module, Blueprint, Iterable[Mapping[str, Any]], Loss], dict[str, Tensor]]
"""(model, blueprint, batches, loss) -> parameter name -> scores, non-negative.

Scores have the parameter's shape or are a grid that divides it. They are per entry: what a row or a unit is worth as a
whole is spread evenly over its entries, so that their sum is what it is worth.
"""


def elastic_parameters(model: nn.Module, blueprint: Blueprint) -> dict[str, nn.Parameter]:
    """Return the parameters that carry an elastic dimension, by name: those whose scores decide about units."""
    names = {p.name for key in blueprint.elastic if not blueprint.is_block(key) for p, _ in blueprint.members(key)}
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def elastic_axis(blueprint: Blueprint, parameter: Parameter) -> tuple[int, tuple[Key, ...]]:
    """Return the first axis of a parameter that carries elastic dimensions, and these."""
    return next(_elastic_axes(blueprint, parameter))


def _elastic_axes(blueprint: Blueprint, parameter: Parameter) -> Iterator[tuple[int, tuple[Key, ...]]]:
    for position, axis in enumerate(parameter.axes):
        keys = dict.fromkeys(key for product in axis for key in product if blueprint.dims[key.dim].elastic)
        if keys:
            yield position, tuple(keys)
