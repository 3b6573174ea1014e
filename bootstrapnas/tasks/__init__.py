"""Tasks: their rows, labels, metrics, tokens and batches. Nothing outside this package knows one task from another."""

from bootstrapnas.tasks.baseline import tfidf_baseline
from bootstrapnas.tasks.batching import (
    Collator,
    batches,
    build_collator,
    tokenize,
    tokenize_to_measure,
    training_columns,
)
from bootstrapnas.tasks.build import TASK_NAMES, build_task_spec, changed_settings, tasks_for
from bootstrapnas.tasks.builtin import BUILTIN_TEXT, BUILTINS, export_builtin
from bootstrapnas.tasks.generation import Generation, generate, generate_by_ir
from bootstrapnas.tasks.kind import Head, Kind
from bootstrapnas.tasks.loading import TaskData, data_files, holds_out, load_file, load_task, why_no_rows
from bootstrapnas.tasks.metrics import METRICS
from bootstrapnas.tasks.scoring import compute_metrics, predictions, write_predictions
from bootstrapnas.tasks.settings import AnswerSettings
from bootstrapnas.tasks.spec import SETTINGS, TASK_FILE, TaskSpec
from bootstrapnas.tasks.tokenizer import train_tokenizer

__all__ = [
    "BUILTINS",
    "BUILTIN_TEXT",
    "METRICS",
    "SETTINGS",
    "TASK_FILE",
    "TASK_NAMES",
    "AnswerSettings",
    "Collator",
    "Generation",
    "Head",
    "Kind",
    "TaskData",
    "TaskSpec",
    "batches",
    "build_collator",
    "build_task_spec",
    "changed_settings",
    "compute_metrics",
    "data_files",
    "export_builtin",
    "generate",
    "generate_by_ir",
    "holds_out",
    "load_file",
    "load_task",
    "predictions",
    "tasks_for",
    "tfidf_baseline",
    "tokenize",
    "tokenize_to_measure",
    "train_tokenizer",
    "training_columns",
    "why_no_rows",
    "write_predictions",
]
