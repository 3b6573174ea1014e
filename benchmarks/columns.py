"""What the tables of quality share: a column is a task and a seed, whose cells are made once and found again."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from common import machine

from bootstrapnas.artefacts import holding, read_json, replacing_directory, write_json, write_text
from bootstrapnas.errors import UserError, listed
from bootstrapnas.pipeline.cli import Command, execute, to_arguments
from bootstrapnas.progress import notice
from bootstrapnas.tasks.files import find_split, read_table

HELD_OUT = 0.12
"""Share of the training rows that is kept for choosing; the official validation rows are only reported."""

MOST_ROWS = 9_216
"""Training rows, with the held-out ones: a random choice of a larger set's, or a column would take a day."""

P = TypeVar("P")
Result = Mapping[str, Any]


def write_splits(data_dir: Path, directory: Path, task: str) -> None:
    """Write a task's rows: ``train``, ``validation`` (held out of it) and ``test`` (the official validation rows).

    Of more than `MOST_ROWS` training rows a random choice is taken.
    """
    if directory.is_dir():
        return
    found = {}
    for split, names in {"train": ("train",), "validation": ("validation_matched", "validation")}.items():
        path = find_split(data_dir, task, *names)
        if path is None:
            raise UserError(f"data_dir {data_dir} holds no {split}.jsonl of the task {task}")
        table = read_table(path)
        found[split] = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    if len(found["train"]) > MOST_ROWS:
        kept = sorted(random.Random(f"kept of {task}").sample(range(len(found["train"])), MOST_ROWS))
        found["train"] = [found["train"][index] for index in kept]
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


def device() -> torch.device:
    """Return where everything is computed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# -- a column ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a column is: the rows of its task, its own directory."""

    task: str
    seed: int
    data: Path
    directory: Path


class Column:
    """All cells of one task and seed below one directory.

    Attributes
    ----------
    name
        What messages call the table.
    program, commands
        Whose stages make the cells.
    """

    name: str
    program: str
    commands: Mapping[str, Command]

    def __init__(self, protocol: Any, place: Place) -> None:
        self.protocol = protocol
        self.task, self.seed, self.data, self.directory = place.task, place.seed, place.data, place.directory

    def cell(self, make: Callable[[], tuple[dict[str, Any], float]], **which: str) -> None:
        """Write what a cell is worth and costs, unless that is there.

        Parameters
        ----------
        make
            Returns the result, which has a ``metric`` and its value among those of ``test``, and the share of the full
            model's MACs, which is shown.
        which
            What tells it from the other cells of the column.

        Raises
        ------
        UserError
            If the result that is there was made by another protocol.
        """
        path = self.directory / "results" / f"{'-'.join(which.values())}.json"
        if is_made(path, self.protocol):
            return
        found, share = make()
        place = {"task": self.task, "seed": self.seed, **which}
        write_json(path, {**place, **found, "protocol": asdict(self.protocol), "machine": machine()})
        called, value = " ".join(map(str, place.values())), found["test"][found["metric"]]
        notice(f"{self.name}: {called}: {value:.4f} with {share:.1%} of the MACs")

    def stage(self, command: str, **flags: Any) -> Any:
        """Run one of the project's stages."""
        return execute(self.program, self.commands, command, to_arguments(flags))


# -- table -------------------------------------------------------------------------------------------------------------


def results_below(work_dir: Path, order: Callable[[Result], Any]) -> list[dict[str, Any]]:
    """Return all results below a work directory, by task, seed and `order`."""
    found = [read_json(path) for path in work_dir.glob("*/seed*/results/*.json")]
    return sorted(found, key=lambda r: (r["task"], r["seed"], order(r)))


def machines_of(results: Sequence[Result]) -> list[str]:
    """Return where results were measured."""
    return sorted({r["machine"] for r in results})


def protocols_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the protocols by which results were made."""
    return [dict(p) for p in {tuple(sorted(r["protocol"].items())): r["protocol"] for r in results}.values()]


def task_lines(results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """Return a line of Markdown for each task: the `facts` of it, its seeds."""
    seeds = {task: sorted({r["seed"] for r in results if r["task"] == task}) for task in sorted(facts)}
    return "\n".join(f"- {task}: {facts[task]}, seeds {listed(map(str, seeds[task]))}" for task in seeds)


# -- command line ------------------------------------------------------------------------------------------------------


def command_line(
    description: str | None, protocol: type[Any], *, tasks: str, seeds: str
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return a parser and those of its commands ``run`` and ``table``; `tasks` and `seeds` are defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the cells that are missing")
    add_run(run, protocol, tasks=tasks, seeds=seeds)
    table = commands.add_parser("table", help="write the table of what is there")
    table.add_argument("--work_dir", type=Path, required=True)
    table.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    return parser, run, table


def add_run(parser: argparse.ArgumentParser, protocol: type[Any], *, tasks: str, seeds: str) -> None:
    """Add the flags that say which columns to make, and how; `tasks` and `seeds` are defaults."""
    parser.add_argument(
        "--data_dir", type=Path, required=True, help="directory with <task>/{train,validation}.jsonl[.gz]"
    )
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--tasks", default=tasks)
    parser.add_argument("--seeds", default=seeds)
    add_protocol(parser, protocol)


def obey(name: str, arguments: argparse.Namespace, do: Callable[[argparse.Namespace], None]) -> int:
    """Do what the command says; return the exit status."""
    try:
        do(arguments)
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    return 0


def places(arguments: argparse.Namespace) -> Iterator[Place]:
    """Yield the columns to make, each with its rows written, and locked until the next one."""
    for seed in map(int, arguments.seeds.split(",")):
        for task in arguments.tasks.split(","):
            place = Place(task, seed, arguments.work_dir / "data" / task, arguments.work_dir / task / f"seed{seed}")
            with holding(place.directory):
                write_splits(arguments.data_dir, place.data, task)
                yield place


def add_protocol(parser: argparse.ArgumentParser, protocol: type[Any]) -> None:
    """Add a flag for each field of a protocol, of the type that it is annotated with; optional ones are numbers."""
    types = get_type_hints(protocol)
    for field in fields(protocol):
        kind = int if field.default is None else types[field.name]
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
