"""A tiny LLaMA on disk and rows of commonsense for it, and the ``lonas`` command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import torch
from causal_models import build_causal, build_tokenizer
from command_line import call

TARGETS = "--target_modules q_proj,v_proj,up_proj"


def write_model(path: str, seed: int = 0, *, ffn: int = 48, dtype: torch.dtype = torch.float32) -> None:
    """Write a LLaMA of two layers with a tokenizer."""
    model = build_causal("llama", seed, num_hidden_layers=2, max_position_embeddings=256, intermediate_size=ffn)
    model.to(dtype).save_pretrained(path)
    build_tokenizer().save_pretrained(path)


def write_rows(path: str, count: int, **changes: Any) -> None:
    """Write rows of commonsense; the third has `changes`, where None leaves a field out."""
    rows: list[dict[str, Any]] = [
        {
            "instruction": f"what is {number}?\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2",
            "input": "",
            "output": f"the correct answer is answer{1 + number % 2}",
            "answer": f"answer{1 + number % 2}",
            "source": "openbookqa",
        }
        for number in range(count)
    ]
    rows[2] = {name: value for name, value in (rows[2] | changes).items() if value is not None}
    Path(path).write_text(json.dumps(rows))


def lonas(command: str) -> str:
    """Run a command that must succeed; return what it printed."""
    outcome = call(shlex.split(command), "lonas")
    assert outcome.status == 0, outcome.err
    return outcome.out
