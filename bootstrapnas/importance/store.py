"""Scores on disk: one safetensors file, checked against the model that they are loaded for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bootstrapnas.artefacts import load_tensors, save_tensors
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.errors import UserError, near_miss
from bootstrapnas.importance.reduction import Scores, expand

IMPORTANCE_FILE = "importance.safetensors"
_KIND = "importance"


def save_importance(
    path: str | os.PathLike[str],
    scores: Scores,
    blueprint: Blueprint,
    criterion: str,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write scores, atomically.

    Parameters
    ----------
    path
        The file.
    scores
        Parameter name -> grid of scores.
    blueprint
        The model that was scored; its type is noted and the scores are checked against it.
    criterion
        What made the scores: ``"movement"``, ``"external"`` or a name in `CRITERIA`.
    details
        Anything else worth keeping (JSON-able), for example the structure of each layer's scores.

    Raises
    ------
    UserError
        If the scores do not fit the model, or the file cannot be written.
    """
    check_scores(path, scores, blueprint)
    header = {"kind": _KIND, "criterion": criterion, "model_type": blueprint.family.model_type}
    save_tensors(path, {name: s.float().cpu() for name, s in scores.items()}, {**(details or {}), **header})


def load_importance(path: str | os.PathLike[str], blueprint: Blueprint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_importance` for a model: scores by parameter name, and criterion, model_type and details.

    Raises
    ------
    UserError
        If the file is missing or corrupt, holds something else, or its scores do not fit the model: another model type,
        a parameter that the model has not, or a grid that does not divide the parameter.
    """
    scores, metadata = load_tensors(path)
    if metadata.get("kind") != _KIND:
        raise UserError(f"{path} holds no importance scores")
    model_type = blueprint.family.model_type
    if metadata["model_type"] != model_type:
        raise UserError(f"{path} holds scores of a {metadata['model_type']!r} model, not of {model_type!r}")
    check_scores(path, scores, blueprint)
    return scores, metadata


def check_scores(path: str | os.PathLike[str], scores: Scores, blueprint: Blueprint) -> None:
    """Raise `UserError`, naming the file, unless all scores are finite and fit a parameter of the model."""
    for name, tensor in scores.items():
        if name not in blueprint.parameters:
            miss = near_miss(name, blueprint.parameters)
            raise UserError(f"{path}: scores of {name!r}, but {blueprint.architecture} has no such parameter{miss}")
        try:
            expand(tensor, blueprint.shape(name, {}), name)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: scores of {name!r} are not all finite")
