"""Structured masks: which units (heads, channels) survive a threshold on the scores of their weights."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from bootstrapnas.artefacts import write_text
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.importance.reduction import Scores, unit_scores

CSV_COLUMNS = (
    "",
    "group_id",
    "torch_module",
    "weight_shape",
    "pruned_weight_shape",
    "bias_shape",
    "pruned_bias_shape",
    "head_or_channel_id_to_keep",
    "module_node_name",
)
_LONGEST_LIST = 20


def scored_keys(blueprint: Blueprint, scores: Scores, also: Collection[str] = ()) -> tuple[Key, ...]:
    """Return the elastic widths of which any member has scores, dimension by dimension, layer by layer.

    `also` names the model-wide dimensions (the hidden size) that take part; by default none does.

    Raises
    ------
    UserError
        If there is none.
    """
    names = list(blueprint.dims)
    keys = [
        key
        for key in blueprint.elastic
        if (key in blueprint.widths or key.dim in also)
        and any(parameter.name in scores for parameter, _ in blueprint.members(key))
    ]
    if not keys:
        raise UserError("none of the scored parameters belongs to an elastic dimension of the model")
    return tuple(sorted(keys, key=lambda key: names.index(key.dim)))


def resolve(blueprint: Blueprint, scores: Scores, threshold: float) -> dict[Key, Tensor]:
    """Return which units survive: those of which any member block or bias score is above the threshold.

    Keys without scores are left out. Each mask is bool, of shape [units].

    Raises
    ------
    UserError
        If no elastic key has scores.
    """
    return {key: unit_scores(blueprint, scores, key) > threshold for key in scored_keys(blueprint, scores)}


def parameter_mask(blueprint: Blueprint, name: str, units: Mapping[Key, Tensor]) -> Tensor | None:
    """Return which entries of a parameter survive when only the given units do, bool, or None if none of them matters.

    The mask has the parameter's shape: an entry survives if on every axis its units do.
    """
    parameter = blueprint.parameters[name]
    if not any(key in units for axis in parameter.axes for product in axis for key in product):
        return None
    device = next(iter(units.values())).device
    mask = torch.ones((), dtype=torch.bool, device=device)
    for axis in parameter.axes:
        parts = []
        for product in axis:
            part = torch.ones((), dtype=torch.bool, device=device)
            for key in product:
                kept = units.get(key)
                part = part[..., None] & (
                    torch.ones(blueprint.full[key], dtype=torch.bool, device=device) if kept is None else kept
                )
            parts.append(part.flatten())
        mask = mask[..., None] & torch.cat(parts)
    return mask


def write_structured_sparsity(
    path: str | os.PathLike[str], blueprint: Blueprint, units: Mapping[Key, Tensor], node_name: Callable[[str], str]
) -> None:
    """Write NNCF's ``structured_sparsity.csv``: per group and member layer the shapes before and after pruning.

    Parameters
    ----------
    path
        The file, written atomically.
    blueprint
        The labelled model.
    units
        Per key which of its units survive, as `resolve` returns it; one group each, in this order.
    node_name
        Module path -> NNCF's node name, for the last column.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([index, *row] for index, row in enumerate(_rows(blueprint, units, node_name)))
    write_text(path, text.getvalue())


def _rows(blueprint: Blueprint, units: Mapping[Key, Tensor], node_name: Callable[[str], str]) -> Iterator[list[object]]:
    for group, (key, kept) in enumerate(units.items()):
        smaller = {key: int(kept.sum())}
        identifiers = kept.nonzero().flatten().tolist()
        shown = f"[{len(identifiers)} items]" if len(identifiers) > _LONGEST_LIST else str(identifiers)
        for parameter, _ in blueprint.members(key):
            module, _, leaf = parameter.name.rpartition(".")
            if leaf != "weight":
                continue
            bias = f"{module}.bias"
            shapes = [blueprint.shape(parameter.name, subnet) for subnet in ({}, smaller)]
            biases = [blueprint.shape(bias, s) if bias in blueprint.parameters else (0,) for s in ({}, smaller)]
            yield [group, module, *map(str, shapes), *map(str, biases), shown, node_name(module)]
