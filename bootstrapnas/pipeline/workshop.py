"""What stages have in common: the task they inherit, models, batches, evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from bootstrapnas.artefacts import STAGE_FILE, Stage, open_stage, read_stage, write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.distillation import Distillation, label_order
from bootstrapnas.errors import UserError
from bootstrapnas.evaluation import evaluation_dtype, predict
from bootstrapnas.extraction import load_config, load_failure, load_model, save_subnet
from bootstrapnas.families import family_of
from bootstrapnas.nncf_config import NNCFConfig, build_space, read_config
from bootstrapnas.pipeline.arguments import DistillationArguments, ModelArguments, StageTrainingArguments, TaskArguments
from bootstrapnas.progress import notice, warn
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import (
    BUILTIN_TEXT,
    TASK_FILE,
    Collator,
    TaskData,
    TaskSpec,
    batches,
    build_collator,
    build_task_spec,
    compute_metrics,
    export_builtin,
    load_task,
    tokenize,
)
from bootstrapnas.training import TEACHER_LOGITS, delete_checkpoints, last_checkpoint

if TYPE_CHECKING:
    from torch import nn

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
disable_progress_bars()

METRICS_FILE = "eval_results.json"
SPACE_FILE = "nncf_config.json"
# What does not decide a stage's result: where it writes, what it shows, how often it saves.
_INCIDENTAL = {
    "output_dir", "overwrite_output_dir", "model_name_or_path", "kd_teacher_model", "importance_weight_dir",
    "reorg_cache_model", "nncf_config", "supernet_dir", "search_dir", "source_config", "model_dir", "ir_dir",
    "disable_tqdm", "log_level", "logging_steps", "logging_strategy", "logging_first_step", "logging_dir", "report_to",
    "run_name", "save_strategy", "save_steps", "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory",
    "dataset_dir", "do_search",
}  # fmt: skip


# -- stages ------------------------------------------------------------------------------------------------------------


def begin(
    name: str,
    output_dir: str,
    typed: Mapping[str, Any],
    inputs: Mapping[str, str | None],
    *,
    overwrite: bool,
    settings: Mapping[str, Any] | None = None,
) -> Stage:
    """Open a stage whose result is decided by its typed flags, `settings` and the contents of its `inputs`.

    Inputs that a stage made must be finished and whole.
    """
    for value in inputs.values():
        if value is not None:
            check_whole(value)
    decided = {key: value for key, value in typed.items() if key not in _INCIDENTAL}
    stage = open_stage(output_dir, name, {**decided, **(settings or {})}, inputs, overwrite=overwrite)
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


def task_settings(spec: TaskSpec) -> dict[str, Any]:
    """Return what of a task decides a stage's result (not where its files lie)."""
    places = ("dataset_dir", "train_file", "validation_file", "test_file")
    entry = json.loads(json.dumps(vars(spec)))
    return {"task": {key: value for key, value in entry.items() if key not in places}}


# -- task --------------------------------------------------------------------------------------------------------------


def resolve_task(task: TaskArguments, *directories: str | None) -> TaskSpec:
    """Return the task that the flags name, or the one inherited from the first directory that has one.

    Flags that were given change the inherited task (its length, its number of rows, where its files lie).
    """
    limits: dict[str, Any] = {
        "max_seq_length": task.max_seq_length,
        "max_train_samples": task.max_train_samples,
        "max_validation_samples": task.max_eval_samples,
    }
    if task.task_name is not None or task.train_file is not None:
        return build_task_spec(
            task.task_name,
            dataset_dir=task.dataset_dir,
            train_file=task.train_file,
            validation_file=task.validation_file,
            test_file=task.test_file,
            text_columns=[c.strip() for c in task.text_columns.split(",")] if task.text_columns else None,
            label_column=task.label_column,
            **limits,
        )
    for directory in directories:
        if directory is not None and (Path(directory) / TASK_FILE).is_file():
            spec = TaskSpec.load(Path(directory) / TASK_FILE)
            changes: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
            if task.dataset_dir is not None:
                changes["dataset_dir"] = str(Path(task.dataset_dir).absolute())
            return replace(spec, **changes)
    looked = ", ".join(
        f"{directory} {f'has no {TASK_FILE}' if Path(directory).is_dir() else 'is no directory'}"
        for directory in directories
        if directory is not None
    )
    raise UserError(f"no task: pass --task_name or --train_file (there is none to inherit: {looked})")


