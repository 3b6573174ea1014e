"""Distance to the other units: what lies near their geometric median can be replaced by them. Needs no data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.importance.criteria.base import Loss, elastic_axis, elastic_parameters
from bootstrapnas.importance.reduction import unit_parts

_ROWS_AT_ONCE = 1024


def score_geometric_median(
    model: nn.Module, blueprint: Blueprint, batches: Iterable[Mapping[str, Any]], loss: Loss
) -> dict[str, Tensor]:
    """Score a unit, in each weight, by the sum of its Euclidean distances to all others (He et al. 2019, FPGM).

    A unit is a point as a whole: all rows of a head together. Its score is spread over its entries. Biases have none.
    """
    scores = {}
    for name, p in elastic_parameters(model, blueprint).items():
        if p.dim() < 2:
            continue
        parameter = blueprint.parameters[name]
        position, keys = elastic_axis(blueprint, parameter)
        weight = p.detach().float()
        scores[name] = torch.zeros_like(weight)
        for key in keys:
            parts = [unit_parts(blueprint, parameter, position, tensor, key) for tensor in (weight, scores[name])]
            for units, target in zip(*parts, strict=True):
                points = units.flatten(1)
                distances = [torch.cdist(rows, points).sum(1) for rows in points.split(_ROWS_AT_ONCE)]
                share = torch.cat(distances) / points.shape[1]
                target.copy_(share.view(-1, *[1] * (target.dim() - 1)).expand_as(target))
    return scores
