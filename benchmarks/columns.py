"""What the tables of quality share: a column is a task and a seed, whose cells are made once and found again."""

from __future__ import annotations

import argparse
import fcntl
import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from bootstrapnas.artefacts import read_json, replacing_directory, write_text
from bootstrapnas.errors import UserError, listed
from bootstrapnas.tasks.files import find_split, read_table

HELD_OUT = 0.12
"""Share of the training rows that is kept for choosing; the official validation rows are only reported."""

P = TypeVar("P")


def write_splits(data_dir: Path, directory: Path, task: str) -> None:
    """Write a task's rows: ``train``, ``validation`` (held out of it) and ``test`` (the official validation rows)."""
    if directory.is_dir():
        return
    found = {}
    for split, names in {"train": ("train",), "validation": ("validation_matched", "validation")}.items():
        path = find_split(data_dir, task, *names)
        if path is None:
            raise UserError(f"data_dir {data_dir} holds no {split}.jsonl of the task {task}")
        table = read_table(path)
        found[split] = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    count = len(found["train"])
    held_out = set(random.Random(f"held out of {task}").sample(range(count), round(HELD_OUT * count)))
    splits = {
        "train": [row for index, row in enumerate(found["train"]) if index not in held_out],
        "validation": [row for index, row in enumerate(found["train"]) if index in held_out],
        "test": found["validation"],
    }
    with replacing_directory(directory) as temporary:
        for name, rows in splits.items():
            write_text(temporary / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def is_made(path: Path, protocol: Any) -> bool:
    """Return whether the result of a cell is there.

    Raises
    ------
    UserError
        If the result that is there was made by another protocol.
    """
    if not path.is_file():
        return False
    if read_json(path)["protocol"] != asdict(protocol):
        raise UserError(f"{path} was made by another protocol: give the same flags or another --work_dir")
    return True


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory against a second run; `UserError` if there is one."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another run works in {directory}") from None
        yield


def device() -> torch.device:
    """Return where everything is computed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# -- command line ------------------------------------------------------------------------------------------------------


def add_protocol(parser: argparse.ArgumentParser, protocol: type[Any]) -> None:
    """Add a flag for each field of a protocol; a field whose default is None holds a whole number."""
    for field in fields(protocol):
        kind = int if field.default is None else type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)


def read_protocol(arguments: argparse.Namespace, protocol: type[P]) -> P:
    """Return the protocol that the flags describe."""
    return protocol(**{field.name: getattr(arguments, field.name) for field in fields(protocol)})  # type: ignore


def chosen(name: str, text: str, known: Iterable[str]) -> list[str]:
    """Return the entries of a flag, separated by commas; `UserError` if one is unknown."""
    found = text.split(",")
    for entry in found:
        if entry not in known:
            raise UserError(f"--{name}: unknown {entry!r} (known: {listed(known)})")
    return found
