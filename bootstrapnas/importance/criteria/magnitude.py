"""Magnitude of weights: needs no data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.importance.criteria.base import Loss, elastic_parameters


def score_l1(
    model: nn.Module, blueprint: Blueprint, batches: Iterable[Mapping[str, Any]], loss: Loss
) -> dict[str, Tensor]:
    """Score a weight w by ``|w|``; summed over a unit, its L1 norm (Li et al. 2017)."""
    return {name: p.detach().float().abs() for name, p in elastic_parameters(model, blueprint).items()}


def score_l2(
    model: nn.Module, blueprint: Blueprint, batches: Iterable[Mapping[str, Any]], loss: Loss
) -> dict[str, Tensor]:
    """Score a weight w by ``w ** 2``; summed over a unit, its squared L2 norm."""
    return {name: p.detach().float().square() for name, p in elastic_parameters(model, blueprint).items()}
