"""Genetic algorithms of pymoo over integer genes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.algorithm import Algorithm as PymooAlgorithm
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling

from bootstrapnas.search.base import Algorithm, SearchSettings, Window
from bootstrapnas.space import Genome


def build_nsga2(
    cardinalities: Sequence[int], settings: SearchSettings, seeds: Sequence[Genome], window: Window | None
) -> Algorithm:
    """Build NSGA-II (Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002)."""
    return GeneticSearch(NSGA2(**genetic_operators(cardinalities, settings, seeds, window)), cardinalities)


class GeneticSearch:
    """A genetic algorithm of pymoo, driven from outside by `ask` and `tell`.

    An offspring never repeats a member of the current population or of its own generation, but may be a genome that
    died out earlier. A batch is therefore smaller than the population once a small space runs out of new genomes, and
    empty when all of the space was proposed.
    """

    def __init__(self, algorithm: PymooAlgorithm, cardinalities: Sequence[int]) -> None:
        problem = Problem(n_var=len(cardinalities), n_ieq_constr=1, xl=0, xu=np.array(cardinalities) - 1, vtype=int)
        # pymoo's own rule may stop a search at a plateau and costs time to track; the caller's budget decides.
        algorithm.setup(problem, termination=NoTermination())
        self._algorithm = algorithm
        self._size = math.prod(cardinalities)
        self._proposed: set[Genome] = set()
        self._asked: Any = None

    def ask(self) -> list[Genome]:
        if len(self._proposed) == self._size:
            return []
        self._asked = self._algorithm.ask()
        if self._asked is None or not len(self._asked):
            return []
        genomes = [tuple(genes) for genes in self._asked.get("X").tolist()]
        self._proposed.update(genomes)
        return genomes

    def tell(
        self, genomes: Sequence[Genome], objectives: Sequence[Sequence[float]], violations: Sequence[float]
    ) -> None:
        assert len(genomes) == len(self._asked) == len(objectives), "tell() takes the batch that ask() returned"
        self._asked.set("F", np.array(objectives, dtype=float), "G", np.array(violations, dtype=float)[:, None])
        self._algorithm.tell(infills=self._asked)


class _SeededSampling(IntegerRandomSampling):
    """Uniform genomes, of which the first are given; where there is a window, what can be reached in it from those."""

    def __init__(self, seeds: Sequence[Genome], window: Window | None) -> None:
        super().__init__()
        self._seeds, self._window = seeds, window

    def _do(self, problem: Problem, n_samples: int, *, random_state: np.random.Generator, **_: Any) -> np.ndarray:
        """Return genomes [n_samples, number of genes]; pymoo calls it with arguments that are of no use here."""
        if self._window is not None:
            return np.array(self._window.fill(n_samples, _drawn_from(random_state), self._seeds))
        genomes: np.ndarray = super()._do(problem, n_samples, random_state=random_state)
        for row, seed in enumerate(self._seeds):
            genomes[row] = seed
        return genomes


class _IntoWindow(Repair):
    """Leads offspring into a window; what does not get there stays as it was bred."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window

    def _do(self, problem: Problem, X: np.ndarray, *, random_state: np.random.Generator, **_: Any) -> np.ndarray:
        """Return genomes of the shape of X, [number of offspring, number of genes]."""
        random = _drawn_from(random_state)
        return np.array([self._window.enter(tuple(genes), random) for genes in X.tolist()])


def _drawn_from(random_state: np.random.Generator) -> Random:
    return Random(int(random_state.integers(2**62)))


def genetic_operators(
    cardinalities: Sequence[int], settings: SearchSettings, seeds: Sequence[Genome], window: Window | None
) -> dict[str, Any]:
    """Return what the genetic algorithms of pymoo share, as their keyword arguments."""
    free_genes = sum(count > 1 for count in cardinalities)
    # Without vtype=float pymoo stores the operators' results in the integer array of the parents, which rounds
    # them down, towards larger subnets, before RoundingRepair sees them.
    return {
        "pop_size": settings.population,
        "sampling": _SeededSampling(seeds, window),
        "repair": None if window is None else _IntoWindow(window),
        "crossover": SBX(
            prob=settings.crossover_prob, eta=settings.crossover_eta, vtype=float, repair=RoundingRepair()
        ),
        "mutation": PM(
            prob=1.0 if settings.mutation_prob is None else settings.mutation_prob,
            prob_var=1 / max(2, free_genes),
            eta=settings.mutation_eta,
            vtype=float,
            repair=RoundingRepair(),
        ),
        "eliminate_duplicates": True,
        "seed": settings.seed,
    }
