"""What every search algorithm speaks: genomes in, objectives back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeAlias

from bootstrapnas.errors import UserError
from bootstrapnas.space import Genome

Values: TypeAlias = Mapping[str, float]
"""What is known of a genome, by name, for example ``{"accuracy": 0.91, "macs": 5.2e9}``."""
TOLERANCE = 1e-9  # 0.93 - 0.01 is above 0.92 in floating point
GENETIC = ("NSGA2", "RNSGA2")
"""The algorithms that cross the subnets of a population."""


class Algorithm(Protocol):
    """A search algorithm that proposes genomes in batches and learns from their objectives and violations.

    The caller alternates `ask` and `tell`. An algorithm is deterministic: the same settings and the same answers
    lead to the same genomes, which is what lets a search resume by replaying its log.
    """

    def ask(self) -> list[Genome]:
        """Return the next batch (a generation), or an empty list when there is nothing left to propose."""
        ...

    def tell(
        self, genomes: Sequence[Genome], objectives: Sequence[Sequence[float]], violations: Sequence[float]
    ) -> None:
        """Take what was found of the batch just asked for.

        Parameters
        ----------
        genomes
            The batch.
        objectives
            Shape [len(genomes), number of objectives], all minimised.
        violations
            By how much each genome breaks the bounds, 0 if it keeps them all. Of two genomes the one that violates less
            is better, whatever their objectives (Deb's constrained domination); those of one with a violation may be
            placeholders.
        """
        ...


@dataclass(frozen=True, slots=True)
class Objective:
    """A value that the search improves, and which way."""

    name: str
    maximise: bool = False

    @property
    def sign(self) -> int:
        """What the value is multiplied by so that smaller is better."""
        return -1 if self.maximise else 1

    def minimised(self, values: Values) -> float:
        """Return the value with the sign that makes smaller better."""
        return self.sign * values[self.name]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound that a value has to keep.

    Attributes
    ----------
    name
        The value.
    bound
        At most this, or with `minimum` at least this.
    minimum
        Which of the two.
    """

    name: str
    bound: float
    minimum: bool = False

    def violation(self, values: Values) -> float:
        """Return how far the value lies beyond the bound, as a share of the bound: 0 if it keeps it.

        A value that was not measured violates its bound by 1, the whole of it.
        """
        if self.name not in values:
            return 1.0
        beyond = values[self.name] - self.bound
        share = (-beyond if self.minimum else beyond) / (abs(self.bound) or 1.0)
        return share if share > TOLERANCE else 0.0


def violation(constraints: Sequence[Constraint], values: Values) -> float:
    """Return the sum of all violations (Deb's overall constraint violation)."""
    return sum(each.violation(values) for each in constraints)


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Settings of a search, with the names of NNCF's ``bootstrapNAS.search`` section.

    Attributes
    ----------
    algorithm
        A name of the registry, for example ``"NSGA2"``.
    num_evals
        Proposals to make in all, repeats included; what does not fill a generation is left out (see `budget`).
    population
        Proposals per generation: at least 2 of a genetic algorithm.
    seed
        Seed of the algorithm's own random generator.
    crossover_prob, crossover_eta
        Probability and distribution index of simulated binary crossover: a larger index keeps children closer to
        their parents.
    mutation_prob
        Probability that an offspring mutates at all (NNCF's meaning, 0.02 there). `None` lets every offspring mutate.
        Either way each gene of a mutating offspring is perturbed with probability 1 / (number of genes that have a
        choice), at most one half.
    mutation_eta
        Distribution index of polynomial mutation.
    ref_acc
        Metric that the chosen subnet is measured against: a fraction, or a percentage if above 1; as it is where less
        is better. `None` or -1 stands for the maximum subnet's own.
    acc_delta
        Tolerated drop below `ref_acc`, in points of a percent; above it and in percent of it, where less is better.
    aspiration_points
        RNSGA2: points of the minimised objectives (their order, units and signs) near which solutions are sought.
    epsilon
        RNSGA2: solutions nearer to each other than this, relative to the extent of the front, count as one.
    weights
        RNSGA2: weight of each objective in distances. `None` for equal ones.
    extreme_points_as_ref_points
        RNSGA2: whether the extreme solutions of a generation are aspired to as well.

    Raises
    ------
    UserError
        If a value is out of its range or `population` exceeds `num_evals`.
    """

    algorithm: str = "NSGA2"
    num_evals: int = 200
    population: int = 20
    seed: int = 0
    crossover_prob: float = 0.9
    crossover_eta: float = 10.0
    mutation_prob: float | None = None
    mutation_eta: float = 3.0
    ref_acc: float | None = None
    acc_delta: float = 1.0
    aspiration_points: tuple[tuple[float, ...], ...] = ((0.0, 0.0),)
    epsilon: float = 0.001
    weights: tuple[float, ...] | None = None
    extreme_points_as_ref_points: bool = False

    def __post_init__(self) -> None:
        if self.population < 1:
            raise UserError(f"search: population must be at least 1, not {self.population}")
        if self.population < 2 and self.algorithm in GENETIC:
            raise UserError(
                f"search: population must be at least 2, not {self.population}: {self.algorithm} crosses the subnets "
                "of a generation; 20 is a usual one"
            )
        if self.population > self.num_evals:
            raise UserError(
                f"search: population ({self.population}) must not exceed num_evals ({self.num_evals}): "
                "not one generation would be evaluated"
            )
        if self.seed < 0:
            raise UserError(f"search: seed must not be negative, got {self.seed}")
        for name in ("crossover_prob", "mutation_prob"):
            probability = getattr(self, name)
            if probability is not None and not 0 <= probability <= 1:
                raise UserError(f"search: {name} must lie between 0 and 1, not {probability}")
        for name in ("crossover_eta", "mutation_eta", "acc_delta", "epsilon"):
            if getattr(self, name) < 0:
                raise UserError(f"search: {name} must not be negative, got {getattr(self, name)}")
        if self.ref_acc is not None and self.ref_acc != -1 and not self.ref_acc >= 0:
            raise UserError(
                f"search: ref_acc must be a fraction, a percentage, or -1 for the maximum subnet's, not {self.ref_acc}"
            )
        lengths = {len(point) for point in self.aspiration_points} | ({len(self.weights)} if self.weights else set())
        if not self.aspiration_points or len(lengths) > 1:
            raise UserError(
                "search: aspiration_points needs at least one point, each with as many numbers as weights: one per "
                f"objective; got {list(map(list, self.aspiration_points))} and {list(self.weights or ())}"
            )

    @property
    def generations(self) -> int:
        """Whole generations that `num_evals` pays for."""
        return self.num_evals // self.population

    @property
    def budget(self) -> int:
        """`num_evals` rounded down to a multiple of `population`."""
        return self.generations * self.population


class Window(Protocol):
    """Where proposals ought to lie, for algorithms that can be led there: see `bootstrapnas.search.window`."""

    def enter(self, genome: Genome, random: Random) -> Genome:
        """Return a genome inside that is reached from `genome`, or `genome` where none is; one inside stays."""
        ...

    def fill(
        self, count: int, random: Random, start: Sequence[Genome] = (), known: Collection[Genome] = ()
    ) -> list[Genome]:
        """Return up to `count` distinct genomes inside, the first of them reached from `start`, none in `known`."""
        ...


Builder: TypeAlias = Callable[[Sequence[int], SearchSettings, Sequence[Genome], Window | None], Algorithm]
"""``builder(cardinalities, settings, seeds, window)``: an algorithm over genomes with ``0 <= gene < cardinality``,
whose first batch starts with the `seeds`, and which proposes what lies in the window if there is one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposed genome with what was measured.

    Attributes
    ----------
    genome
        One index per gene.
    values
        What the evaluation returned.
    generation
        The batch that proposed it, counted from 1.
    violation
        By how much it breaks the search's bounds; 0 if it keeps them.
    evaluated
        Whether it was evaluated to the end. Of one whose costs alone break a bound, `values` are these costs.
    stopped
        The share of its evaluation after which it was stopped, as it could no longer reach the front; `values` are
        estimates then. `None` if it was not.
    """

    genome: Genome
    values: Values
    generation: int
    violation: float = 0.0
    evaluated: bool = True
    stopped: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an evaluation knows so far.

    Attributes
    ----------
    values
        What it measured so far, by name; of the last estimate the evaluation itself.
    at_best
        The best that it may still come to, by name.
    share
        How much of it is done, up to 1.
    """

    values: Values
    at_best: Values
    share: float


Evaluation: TypeAlias = Callable[[Genome], "Values | Generator[Estimate, None, None]"]
"""Measures a genome: at once, or by one estimate after the other, between which it may be stopped."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search proposed.

    Attributes
    ----------
    objectives
        What it improved.
    candidates
        Every proposal in order, repeats included.
    front
        The distinct genomes that no other dominates, by ascending first minimised objective. All keep the search's
        bounds, if any candidate does; else they violate them least.
    constraints
        The bounds.
    """

    objectives: tuple[Objective, ...]
    candidates: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    constraints: tuple[Constraint, ...] = ()

    @property
    def admitted(self) -> tuple[Candidate, ...]:
        """The candidates to choose from."""
        return admitted(self.candidates)


def admitted(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the evaluated candidates that keep all bounds; if there are none, those that violate them least."""
    evaluated = [each for each in candidates if each.evaluated]
    least = min((each.violation for each in evaluated), default=0.0)
    return tuple(each for each in evaluated if each.violation == least)
