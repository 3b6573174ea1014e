"""The ``eftnas`` command in the tests' own process, and the NNCF config of the tiny BERT."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from bootstrapnas.pipeline.cli import to_arguments
from eftnas.cli import main

LENGTH = 32
CONFIG: dict[str, Any] = {
    "input_info": [{"sample_size": [1, LENGTH], "type": "long", "keyword": "input_ids"}],
    "compression": {
        "algorithm": "movement_sparsity",
        "params": {"warmup_start_epoch": 1, "warmup_end_epoch": 6, "importance_regularization_factor": 0.002},
        "sparse_structure_by_scopes": [
            {"mode": "block", "sparse_factors": [16, 16], "target_scopes": "{re}.*Attention.*"},
            {"mode": "per_dim", "axis": 0, "target_scopes": r"{re}.*(Intermediate|\[Wi\]).*"},
            {"mode": "per_dim", "axis": 1, "target_scopes": r"{re}.*((Bert|Roberta)Output|MLP\[mlp\]/\w+\[Wo\]).*"},
        ],
        "ignored_scopes": ["{re}.*pooler.*", "{re}.*classifier.*", r"{re}.*\[head\].*"],
    },
    "bootstrapNAS": {
        "training": {
            "progressivity_of_elasticity": ["width", "depth"],
            "schedule": {
                "list_stage_descriptions": [
                    {"train_dims": ["width", "depth"], "epochs": -1, "init_lr": -1, "width_indicator": -1}
                ]
            },
            "elasticity": {"available_elasticity_dims": ["width", "depth"]},
        },
        "search": {"algorithm": "NSGA2", "num_evals": 20, "population": 5},
    },
}


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str


def eftnas(command: str, **flags: Any) -> Outcome:
    """Run ``eftnas <command> --<flag> <value> …``."""
    return call([command, *to_arguments(flags)])


def call(arguments: list[str]) -> Outcome:
    """Run ``eftnas`` with `arguments`."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = main(arguments)
    return Outcome(status, out.getvalue(), err.getvalue())


def succeed(command: str, **flags: Any) -> Outcome:
    """Run a command that must succeed."""
    outcome = eftnas(command, **flags)
    assert outcome.status == 0, outcome.err
    return outcome


def metrics_of(**flags: Any) -> dict[str, float]:
    """Return what ``eftnas evaluate`` prints, in float32."""
    return dict(json.loads(succeed("evaluate", precision="float32", **flags).out))


def write_config(path: Path, change: Callable[[dict[str, Any]], object] = lambda config: None) -> Path:
    """Write `CONFIG`, changed in place by `change`."""
    config = copy.deepcopy(CONFIG)
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")
    return path
