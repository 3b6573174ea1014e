"""From a `TaskSpec` to rows: one shape for every task, whatever the source."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bootstrapnas.errors import UserError
from bootstrapnas.tasks.builtin import BUILTINS
from bootstrapnas.tasks.files import ROW, Table, find_split, read_table
from bootstrapnas.tasks.known import KNOWN
from bootstrapnas.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from datasets import Dataset

# The files that may hold a split, the first found is taken. Only MNLI has two validation sets; the matched one selects.
_SPLITS = {
    "train": ("train",),
    "validation": ("validation_matched", "validation"),
    "validation_mismatched": ("validation_mismatched",),
    "test": ("test",),
}
_REQUIRED = ("train", "validation")
PART = ":"
"""What stands between a split and a data set that is a part of the task."""
_HELD_OUT_SEED = 0


@dataclass(frozen=True)
class TaskData:
    """The rows of a task by split, in the columns of its kind; None where there are none."""

    spec: TaskSpec
    train: Dataset | None
    validation: Dataset | None
    test: Dataset | None = None
    validation_mismatched: Dataset | None = None

    def split(self, name: str) -> Dataset:
        """Return the rows of a split; `UserError` if there are none."""
        rows: Dataset | None = getattr(self, name)
        if rows is None:
            raise UserError(why_no_rows(self.spec, name))
        return rows


def load_task(spec: TaskSpec, max_test_samples: int | None = None) -> TaskData:
    """Load the rows of a task, of the test split so many at most.

    Rows of the test split that have no label (GLUE's -1) are dropped; a test split without any label is None. Of a data
    set without a validation split (IMDB), a share of the training rows validates instead, or none of them if
    ``val_set_size`` is 0. A training file of one's own that is gone is missed where its rows are asked for, as long as
    others validate: what a model was trained on need not be there to measure or export it.

    Raises
    ------
    UserError
        If a source is missing or unreachable, or a row lacks a text or has a label that the task does not know.
    """
    files = data_files(spec)
    if "validation" in files and not files["train"].exists():
        del files["train"]
    if files:
        tables = {split: _read(spec, path) for split, path in files.items() if PART not in split}
        sources = {split: str(path) for split, path in files.items() if PART not in split}
        _add_parts(spec, tables, sources, {split: path for split, path in files.items() if PART in split})
    elif spec.task_name in BUILTINS:
        rows = BUILTINS[spec.task_name]()
        columns = dict.fromkeys((*spec.columns, *spec.kind.optional_columns))
        tables = {
            split: {name: [row[name] for row in found] for name in columns if name in found[0]}
            for split, found in rows.items()
        }
        sources = {split: f"{spec.task_name} ({split})" for split in rows}
    else:
        tables = _from_hub(spec)
        sources = {split: f"{' '.join(KNOWN[spec.task_name].hub)} ({split})" for split in tables}

    tables = {split: _arranged(spec, table) for split, table in tables.items()}
    if "validation" not in tables and spec.val_set_size != 0:
        tables["train"], tables["validation"] = _hold_out(tables["train"], spec, sources["train"])
        sources["validation"] = f"{sources['train']}, held out"
    elif "validation" in tables and spec.val_set_size:
        raise UserError(
            f"--val_set_size {spec.val_set_size}: there are rows to validate on already ({sources['validation']}); "
            "--max_eval_samples takes fewer of them"
        )
    most = {"train": spec.max_train_samples, "validation": spec.max_validation_samples}
    most |= {"validation_mismatched": spec.max_validation_samples, "test": max_test_samples}
    loaded: dict[str, Dataset] = {}
    for split, table in tables.items():
        if split == "test" and spec.label_column:
            table = _labelled(spec, table)
        table = _subset(table, most.get(split), spec.seed)
        if table[spec.columns[-1]]:
            loaded[split] = spec.kind.rows(spec, table, split, sources[split])
        elif split in _REQUIRED:
            raise UserError(f"{sources[split]} holds no rows for the task {spec.task_name}")
    return TaskData(
        spec, loaded.get("train"), loaded.get("validation"), loaded.get("test"), loaded.get("validation_mismatched")
    )


def load_file(spec: TaskSpec, path: str | Path) -> Dataset:
    """Load the rows of one more file of a task, as rows to train on.

    Raises
    ------
    UserError
        If the file is missing, is one of another task or holds no rows.
    """
    table = _arranged(spec, _read(spec, path))
    if not table[spec.columns[-1]]:
        raise UserError(f"{path} holds no rows for the task {spec.task_name}")
    return spec.kind.rows(spec, table, "train", str(path))


def data_files(spec: TaskSpec) -> dict[str, Path]:
    """Return the local files of a task by split; none if its rows come from the hub or the installed packages.

    Those of a data set that is a part of the task are called ``"<split>:<part>"``.

    Raises
    ------
    UserError
        If the task's directory lacks a split that stages need.
    """
    if spec.train_file is not None:
        named = {"train": spec.train_file, "validation": spec.validation_file, "test": spec.test_file}
        own = {split: Path(path) for split, path in named.items() if path is not None}
        test = None if spec.dataset_dir is None else find_split(spec.dataset_dir, spec.task_name, "test")
        return ({} if test is None else {"test": test}) | own | _part_files(spec)
    if spec.dataset_dir is None:
        return {}
    found = {split: find_split(spec.dataset_dir, spec.task_name, *names) for split, names in _SPLITS.items()}
    for split in _REQUIRED:
        if found[split] is None and not (split == "validation" and held_out(spec)):
            raise UserError(
                f"dataset_dir {spec.dataset_dir} holds no {split}.jsonl of the task {spec.task_name} "
                f"(looked there and in its subdirectory {spec.task_name})"
            )
    return {split: path for split, path in found.items() if path is not None} | _part_files(spec)


def _part_files(spec: TaskSpec) -> dict[str, Path]:
    """Return the test files (for want of one, the validation files) in directories of the data sets of a task."""
    if spec.dataset_dir is None:
        return {}
    found = {}
    for part in spec.parts:
        path = (
            find_split(spec.dataset_dir, part, "test", "validation") if Path(spec.dataset_dir, part).is_dir() else None
        )
        if path is not None:
            found[f"test{PART}{part}"] = path
    return found


def _add_parts(spec: TaskSpec, tables: dict[str, Table], sources: dict[str, str], files: Mapping[str, Path]) -> None:
    """Add the rows of data sets that the test split has none of yet; all rows are called by their files then, too."""
    there = set(tables.get("test", {}).get("source", ()))
    missing = [
        (split, part, path)
        for name, path in files.items()
        for split, _, part in [name.partition(PART)]
        if part not in there
    ]
    for split in tables.keys() & {split for split, _, _ in missing}:
        tables[split] = _of_file(tables[split], sources[split])
    for split, part, path in missing:
        table = _of_file(_read(spec, path), path)
        count = len(table[ROW])
        table = {"input": [""] * count, **table, "source": [part] * count}
        before = tables.get(split, {column: [] for column in table})
        tables[split] = {column: [*values, *table[column]] for column, values in before.items()}
        sources[split] = f"{sources[split]}, {path}" if split in sources else str(path)


def _of_file(table: Table, path: str | Path) -> Table:
    return {**table, ROW: [f"{row} of {path}" for row in table[ROW]]}


def why_no_rows(spec: TaskSpec, split: str) -> str:
    """Return why a task that was loaded has no rows of a split: the file that is missing, or has no labels."""
    if split == "train":
        return f"{spec.train_file} does not exist"
    if split == "validation":
        own = (
            "pass --validation_file"
            if spec.train_file
            else f"put validation.jsonl into {spec.dataset_dir or 'a --dataset_dir'}"
        )
        return f"task {spec.task_name} has no rows to validate on: --val_set_size 0 held none out; {own}"
    if split not in _SPLITS or spec.dataset_dir is None:
        return f"task {spec.task_name} has no labelled split {split!r}"
    path = data_files(spec).get(split)
    if path is not None:
        return f"no row of {path} has a label"
    return f"{spec.dataset_dir} holds no {spec.task_name}/{_SPLITS[split][-1]}.jsonl: there is no split {split!r}"


def _read(spec: TaskSpec, path: str | Path) -> Table:
    if spec.kind.read is not None:
        return _numbered(spec.kind.read(spec, Path(path)))
    return _numbered(read_table(path, spec.columns, spec.kind.optional_columns))


def _numbered(table: Table) -> Table:
    return {**table, ROW: list(range(len(next(iter(table.values())))))}


def _arranged(spec: TaskSpec, table: Table) -> Table:
    return table if spec.kind.arrange is None else spec.kind.arrange(spec, table)


def _from_hub(spec: TaskSpec) -> dict[str, Table]:
    from datasets import load_dataset

    hub = KNOWN[spec.task_name].hub
    try:
        found = load_dataset(*hub)
    except (OSError, RuntimeError, ValueError) as error:  # what datasets and the hub client raise without a network
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"cannot load {' '.join(hub)} from the hub ({type(error).__name__}: {reason}); "
            "pass --dataset_dir DIR with its files, or --train_file"
        ) from error
    tables = {}
    for split, names in _SPLITS.items():
        name = next((name for name in names if name in found), None)
        if name is not None:
            optional = [column for column in spec.kind.optional_columns if column in found[name].column_names]
            columns = (*spec.columns, *optional)
            tables[split] = _numbered({column: list(found[name][column]) for column in columns})
    return tables


def _labelled(spec: TaskSpec, table: Table) -> Table:
    """Drop the rows without a label."""
    values = table[spec.label_column]
    return _rows(table, [row for row, value in enumerate(values) if spec.kind.is_labelled(spec, value)])


def held_out(spec: TaskSpec) -> float:
    """Return the share of the training rows that validate where a data set has no validation split; mostly 0."""
    return KNOWN[spec.task_name].held_out if spec.task_name in KNOWN else 0.0


def holds_out(spec: TaskSpec) -> bool:
    """Return whether training rows of a task validate, for want of others."""
    files = data_files(spec)
    return "validation" not in files if files else held_out(spec) > 0


def _hold_out(table: Table, spec: TaskSpec, source: str) -> tuple[Table, Table]:
    """Part a table in two at random, the second of the rows that validate; the same for every seed of a run."""
    count = len(next(iter(table.values())))
    size = max(1, round(held_out(spec) * count)) if spec.val_set_size is None else spec.val_set_size
    if size >= count:
        raise UserError(f"{source} has {count} rows: holding out {size} to validate leaves none to train on")
    chosen = set(random.Random(_HELD_OUT_SEED).sample(range(count), size))
    return _rows(table, [row for row in range(count) if row not in chosen]), _rows(table, sorted(chosen))


def _subset(table: Table, most: int | None, seed: int) -> Table:
    """Draw `most` rows at random (files are often sorted by class) and keep their order."""
    count = len(next(iter(table.values())))
    if most is None or most >= count:
        return table
    return _rows(table, sorted(random.Random(seed).sample(range(count), most)))


def _rows(table: Table, rows: Sequence[int]) -> Table:
    return {column: [values[row] for row in rows] for column, values in table.items()}
