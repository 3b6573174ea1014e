"""Which candidates nothing beats."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bootstrapnas.artefacts import FORMAT, write_json
from bootstrapnas.search.base import Candidate, Objective, SearchResult, Values
from bootstrapnas.space import Genome


def pareto_front(
    values: Sequence[Values], objectives: Sequence[Objective], violations: Sequence[float] | None = None
) -> list[int]:
    """Return the indices, ascending, of the entries that no other entry dominates.

    An entry dominates another if it violates the bounds less (Deb's constrained domination), or as much and is nowhere
    worse and somewhere better; entries with equal values do not. Without `violations` all keep the bounds.
    """
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    if not values:
        return []
    all_violations = [0.0] * len(values) if violations is None else violations
    least = [index for index, each in enumerate(all_violations) if each == min(all_violations)]
    front = NonDominatedSorting().do(
        _minimised([values[index] for index in least], objectives), only_non_dominated_front=True
    )
    return sorted(least[index] for index in front)


def hypervolume(values: Sequence[Values], objectives: Sequence[Objective], reference: Values) -> float:
    """Return the volume of objective space between the Pareto front and a reference point that is worse everywhere.

    The unit is the product of the objectives' units; entries beyond the reference add nothing (Zitzler and Thiele,
    "Multiobjective evolutionary algorithms: a comparative case study and the strength Pareto approach", 1999).
    """
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=_minimised([reference], objectives)[0])(_minimised(values, objectives)))


def write_pareto_json(
    path: str | os.PathLike[str],
    result: SearchResult,
    best: Candidate | None,
    *,
    describe: Callable[[Genome], Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write ``pareto.json``: the front to choose a subnet from by its index.

    Parameters
    ----------
    path
        The file.
    result
        What the search found.
    best
        The chosen candidate (see `select_best`), or `None`. Its ``index`` is ``null`` if it is not on the front.
    describe
        Turns a genome into the subnet as JSON; without it entries have no ``"subnet"``.
    extra
        Further keys for the file's top level, JSON-able.
    """

    def entry(index: int | None, candidate: Candidate) -> dict[str, Any]:
        described = {} if describe is None else {"subnet": describe(candidate.genome)}
        return {"index": index, "genome": list(candidate.genome), "values": dict(candidate.values), **described}

    place = {candidate.genome: index for index, candidate in enumerate(result.front)}
    write_json(
        path,
        {
            "format": FORMAT,
            "objectives": [asdict(goal) for goal in result.objectives],
            "constraints": [asdict(each) for each in result.constraints],
            "front": [entry(index, candidate) for index, candidate in enumerate(result.front)],
            "best": None if best is None else entry(place.get(best.genome), best),
            **(extra or {}),
        },
    )


def _minimised(values: Sequence[Values], objectives: Sequence[Objective]) -> np.ndarray:
    """Return the objectives as an array [len(values), len(objectives)] in which smaller is better."""
    return np.array([[goal.minimised(entry) for goal in objectives] for entry in values], dtype=float)
