"""What an importance criterion is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint

Loss: TypeAlias = Callable[[nn.Module, Mapping[str, Any]], Tensor]
"""(model, batch) -> the loss, scalar."""

Criterion: TypeAlias = Callable[[nn.Module, Blueprint, Iterable[Mapping[str, Any]], Loss], dict[str, Tensor]]
"""(model, blueprint, batches, loss) -> parameter name -> scores, non-negative, in the parameter's shape."""


def elastic_parameters(model: nn.Module, blueprint: Blueprint) -> dict[str, nn.Parameter]:
    """Return the parameters that carry an elastic dimension, by name: those whose scores decide about units."""
    names = {p.name for key in blueprint.elastic if not blueprint.is_block(key) for p, _ in blueprint.members(key)}
    return {name: parameter for name, parameter in model.named_parameters() if name in names}
