"""From what a user gives on the command line to a `TaskSpec`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.tasks import builtin_text
from bootstrapnas.tasks.builtin import BUILTIN_TEXT
from bootstrapnas.tasks.files import Table, find_split, read_table
from bootstrapnas.tasks.kinds import KINDS
from bootstrapnas.tasks.known import ALIASES, KNOWN
from bootstrapnas.tasks.labels import infer_labels
from bootstrapnas.tasks.question_answering import COLUMNS, LABEL_COLUMN, is_question_answering
from bootstrapnas.tasks.settings import AnswerSettings, ProblemType
from bootstrapnas.tasks.spec import SETTINGS, TaskSpec
from bootstrapnas.tasks.token_classification import columns_of, flat_tags, is_token_classification

StrPath = str | os.PathLike[str]

FILES = "files"
TASK_NAMES = (*KNOWN, BUILTIN_TEXT, FILES)
_OWN_TEXTS = "text"
_OWNERS = {"answers": "question answering", "instructions": "instructions", "masking": "masked language modelling"}
_MAX_SEQ_LENGTH = 128
_ANSWERS_MAX_SEQ_LENGTH = 384
_BUILTIN_MAX_SEQ_LENGTH = 80  # tokens; cuts 7 % of the rows with BERT's vocabulary (median 55)
# Column names that data sets use, the most telling first.
_USUAL_TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
    ("text",),
    ("sentence",),
)


def build_task_spec(
    task_name: str | None = None,
    *,
    dataset_dir: StrPath | None = None,
    train_file: StrPath | None = None,
    validation_file: StrPath | None = None,
    test_file: StrPath | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    problem_type: ProblemType | None = None,
    metric: str | None = None,
    max_seq_length: int | None = None,
    max_train_samples: int | None = None,
    max_validation_samples: int | None = None,
    val_set_size: int | None = None,
    seed: int = 0,
    answers: Mapping[str, Any] | None = None,
    instructions: Mapping[str, Any] | None = None,
    masking: Mapping[str, Any] | None = None,
) -> TaskSpec:
    """Complete what the user gave of a task by what is known of it or read from its training file.

    Parameters
    ----------
    task_name
        One of `KNOWN`, ``"builtin-text"`` or ``"files"``; None means ``"files"`` when a training file is given, and
        ``"text"`` when that is a text.
    dataset_dir
        For known tasks and builtin-text: directory of ``{train,validation,test}.jsonl`` (or .csv, .gz), or of a
        subdirectory of the task's name that holds them. MNLI: ``validation_matched`` and ``validation_mismatched``.
    train_file, validation_file, test_file
        For ``"files"`` and the tasks that take files of one's own, such as ``"text"``.
    text_columns, label_column, problem_type
        For ``"files"``: None looks for usual column names, and decides by the labels.
    metric
        What stages select by, as `TaskSpec.metric_named` knows it; None takes the task's usual one.
    max_seq_length
        Tokens; None is 128, and 384 for question answering, 512 for imdb and texts, 80 for builtin-text.
    max_train_samples, max_validation_samples, val_set_size, seed
        As in `TaskSpec`.
    answers, instructions, masking
        What is not as usual in the `AnswerSettings` of question answering, the `InstructionSettings`, or the
        `MaskingSettings`.

    Raises
    ------
    UserError
        If the task or metric is unknown, arguments contradict each other, or a file lacks what the task needs.
    """
    if task_name is None:
        if train_file is None:
            raise UserError(f"no task: pass --task_name (one of {listed(TASK_NAMES)}) or --train_file")
        task_name = _OWN_TEXTS if Path(train_file).name.removesuffix(".gz").endswith(".txt") else FILES
    task_name = ALIASES.get(task_name, task_name)
    if task_name not in TASK_NAMES:
        raise UserError(
            f"unknown task {task_name!r}{near_miss(task_name.lower(), TASK_NAMES)}; known: {listed(TASK_NAMES)}"
        )
    file_arguments = {
        "train_file": train_file,
        "validation_file": validation_file,
        "test_file": test_file,
        "text_columns": text_columns,
        "label_column": label_column,
        "problem_type": problem_type,
    }
    own = KNOWN[task_name] if task_name in KNOWN and KNOWN[task_name].own_files else None
    if own is not None:
        if train_file is None and dataset_dir is None and own.parts:
            raise UserError(
                f"task {task_name} has no source on the hub: pass --train_file, --dataset_dir or both, with the files "
                "of LLM-Adapters (https://github.com/AGI-Edgerunners/LLM-Adapters: ft-training_set/, dataset/)"
            )
        if (train_file is None) == (dataset_dir is None) and not own.parts:
            raise UserError(f"task {task_name} needs either --train_file or --dataset_dir")
        for name in ("label_column", "problem_type"):
            if file_arguments[name] is not None:
                raise UserError(f"task {task_name} takes no --{name}")
    elif task_name == FILES:
        for name in ("train_file", "validation_file"):
            if file_arguments[name] is None:
                raise UserError(f"task files needs --{name}")
        if dataset_dir is not None:
            raise UserError("task files takes --train_file and --validation_file, not --dataset_dir")
    else:
        for name, value in file_arguments.items():
            if value is not None:
                raise UserError(f"--{name} is for the task files; {task_name} takes its files from --dataset_dir")
    if dataset_dir is not None and not Path(dataset_dir).is_dir():
        raise UserError(f"dataset_dir {dataset_dir} does not exist or is not a directory")

    length = _MAX_SEQ_LENGTH
    settings: dict[str, Any] = dict.fromkeys(SETTINGS)
    if task_name in KNOWN:
        known = KNOWN[task_name]
        columns, label_names, label_column = known.text_columns, known.label_names, known.label_column
        problem_type, length = known.problem_type, known.max_seq_length
        settings = {name: getattr(known, name) for name in SETTINGS}
        columns = tuple(text_columns) if text_columns else columns
    elif task_name == BUILTIN_TEXT:
        columns, label_names, label_column = ("text",), _builtin_labels(dataset_dir), "label"
        problem_type, length = "single_label_classification", _BUILTIN_MAX_SEQ_LENGTH
    else:
        assert train_file is not None
        table = read_table(train_file)
        if problem_type is None and is_question_answering(table, text_columns, label_column):
            problem_type = "question_answering"
        if problem_type is None and is_token_classification(table, text_columns, label_column):
            problem_type = "token_classification"
        if problem_type == "question_answering":
            columns, label_names = tuple(text_columns or COLUMNS), ()
            label_column, length = label_column or LABEL_COLUMN, _ANSWERS_MAX_SEQ_LENGTH
            settings["answers"] = AnswerSettings()
            read_table(train_file, [*columns, label_column])
        elif problem_type == "token_classification":
            columns, label_column = columns_of(table, text_columns, label_column, str(train_file))
            where = f"{train_file}, column {label_column!r}"
            values = read_table(train_file, [*columns, label_column])[label_column]
            tags = flat_tags(values, where, range(len(values)))
            label_names = infer_labels(tags, where, "single_label_classification")[1]
        else:
            label_column = label_column or "label"
            columns = tuple(text_columns) if text_columns else _find_text_columns(table, train_file)
            values = read_table(train_file, [*columns, label_column])[label_column]
            where = f"{train_file}, column {label_column!r}"
            problem_type, label_names = infer_labels(values, where, problem_type)
    given = {"answers": answers, "instructions": instructions, "masking": masking}
    settings = changed_settings(settings, given, task_name)
    spec = TaskSpec(
        task_name=task_name,
        text_columns=columns,
        label_names=label_names,
        problem_type=problem_type,
        metric=KNOWN[task_name].metrics[0] if task_name in KNOWN and not settings["instructions"] else "",
        max_seq_length=length if max_seq_length is None else max_seq_length,
        label_column=label_column,
        dataset_dir=_absolute(dataset_dir),
        train_file=_absolute(train_file),
        validation_file=_absolute(validation_file),
        test_file=_absolute(test_file),
        val_set_size=val_set_size,
        max_train_samples=max_train_samples,
        max_validation_samples=max_validation_samples,
        seed=seed,
        **settings,
    )
    return spec if metric is None else replace(spec, metric=spec.metric_named(metric))


def tasks_for(architectures: Sequence[str] | None) -> tuple[str, ...]:
    """Return the tasks on a user's own files that models of a config's ``architectures`` have the head for."""
    heads = {name: KINDS[known.problem_type].head for name, known in KNOWN.items() if known.own_files}
    return tuple(name for name, head in heads.items() if head.is_in(list(architectures or ())))


def changed_settings(
    settings: Mapping[str, Any], given: Mapping[str, Mapping[str, Any] | None], task_name: str
) -> dict[str, Any]:
    """Return the settings of a task, by the field of `TaskSpec`, with what was given of each put in.

    Raises
    ------
    UserError
        If something was given that the task has not.
    """
    changed = dict(settings)
    for name, values in given.items():
        if not values:
            continue
        if settings[name] is None:
            raise UserError(f"--{next(iter(values))} is for {_OWNERS[name]}, which task {task_name} is not")
        changed[name] = replace(settings[name], **values)
    return changed


def _absolute(path: StrPath | None) -> str | None:
    """Make a path absolute: later stages inherit the task and may run elsewhere."""
    return None if path is None else str(Path(path).absolute())


def _builtin_labels(dataset_dir: StrPath | None) -> tuple[str, ...]:
    if dataset_dir is None:
        return tuple(sorted(builtin_text.find_packages()))
    path = find_split(dataset_dir, BUILTIN_TEXT, "train")
    if path is None:
        raise UserError(f"dataset_dir {dataset_dir} holds no train.jsonl of the task {BUILTIN_TEXT}")
    return infer_labels(read_table(path, ["text", "label"])["label"], str(path))[1]


def _find_text_columns(table: Table, path: StrPath) -> tuple[str, ...]:
    for columns in _USUAL_TEXT_COLUMNS:
        if all(column in table for column in columns):
            return columns
    usual = sorted({column for columns in _USUAL_TEXT_COLUMNS for column in columns})
    close = next((hint for column in table if (hint := near_miss(column, usual))), "")
    raise UserError(
        f"{path} has no column 'text' or 'sentence', nor a usual pair such as 'sentence1' and 'sentence2'; "
        f"name yours by --text_columns; found: {', '.join(table)}{close}"
    )
