"""The commands in the tests' own process, and the NNCF config of the tiny BERT."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from bootstrapnas.cli import main as bootstrapnas_main
from bootstrapnas.pipeline.cli import to_arguments
from bootstrapnas.training import StageTrainer
from eftnas.cli import main as eftnas_main
from lonas.cli import main as lonas_main

PROGRAMS = {"bootstrapnas": bootstrapnas_main, "eftnas": eftnas_main, "lonas": lonas_main}
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


def call(arguments: list[str], program: str = "eftnas") -> Outcome:
    """Run ``eftnas``, or another of the `PROGRAMS`, with `arguments`."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = PROGRAMS[program](arguments)
    return Outcome(status, out.getvalue(), err.getvalue())


def contents(root: Path) -> dict[str, tuple[int, ...]]:
    """Return of every file what writing or replacing it changes."""
    paths = [os.path.join(parent, name) for parent, _, names in os.walk(root) for name in names]
    states = zip(paths, map(os.stat, paths), strict=True)
    return {os.path.relpath(path, root): (at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for path, at in states}


def refused(command: str, message: str, world: Path, program: str = "eftnas") -> None:
    """Assert that a command ends with status 2 and one line, `message`, and changes no file of the working directory.

    An ellipsis stands for other libraries' words. What a command is to write is called ``new``.
    """
    new = Path("new")
    shutil.rmtree(new, ignore_errors=True)
    before = contents(world)
    outcome = call(shlex.split(command), program)
    told = [line for line in outcome.err.splitlines() if line.startswith(f"{program}: error: ")]
    assert len(told) == 1, outcome.err
    assert re.fullmatch(re.escape(f"{program}: error: {message}").replace("…", ".+"), told[0]), outcome.err
    assert outcome.err.endswith(f"{told[0]}\n")
    assert (outcome.status, outcome.out) == (2, "")
    after = {name: state for name, state in contents(world).items() if Path(name).parts[0] != "new"}
    assert after == before
    assert not new.exists()


def succeed(command: str, **flags: Any) -> Outcome:
    """Run a command that must succeed."""
    outcome = eftnas(command, **flags)
    assert outcome.status == 0, outcome.err
    return outcome


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Interrupt trainings inside the ``with`` block before a step, as Ctrl-C does."""
    whole = StageTrainer.training_step

    def interrupted(self: StageTrainer, *arguments: Any, **settings: Any) -> Tensor:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return whole(self, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", interrupted)
        yield


def metrics_of(**flags: Any) -> dict[str, float]:
    """Return what ``eftnas evaluate`` prints, in float32."""
    return dict(json.loads(succeed("evaluate", precision="float32", **flags).out))


def write_config(path: Path, change: Callable[[dict[str, Any]], object] = lambda config: None) -> Path:
    """Write `CONFIG`, changed in place by `change`."""
    config = copy.deepcopy(CONFIG)
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")
    return path
