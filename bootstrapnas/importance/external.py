"""Scores that another program made."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.errors import UserError
from bootstrapnas.foreign import load_foreign_tensors
from bootstrapnas.importance.store import check_scores
from bootstrapnas.nncf_config import module_path

EXTERNAL = "external"


def load_external(path: str | os.PathLike[str], blueprint: Blueprint) -> dict[str, Tensor]:
    """Read scores by the name of a parameter or of one of NNCF's nodes, which stands for its weight.

    Parameters
    ----------
    path
        safetensors, if the name says so; else what ``torch.save`` made of a mapping to tensors (NNCF's
        ``external_importance_path``). No code in it is run.
    blueprint
        The model that the scores are for: tensors have the parameter's shape or are a grid that divides it.

    Raises
    ------
    UserError
        If the file is missing, holds something else, or does not fit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"external_importance_path {path} does not exist")
    found = load_foreign_tensors(path)
    scores: dict[str, Tensor] = {}
    for name, tensor in found.items():
        parameter = name if name in blueprint.parameters or "/" not in name else f"{module_path(name)}.weight"
        if parameter in scores:
            raise UserError(f"{path}: {name!r} is the second entry with scores of {parameter!r}")
        scores[parameter] = tensor.float()
    if not scores:
        raise UserError(f"{path} holds no scores")
    check_scores(path, scores, blueprint)
    return scores
