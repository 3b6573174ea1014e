"""Search for subnets: algorithms that see genes and objectives only. Free of torch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.search.base import (
    Algorithm,
    Builder,
    Candidate,
    Constraint,
    Estimate,
    Evaluation,
    Objective,
    SearchResult,
    SearchSettings,
    Values,
    Window,
    violation,
)
from bootstrapnas.search.log import EvaluationLog
from bootstrapnas.search.pareto import hypervolume, pareto_front, write_pareto_json
from bootstrapnas.search.progression import write_progression_csv, write_progression_png
from bootstrapnas.search.random_search import build_random
from bootstrapnas.search.runner import run_search
from bootstrapnas.search.select import NothingQualifiesError, select_best, select_by_budget
from bootstrapnas.search.window import CostWindow
from bootstrapnas.space import Genome


def _of_pymoo(module: str, builder: str) -> Builder:
    """Return a builder that is imported when it is first called, as importing pymoo takes a second."""

    def build(
        cardinalities: Sequence[int], settings: SearchSettings, seeds: Sequence[Genome], window: Window | None
    ) -> Algorithm:
        found: Builder = getattr(importlib.import_module(f"{__name__}.{module}"), builder)
        return found(cardinalities, settings, seeds, window)

    return build


ALGORITHMS: dict[str, Builder] = {
    "NSGA2": _of_pymoo("nsga2", "build_nsga2"),
    "RNSGA2": _of_pymoo("rnsga2", "build_rnsga2"),
    "random": build_random,
}
"""The search algorithms by the name that configs give them."""


def named_algorithm(name: str) -> Builder:
    """Return what builds the algorithm of a name; `UserError` if none has it."""
    if name not in ALGORITHMS:
        raise UserError(
            f"search: there is no algorithm {name!r}{near_miss(name, ALGORITHMS)}; known are {listed(ALGORITHMS)}"
        )
    return ALGORITHMS[name]


def build_algorithm(
    cardinalities: Sequence[int],
    settings: SearchSettings,
    seeds: Sequence[Genome] = (),
    window: Window | None = None,
) -> Algorithm:
    """Build the algorithm that the settings name.

    Parameters
    ----------
    cardinalities
        Number of choices of each gene, each at least 1.
    settings
        The search's settings; an algorithm reads those that concern it.
    seeds
        Genomes to propose first, usually those of the maximum and the minimum subnet.
    window
        Where proposals ought to lie: seeds, samples and offspring are led into it.

    Raises
    ------
    UserError
        If the algorithm is unknown, the space has no genes, or the seeds do not fit into the space or a generation.
    """
    build = named_algorithm(settings.algorithm)
    if not cardinalities or min(cardinalities) < 1:
        raise UserError(f"search: a space needs genes with at least one choice each, got {list(cardinalities)}")
    for genome in seeds:
        if len(genome) != len(cardinalities) or not all(
            0 <= gene < count for gene, count in zip(genome, cardinalities, strict=True)
        ):
            raise UserError(f"search: the seed {list(genome)} is not in the space of {list(cardinalities)} choices")
    if len(seeds) > settings.population:
        raise UserError(
            f"search: population must be at least {len(seeds)}, the number of given subnets that the search starts "
            f"from, not {settings.population}"
        )
    return build(cardinalities, settings, seeds, window)


__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Candidate",
    "Constraint",
    "CostWindow",
    "Estimate",
    "Evaluation",
    "EvaluationLog",
    "Genome",
    "NothingQualifiesError",
    "Objective",
    "SearchResult",
    "SearchSettings",
    "Values",
    "Window",
    "build_algorithm",
    "hypervolume",
    "named_algorithm",
    "pareto_front",
    "run_search",
    "select_best",
    "select_by_budget",
    "violation",
    "write_pareto_json",
    "write_progression_csv",
    "write_progression_png",
]
