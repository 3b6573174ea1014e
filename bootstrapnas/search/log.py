"""The log of evaluations: the memo of a search, and what it resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bootstrapnas.artefacts import FORMAT, check_format, replacing, write_text
from bootstrapnas.errors import UserError
from bootstrapnas.search.base import Values
from bootstrapnas.space import Genome


class EvaluationLog:
    """Evaluations of distinct genomes, one JSON object per line, on disk as soon as they are made.

    The first line is the header ``{"format", "cardinalities", "settings"}``; every other line is
    ``{"index", "genome", "values", "seconds"}`` with indices 0, 1, 2, ..., and ``"stopped"`` where an evaluation was
    stopped after that share of it. A last line without its line break is what a
    kill in the middle of a write leaves behind: it is dropped.

    Parameters
    ----------
    path
        The file, ``evaluations.jsonl`` by custom; made if it does not exist.
    cardinalities
        Number of choices of each gene of the space.
    settings
        What is worth knowing about the search that began the file (JSON-able); recorded, not compared.

    Raises
    ------
    UserError
        If the file belongs to another space, is corrupt anywhere but in an unfinished last line, or cannot be read
        or written.
    """

    def __init__(self, path: str | os.PathLike[str], cardinalities: Sequence[int], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.cardinalities = tuple(cardinalities)
        self._values: dict[Genome, Values] = {}
        self._stopped: dict[Genome, float] = {}
        if self.path.exists():
            self._read()
        else:
            header = {"format": FORMAT, "cardinalities": list(self.cardinalities), "settings": dict(settings)}
            write_text(self.path, json.dumps(header) + "\n")

    def __len__(self) -> int:
        """Number of distinct genomes evaluated."""
        return len(self._values)

    def __contains__(self, genome: Genome) -> bool:
        return genome in self._values

    def __getitem__(self, genome: Genome) -> Values:
        return self._values[genome]

    def stopped(self, genome: Genome) -> float | None:
        """Return the share of a genome's evaluation after which it was stopped; `None` if it was not."""
        return self._stopped.get(genome)

    def record(
        self, genome: Genome, values: Mapping[str, float], seconds: float, stopped: float | None = None
    ) -> Values:
        """Add the evaluation of a new genome; return its values as a later run will read them.

        When this returns, the line is on disk.
        """
        assert genome not in self._values, "a genome is evaluated once"
        plain = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        entry = {"index": len(self), "genome": list(genome), "values": plain, "seconds": round(seconds, 4)}
        entry |= {} if stopped is None else {"stopped": stopped}
        line = json.dumps(entry, allow_nan=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._keep(genome, plain, stopped)
        return plain

    def _keep(self, genome: Genome, values: Values, stopped: float | None) -> None:
        self._values[genome] = values
        if stopped is not None:
            self._stopped[genome] = stopped

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from error
        *lines, unfinished = content.split(b"\n")
        self._check_header(lines[0] if lines else unfinished)
        for number, line in enumerate(lines[1:], start=2):
            self._keep(*self._parse(number, line))
        if unfinished:
            with replacing(self.path) as temporary:
                temporary.write_bytes(content.removesuffix(unfinished))

    def _check_header(self, line: bytes) -> None:
        header = self._load(1, line)
        check_format(self.path, header)
        found = header.get("cardinalities")
        if not isinstance(found, list):
            raise self._corrupt(1, "it is not the header of an evaluation log")
        if tuple(found) != self.cardinalities:
            raise UserError(
                f"{self.path} holds another search: its space has {_described(found)}, "
                f"this one has {_described(self.cardinalities)}; choose another directory"
            )

    def _parse(self, number: int, line: bytes) -> tuple[Genome, Values, float | None]:
        entry = self._load(number, line)
        genome, values = entry.get("genome"), entry.get("values")
        if entry.get("index") != len(self):
            raise self._corrupt(number, f"its index must be {len(self)}, not {entry.get('index')!r}")
        if not (
            isinstance(genome, list)
            and len(genome) == len(self.cardinalities)
            and all(
                isinstance(gene, int) and 0 <= gene < count
                for gene, count in zip(genome, self.cardinalities, strict=True)
            )
        ):
            raise self._corrupt(number, f"{genome!r} is not a genome of the space")
        if tuple(genome) in self:
            raise self._corrupt(number, f"the genome {genome} occurs twice")
        if not (isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values())):
            raise self._corrupt(number, "its values are not numbers by name")
        stopped = entry.get("stopped")
        if stopped is not None and not (isinstance(stopped, float) and 0 < stopped < 1):
            raise self._corrupt(number, f"stopped is {stopped!r}, which is no share of an evaluation")
        return tuple(genome), values, stopped

    def _load(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise self._corrupt(number, "it is not JSON") from None
        if not isinstance(entry, dict):
            raise self._corrupt(number, "it is not a JSON object")
        return entry

    def _corrupt(self, number: int, reason: str) -> UserError:
        return UserError(f"{self.path} is corrupt in line {number}: {reason}; delete the file to start the search anew")


def _described(cardinalities: Sequence[int]) -> str:
    shown = ", ".join(str(count) for count in cardinalities[:12]) + (", ..." if len(cardinalities) > 12 else "")
    return f"{len(cardinalities)} genes with {shown} choices"
