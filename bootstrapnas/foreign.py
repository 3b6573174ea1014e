"""Tensors that another program wrote, read without running any code of the file."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bootstrapnas.artefacts import load_tensors
from bootstrapnas.errors import UserError


def load_foreign_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read tensors by name that another program wrote: safetensors, if the name says so, else by ``torch.save``.

    Raises
    ------
    UserError
        If the file is missing or damaged, needs code to be read, or holds something else.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it needs the code of {needed[1]}" if needed else str(error).strip().partition("\n")[0].partition(". ")[0]
        )
        raise UserError(f"{path} is neither safetensors nor a file of tensors by torch.save: {reason}") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UserError(f"{path} must hold a mapping from names to tensors")
    return {str(name): tensor for name, tensor in found.items()}
