"""Models measured by EleutherAI's lm-evaluation-harness (lm_eval): optional, its data are mostly on the hub."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bootstrapnas.errors import UserError, near_miss
from bootstrapnas.tasks import TaskSpec

PACKAGE = "lm_eval"


def harness_tasks(names: str, spec: TaskSpec) -> list[str]:
    """Return the harness's tasks, or files of tasks (YAML), of a flag that separates them by commas.

    Raises
    ------
    UserError
        If lm_eval is not installed, knows no such task, or the model is of a task that is none of causal language.
    """
    if not spec.kind.causal:
        raise UserError(f"--lm_eval measures causal language models, but the model is one of task {spec.task_name}")
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError("--lm_eval needs lm-evaluation-harness: pip install 'bootstrapnas[lm_eval]'")
    chosen = [part.strip() for part in names.split(",") if part.strip()]
    if not chosen:
        raise UserError("--lm_eval names no task: pass such as hellaswag,arc_easy")
    known = importlib.import_module(f"{PACKAGE}.tasks").TaskManager().all_tasks
    for name in chosen:
        if name not in known and not Path(name).is_file():
            close = near_miss(name, known)
            raise UserError(f"--lm_eval: {name!r} is neither one of lm_eval's {len(known)} tasks nor a file{close}")
    return chosen


def measure_by_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[str],
    *,
    batch_size: int,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Return what the harness measures of a model, by task and metric (its names, such as ``acc,none``).

    Parameters
    ----------
    model
        A causal language model, an active supernet too; its device and dtype are used as they are.
    tokenizer
        Of the model.
    tasks
        Of `harness_tasks`.
    batch_size
        Rows of a batch.
    limit
        Only so many rows of each task.

    Raises
    ------
    UserError
        If a task or its data cannot be loaded.
    """
    huggingface = importlib.import_module(f"{PACKAGE}.models.huggingface")
    evaluator = importlib.import_module(f"{PACKAGE}.evaluator")
    model.eval()
    wrapped = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        found: dict[str, Any] = evaluator.simple_evaluate(wrapped, tasks=tasks, limit=limit, log_samples=False)
    except (OSError, ValueError, KeyError) as error:  # what datasets and the hub's client raise, and bad task files
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--lm_eval {','.join(tasks)}: {why} (most tasks need the hub for their data)") from error
    return {
        task: {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        for task, metrics in found["results"].items()
    }