def with_fixed_data(spec: TaskSpec, directory: Path) -> TaskSpec:
    """Write the built-in data set below `directory`, so that later stages read the very same rows."""
    if spec.task_name != BUILTIN_TEXT or spec.dataset_dir is not None:
        return spec
    return replace(spec, dataset_dir=str(export_builtin(directory / "data").absolute()))


class Rows:
    """A task's rows for one tokenizer: tokenized splits and batches of true length."""

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size of evaluations must be at least 1, not {batch_size}")
        self.spec, self.tokenizer, self.batch_size = spec, tokenizer, batch_size
        self.data: TaskData = load_task(spec)
        self.collator: Collator = build_collator(tokenizer)

    def split(self, name: str) -> Dataset:
        """Return a tokenized split: ``train``, ``validation``, ``validation_mismatched`` or ``test``."""
        rows = getattr(self.data, name)
        if rows is None:
            raise UserError(f"task {self.spec.task_name} has no labelled split {name!r}")
        return tokenize(rows, self.tokenizer, self.spec)

    def batches(self, name: str) -> list[dict[str, Any]]:
        """Return a split as batches of similar length."""
        return batches(self.split(name), self.collator, self.batch_size)

    def labels(self, name: str) -> np.ndarray:
        """Return the labels of a split, shape [rows]."""
        return np.asarray(getattr(self.data, name)["label"])


# -- models ------------------------------------------------------------------------------------------------------------


