"""Magnitude of weights: needs no data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.importance.criteria.base import Loss, elastic_axis, elastic_parameters


def score_l1(
    model: nn.Module, blueprint: Blueprint, batches: Iterable[Mapping[str, Any]], loss: Loss
) -> dict[str, Tensor]:
    """Score a weight w by ``|w|``; summed over a unit, its L1 norm (Li et al. 2017)."""
    return {name: p.detach().float().abs() for name, p in elastic_parameters(model, blueprint).items()}


def score_l2(
    model: nn.Module, blueprint: Blueprint, batches: Iterable[Mapping[str, Any]], loss: Loss
) -> dict[str, Tensor]:
    """Score the rows (or columns) along the elastic axis by their L2 norm, as NNCF does, spread over their entries.

    Summed over a unit: the norms of its rows and columns together. Weights have scores [out, 1] or [1, in].
    """
    scores = {}
    for name, p in elastic_parameters(model, blueprint).items():
        position, _ = elastic_axis(blueprint, blueprint.parameters[name])
        others = [axis for axis in range(p.dim()) if axis != position]
        weight = p.detach().float()
        # An empty list of axes would mean all of them.
        norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True) if others else weight.abs()
        scores[name] = norms * (norms.numel() / weight.numel())
    return scores
