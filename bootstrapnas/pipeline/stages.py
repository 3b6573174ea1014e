"""What stages do alike: open and finish their output directory, weigh flags against the config, resume."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from bootstrapnas.artefacts import STAGE_FILE, Stage, open_stage, read_stage, write_json
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.nncf_config import NNCFConfig
from bootstrapnas.pipeline.arguments import StageTrainingArguments, TaskArguments
from bootstrapnas.pipeline.cli import Typed
from bootstrapnas.progress import notice, warn
from bootstrapnas.training import delete_checkpoints, last_checkpoint

METRICS_FILE = "eval_results.json"
# What does not decide a stage's result: where it writes, what it shows, how often it saves.
_INCIDENTAL = {
    "output_dir", "overwrite_output_dir", "model_name_or_path", "kd_teacher_model", "importance_weight_dir",
    "external_importance_path", "nncf_dir", "adapter_dir", "kd_cache_dir",
    "reorg_cache_model", "nncf_config", "supernet_dir", "search_dir", "source_config", "model_dir", "ir_dir",
    "calibration_file",
    "disable_tqdm", "log_level", "logging_steps", "logging_strategy", "logging_first_step", "logging_dir", "report_to",
    "run_name", "save_strategy", "save_steps", "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory",
    "latency_table", "dataset_dir", "train_file", "validation_file", "test_file", "do_search",
}  # fmt: skip
_GIVE_WAY = {
    "num_train_epochs", "learning_rate", "kd_mode", "kd_temperature", "kd_task_weight", "kd_teacher_weight",
}  # fmt: skip
"""Flags whose default gives way to an NNCF config: named at it, they say something there."""


WITHOUT_EFFECT = {
    "resume_from_checkpoint": "an interrupted stage resumes by itself when its command is given again",
    "do_train": "the command says what is done",
    "do_eval": "the command says what is done",
    "do_predict": "eftnas evaluate --predict writes predictions",
    "remove_unused_columns": "the collator decides what reaches the model",
    "push_to_hub": "a stage writes to its output_dir only",
}
"""Hugging Face's flags that change nothing here, and why."""


def begin(
    name: str,
    output_dir: str,
    typed: Mapping[str, Any],
    inputs: Mapping[str, str | None],
    *,
    overwrite: bool,
    settings: Mapping[str, Any] | None = None,
    reusable: Collection[str] = (),
    incidental: Collection[str] = (),
) -> Stage:
    """Open a stage whose result is decided by its flags, `settings` and the contents of its `inputs`.

    Its typed flags are recorded but for `incidental` ones, which do not decide it. Another run of the same output may
    name a flag at its default, or one of the task that comes to the same task. Inputs that a stage made must be
    finished and whole. `reusable` is as `open_stage` has it.
    """
    for value in inputs.values():
        if value is not None:
            check_whole(value)
    for flag, reason in WITHOUT_EFFECT.items():
        if flag in typed:
            warn(f"--{flag} has no effect: {reason}")
    aside = {*_INCIDENTAL, *WITHOUT_EFFECT, *incidental}
    decided = {key: value for key, value in typed.items() if key not in aside}
    decided |= settings or {}
    if "task" in decided:  # all that flags say of it
        aside |= {field.name for field in fields(TaskArguments)}
    defaults = dict(typed.defaults) if isinstance(typed, Typed) else {}
    if inputs.get("nncf_config") is not None:
        defaults = {key: value for key, value in defaults.items() if key not in _GIVE_WAY}

    def effective(given: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in {**defaults, **given}.items() if key not in aside}

    stage = open_stage(output_dir, name, decided, inputs, overwrite=overwrite, reusable=reusable, effective=effective)
    if stage.finished:
        notice(f"{name}: finished already in {output_dir}")
    else:
        notice(f"{name}: {'resuming' if stage.resuming else 'writing'} {output_dir}")
    return stage


def check_whole(source: str) -> None:
    """Raise `UserError` if a directory (or the one that holds a file) was made by a stage and is not finished or whole.

    Hub ids and directories of other origin pass.
    """
    directory = Path(source) if Path(source).is_dir() else Path(source).parent
    if (directory / STAGE_FILE).is_file():
        read_stage(directory)


def report_config(config: NNCFConfig) -> None:
    """Say which keys of a config change nothing."""
    for key, reason in config.ignored:
        warn(f"{config.path}: {key} has no effect: {reason}")


def preferred(typed: Mapping[str, Any], flag: str, default: Any, key: str, in_config: Any) -> Any:
    """Return the value of a flag that was typed, else the config's, else the flag's default.

    A typed flag that contradicts the config wins, with a warning. One that has a default is among `_GIVE_WAY`.
    """
    if in_config is None:
        return typed.get(flag, default)
    if flag in typed and typed[flag] != in_config:
        warn(f"--{flag} {typed[flag]} wins over the config's {key} = {in_config}")
    return typed.get(flag, in_config)


def settle_best(
    training: StageTrainingArguments, typed: Mapping[str, Any], metrics: Sequence[str], less_is_better: Sequence[str]
) -> None:
    """Let ``--load_best_model_at_end`` and ``--save_strategy best`` go by one of `metrics`, by default the first.

    `metrics` are what evaluations during training measure; of all but `less_is_better` more is better.
    """
    if not training.load_best_model_at_end and training.save_strategy != "best":
        return
    chosen = str(typed.get("metric_for_best_model") or metrics[0]).removeprefix("eval_")
    if chosen not in metrics:
        raise UserError(
            f"--metric_for_best_model {chosen}: evaluations measure {listed(metrics)}{near_miss(chosen, metrics)}"
        )
    greater = chosen not in less_is_better
    if typed.get("greater_is_better", greater) is not greater:
        raise UserError(
            f"--greater_is_better {typed['greater_is_better']}: {'more' if greater else 'less'} of {chosen} is better"
        )
    training.metric_for_best_model, training.greater_is_better = chosen, greater


def steps_of_epoch(rows: int, training: StageTrainingArguments) -> int:
    """Return the number of optimiser steps of one epoch, as the Trainer counts them."""
    batch = training.train_batch_size * training.world_size
    micro = rows // batch if training.dataloader_drop_last else math.ceil(rows / batch)
    return max(1, math.ceil(micro / training.gradient_accumulation_steps))


def tell_metrics(stage: Stage, metrics: Mapping[str, float]) -> None:
    """Say what a stage's model reaches on the validation rows."""
    reached = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    notice(f"{stage.name}: {reached or 'no rows are there to validate on (--val_set_size 0)'}")


def finish(stage: Stage, metrics: Mapping[str, float], **result: Any) -> None:
    """Write the metrics, delete checkpoints, mark the stage complete."""
    write_json(stage.directory / METRICS_FILE, dict(metrics))
    delete_checkpoints(stage.directory)
    stage.complete(**{f"eval_{name}": value for name, value in metrics.items()}, **result)


def resume_point(stage: Stage) -> str | None:
    """Return the checkpoint to resume from, if the stage was interrupted."""
    found = last_checkpoint(stage.directory) if stage.resuming else None
    if found is not None:
        notice(f"{stage.name}: resuming from {found.name}")
    return None if found is None else str(found)