def load_tokenizer(directory_or_id: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer by hub id or directory."""
    try:
        return AutoTokenizer.from_pretrained(directory_or_id, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise load_failure("a tokenizer", directory_or_id, error) from error


def load_classifier(directory_or_id: str, spec: TaskSpec, seed: int = 42, **settings: Any) -> PreTrainedModel:
    """Load a model with the task's head; a head that the checkpoint lacks is initialised from `seed`.

    Returned in float32, whatever the checkpoint holds, its outputs in the order of the task's labels. `settings` are
    further changes to its config.
    """
    set_seed(seed)
    names = list(spec.label_names) or ["LABEL_0"]
    saved = load_config(directory_or_id)
    has_head = any("ForSequenceClassification" in name for name in saved.architectures or ())
    order = label_order(_labels(saved), names, whose=directory_or_id) if has_head else list(range(len(names)))
    model = load_model(
        directory_or_id,
        AutoModelForSequenceClassification,
        num_labels=spec.num_labels,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type=spec.problem_type,
        **settings,
    )
    if order != sorted(order):
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{model.base_model_prefix}.") and len(parameter) == len(order):
                parameter.data = parameter.data[order]
    return model.float()


def _labels(config: PreTrainedConfig) -> list[str]:
    return [config.id2label[index] for index in range(config.num_labels)]


def load_student(arguments: ModelArguments, spec: TaskSpec, training: StageTrainingArguments) -> PreTrainedModel:
    """Load the model that a stage trains, as its flags ask for."""
    settings: dict[str, Any] = {}
    if arguments.attn_implementation is not None:
        settings["attn_implementation"] = arguments.attn_implementation
    if arguments.dropout is not None:
        if not 0 <= arguments.dropout < 1:
            raise UserError(f"--dropout must be at least 0 and below 1, not {arguments.dropout}")
        names = family_of(load_config(arguments.model_name_or_path)).dropout
        settings |= dict.fromkeys(names, arguments.dropout)
    model = load_classifier(arguments.model_name_or_path, spec, training.seed, **settings)
    if training.freeze_embeddings:
        labelled = tuple(family_of(model.config).embeddings)
        for name, parameter in model.named_parameters():
            if name.endswith(labelled):
                parameter.requires_grad_(False)
    return model


def save_artefact(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: TaskSpec) -> None:
    """Write a model directory that later stages start from: weights, config, tokenizer, task."""
    save_subnet(model, directory)
    tokenizer.save_pretrained(directory)
    spec.save(directory / TASK_FILE)


# -- evaluation and distillation ---------------------------------------------------------------------------------------


def evaluate_model(model: nn.Module, rows: Rows, split: str, prepared: Sequence[Any] | None = None) -> dict[str, float]:
    """Return the task's metrics (fractions) of a model on a split, in the model's dtype."""
    logits = predict(model, prepared if prepared is not None else rows.batches(split))
    return measure_logits(rows, split, logits)


def measure_logits(rows: Rows, split: str, logits: np.ndarray) -> dict[str, float]:
    """Return the task's metrics (fractions) of a model's outputs, shape [rows, labels]; `UserError` if it diverged."""
    check_finite(logits, "the model's outputs")
    return compute_metrics(rows.spec, logits, rows.labels(split))


def check_finite(logits: np.ndarray, whose: str) -> None:
    """Raise `UserError` if outputs hold NaN or infinity."""
    if not np.isfinite(logits).all():
        raise UserError(f"{whose} hold NaN or infinity: its training diverged; train it with a lower --learning_rate")


def with_teacher_logits(rows: Rows, train: Dataset, teacher_path: str, arguments: StageTrainingArguments) -> Dataset:
    """Return the training rows with the teacher's outputs added, columns ordered as the task's labels.

    The teacher sees each row once, in eval mode, whatever the number of epochs and of subnets a step.
    """
    teacher = load_model(teacher_path, AutoModelForSequenceClassification)
    labels = rows.spec.label_names or ["LABEL_0"]
    order = label_order(_labels(teacher.config), labels, whose=f"the teacher {teacher_path}")
    teacher.to(arguments.device, evaluation_dtype("auto" if arguments.bf16 else "float32", arguments.device))
    prepared = batches(train, rows.collator, arguments.per_device_eval_batch_size)
    logits = predict(teacher, prepared)[:, order]
    del teacher
    check_finite(logits, f"the outputs of the teacher {teacher_path}")
    return train.add_column(TEACHER_LOGITS, list(logits))


def distillation_of(arguments: DistillationArguments, spec: TaskSpec) -> Distillation | None:
    """Return the distillation that the flags ask for, or None without a teacher."""
    if arguments.kd_teacher_model is None:
        return None
    if arguments.kd_temperature <= 0:
        raise UserError(f"--kd_temperature must be above 0, not {arguments.kd_temperature:g}")
    return Distillation(
        temperature=arguments.kd_temperature,
        task_weight=arguments.kd_task_weight,
        teacher_weight=arguments.kd_teacher_weight,
        regression=spec.is_regression,
    )


def steps_of_epoch(rows: int, training: StageTrainingArguments) -> int:
    """Return the number of optimiser steps of one epoch, as the Trainer counts them."""
    batch = training.train_batch_size * training.world_size
    micro = rows // batch if training.dataloader_drop_last else math.ceil(rows / batch)
    return max(1, math.ceil(micro / training.gradient_accumulation_steps))


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


# -- configs -----------------------------------------------------------------------------------------------------------


def report_config(config: NNCFConfig) -> None:
    """Say which keys of a config change nothing."""
    for key, reason in config.ignored:
        warn(f"{config.path}: {key} has no effect: {reason}")


def preferred(typed: Mapping[str, Any], flag: str, default: Any, key: str, in_config: Any) -> Any:
    """Return the value of a flag that was typed, else the config's, else the flag's default.

    A typed flag that contradicts the config wins, with a warning.
    """
    if in_config is None:
        return typed.get(flag, default)
    if flag in typed and typed[flag] != in_config:
        warn(f"--{flag} {typed[flag]} wins over the config's {key} = {in_config}")
    return typed.get(flag, in_config)


# -- supernets ---------------------------------------------------------------------------------------------------------


def inherited_task(directory: str) -> TaskSpec:
    """Return the task of an artefact directory."""
    if not (Path(directory) / TASK_FILE).is_file():
        raise UserError(f"{directory} has no {TASK_FILE}: it was not made by this program")
    return TaskSpec.load(Path(directory) / TASK_FILE)


def load_supernet(directory: str, spec: TaskSpec) -> tuple[Supernet, NNCFConfig]:
    """Load a trained supernet and the config that describes its space."""
    read_stage(directory, "train")
    config = read_config(Path(directory) / SPACE_FILE)
    model = load_classifier(directory, spec)
    return Supernet(model, build_space(config, Blueprint.of(model))), config
