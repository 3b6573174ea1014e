"""How finely the scores of a weight are kept: per entry, per block, per row or per column. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bootstrapnas.errors import UserError, listed, near_miss


@dataclass(frozen=True, slots=True)
class Fine:
    """One score per entry of the weight."""

    def factors(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return (r, c), the rows and columns of a weight of `shape` [out, in] that share one score."""
        return 1, 1

    def __str__(self) -> str:
        return "fine"


@dataclass(frozen=True, slots=True)
class Block:
    """One score per block of `rows` by `columns` entries."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise UserError(f"sparse_factors must be at least 1, not [{self.rows}, {self.columns}]")

    def factors(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return (r, c), the rows and columns of a weight of `shape` [out, in] that share one score.

        Raises
        ------
        UserError
            If the blocks do not tile the weight.
        """
        if shape[0] % self.rows or shape[1] % self.columns:
            raise UserError(f"blocks of {self.rows} x {self.columns} do not tile a weight of shape {list(shape)}")
        return self.rows, self.columns

    def __str__(self) -> str:
        return f"block {self.rows}x{self.columns}"


@dataclass(frozen=True, slots=True)
class PerDim:
    """One score per index of `axis`: per output row (0) or per input column (1)."""

    axis: int

    def __post_init__(self) -> None:
        if self.axis not in (0, 1):
            raise UserError(f"axis of per_dim must be 0 or 1, not {self.axis}")

    def factors(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return (r, c), the rows and columns of a weight of `shape` [out, in] that share one score."""
        return (1, shape[1]) if self.axis == 0 else (shape[0], 1)

    def __str__(self) -> str:
        return f"per_dim {self.axis}"


Structure: TypeAlias = Fine | Block | PerDim

MODES = ("fine", "block", "per_dim")


def build_structure(mode: str, sparse_factors: Sequence[int] | None = None, axis: int | None = None) -> Structure:
    """Build a structure from the values of an entry of NNCF's ``sparse_structure_by_scopes``.

    Raises
    ------
    UserError
        If the mode is unknown, or a value that it needs is missing, or one that it does not take is given.
    """
    if mode not in MODES:
        raise UserError(f"unknown sparse structure mode {mode!r} (known: {listed(MODES)}){near_miss(mode, MODES)}")
    if (sparse_factors is not None) != (mode == "block"):
        raise UserError(f"sparse_factors belong to mode 'block', and only to it; the mode is {mode!r}")
    if (axis is not None) != (mode == "per_dim"):
        raise UserError(f"axis belongs to mode 'per_dim', and only to it; the mode is {mode!r}")
    if sparse_factors is not None:
        if len(sparse_factors) != 2:
            raise UserError(f"sparse_factors must be [rows, columns], not {list(sparse_factors)}")
        return Block(*sparse_factors)
    return Fine() if axis is None else PerDim(axis)


def assign_structures(
    modules: Mapping[str, str],
    rules: Iterable[tuple[Callable[[str], bool], Structure]],
    ignored: Callable[[str], bool] = lambda node: False,
) -> dict[str, Structure]:
    """Give every linear layer its structure by NNCF's rule: not if ignored, ``fine`` if nothing matches.

    Parameters
    ----------
    modules
        Module path -> the name that scopes are matched against (NNCF's node name).
    rules
        Per entry of ``sparse_structure_by_scopes``, whether it matches a node name, and the structure it asks for.
    ignored
        Whether a node name is among ``ignored_scopes``.

    Raises
    ------
    UserError
        If two rules match one layer, or a rule matches none.
    """
    rules = tuple(rules)
    for index, (matches, structure) in enumerate(rules):
        if not any(map(matches, modules.values())):
            example = next((node for node in modules.values() if not ignored(node)), "")
            raise UserError(
                f"sparse_structure_by_scopes[{index}] ({structure}) matches no linear layer of the model, "
                f"whose names are like {example!r}"
            )
    structures: dict[str, Structure] = {}
    for path, node in modules.items():
        if ignored(node):
            continue
        found = [structure for matches, structure in rules if matches(node)]
        if len(found) > 1:
            raise UserError(
                f"sparse_structure_by_scopes: two entries match {node!r} ({found[0]}, {found[1]}); let one match"
            )
        structures[path] = found[0] if found else Fine()
    return structures
