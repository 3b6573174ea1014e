"""The NNCF config that stages take where none is given, from the labels of the model alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.nncf_config import one_stage_config

BLOCK = 32
"""Attention is scored in squares of this, or of the largest size below it that divides a head and the weight."""
WARMUP_START = 1 / 3
"""The part of movement training before the warm-up. Published: 1/3 (MNLI, QNLI, QQP, SST-2), 2/5 and 1/4."""


def default_space_config(blueprint: Blueprint, length: int) -> dict[str, Any]:
    """Return what `config_with_space` completes: one stage of all dimensions as the command line says, EFTNAS's search.

    `length` is the number of tokens that costs are counted for.
    """
    dims = ["width", "depth"] if blueprint.family.blocks else ["width"]
    return one_stage_config(dims, length, {"algorithm": "NSGA2", "num_evals": 1000, "population": 40})


def default_movement_config(blueprint: Blueprint, linears: Mapping[str, str], epochs: float) -> dict[str, Any]:
    """Return a config that scores the linear layers of every coupled group by movement, as EFTNAS does.

    A dimension whose units are single channels has a score per row or column, one of larger units (heads) square
    blocks. A layer with several elastic axes has a score per entry.

    Parameters
    ----------
    blueprint
        The labelled model.
    linears
        Module path -> NNCF's node name.
    epochs
        Length of the training; the warm-up ends with it.
    """
    axes: dict[str, list[tuple[int, int]]] = {}  # path -> (0: outputs, 1: inputs, channels of a unit)
    for key in blueprint.widths:
        for parameter, axis in blueprint.members(key):
            if parameter.applied:
                path = parameter.name.rpartition(".")[0]
                role = 0 if axis == parameter.output else 1
                axes.setdefault(path, []).append((role, blueprint.channels_along(parameter.axes[axis], key)))
    scopes: dict[tuple[str, int], list[str]] = {}
    for path, found in axes.items():
        axis, channels = found[0]
        if len(found) > 1:
            continue
        side = math.gcd(BLOCK, channels, *blueprint.shape(f"{path}.weight", {}))
        structure = ("per_dim", axis) if channels == 1 else ("block", side)
        scopes.setdefault(structure, []).append(linears[path])
    entries = [
        {"mode": mode, **({"axis": number} if mode == "per_dim" else {"sparse_factors": [number] * 2})}
        | {"target_scopes": nodes}
        for (mode, number), nodes in scopes.items()
    ]
    return {
        "compression": {
            "algorithm": "movement_sparsity",
            "params": {
                "warmup_start_epoch": epochs * WARMUP_START,
                "warmup_end_epoch": epochs,
                "importance_regularization_factor": 0.02,
            },
            "sparse_structure_by_scopes": entries,
            "target_scopes": [linears[path] for path in axes],
        }
    }
