"""How proposals get into a tight budget, which drawing genomes at random would hardly ever meet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from random import Random

from bootstrapnas.errors import UserError
from bootstrapnas.search.base import Constraint, Values, violation
from bootstrapnas.space import Genome

STEPS = 400
STEPS_PER_GENE = 4
"""A walk tries so many changes, and so many for each gene, before it gives up."""
DIRECTED = 0.75
"""Share of the changes that begin with a gene moved towards the violated bound."""
WALKS = 50
"""Walks in a row that reach nothing new before the window counts as empty, or as exhausted."""


class CostWindow:
    """The genomes whose costs keep all bounds, where the costs are known without an evaluation.

    A walk into it changes one or two random genes and goes on from what violates the bounds less. It begins at a genome
    that was drawn or bred, so the genomes that it reaches differ as those do. As larger choices come first and mostly
    cost more, the first gene mostly moves to where the violated bound is.

    Parameters
    ----------
    cardinalities
        Number of choices of each gene.
    costs
        What is known of a genome; the same each time.
    constraints
        The bounds; those on other values are not looked at.
    describe
        How messages put the value of a cost, by its name.
    canonical
        Maps genomes that describe one network to one of them: those count as one.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        costs: Callable[[Genome], Values],
        constraints: Sequence[Constraint],
        describe: Callable[[str, float], str] = lambda name, value: f"{value:,.10g} {name}",
        canonical: Callable[[Genome], Genome] = lambda genome: genome,
    ) -> None:
        self._cardinalities = tuple(cardinalities)
        self._costs = costs
        known = costs((0,) * len(self._cardinalities))
        self._constraints = tuple(each for each in constraints if each.name in known)
        self._describe, self._canonical = describe, canonical
        self._free = [gene for gene, count in enumerate(self._cardinalities) if count > 1]
        self._violations: dict[Genome, float] = {}
        self._broken: dict[Genome, list[Constraint]] = {}
        self._nearest: dict[Constraint, float] = {}
        self._least: tuple[float, Values] | None = None

    def violation(self, genome: Genome) -> float:
        """Return by how much the costs of a genome break the bounds."""
        found = self._violations.get(genome)
        if found is None:
            values = self._costs(genome)
            found = self._violations[genome] = violation(self._constraints, values)
            if found:
                self._broken[genome] = [each for each in self._constraints if each.violation(values)]
                self._remember(self._broken[genome], found, values)
        return found

    def enter(self, genome: Genome, random: Random) -> Genome:
        """Return a genome inside that is reached from `genome`, or `genome` where none is; one inside stays."""
        here, least = genome, self.violation(genome)
        for _ in range(STEPS + STEPS_PER_GENE * len(self._free) if self._free else 0):
            if not least:
                return here
            there = self._changed(here, random)
            if self.violation(there) < least:
                here, least = there, self.violation(there)
        return genome if least else here

    def _changed(self, genome: Genome, random: Random) -> Genome:
        """Return a genome that differs in one gene or two."""
        changed = list(genome)
        down = random.choice(self._broken[genome]).minimum
        movable = [gene for gene in self._free if genome[gene] != (0 if down else self._cardinalities[gene] - 1)]
        if movable and random.random() < DIRECTED:
            gene = random.choice(movable)
            index, count = genome[gene], self._cardinalities[gene]
            changed[gene] = random.randrange(index) if down else random.randrange(index + 1, count)
        else:
            self._redraw(changed, random)
        if random.random() < 0.5:
            self._redraw(changed, random)
        return tuple(changed)

    def _redraw(self, genome: list[int], random: Random) -> None:
        gene = random.choice(self._free)
        genome[gene] = random.randrange(self._cardinalities[gene])

    def fill(
        self, count: int, random: Random, start: Sequence[Genome] = (), known: Collection[Genome] = ()
    ) -> list[Genome]:
        """Return up to `count` distinct genomes inside, the first of them reached from `start`, none in `known`.

        There are fewer if walk after walk reaches nothing new.

        Raises
        ------
        UserError
            If nothing inside was found, nor is known; the message says what comes nearest.
        """
        seen = set(map(self._canonical, known))
        found: list[Genome] = []
        waiting, vain = list(start), 0
        while len(found) < count and vain < WALKS:
            begin = waiting.pop(0) if waiting else tuple(random.randrange(number) for number in self._cardinalities)
            genome = self.enter(begin, random)
            network = self._canonical(genome)
            if self.violation(genome) or network in seen:
                vain += not waiting
            else:
                seen.add(network)
                found.append(genome)
                vain = 0
        if not seen:
            raise UserError(self._emptiness())
        return found

    def _remember(self, broken: Sequence[Constraint], amount: float, values: Values) -> None:
        """Keep what comes nearest to each bound from outside, and what violates all of them least."""
        for each in broken:
            value, nearest = values[each.name], self._nearest.get(each, values[each.name])
            self._nearest[each] = max(value, nearest) if each.minimum else min(value, nearest)
        if self._least is None or amount < self._least[0]:
            self._least = (amount, values)

    def _emptiness(self) -> str:
        assert self._least is not None, "a window without bounds is not empty"
        wanted = " and ".join(
            f"{'at least' if each.minimum else 'at most'} {self._describe(each.name, each.bound)}"
            for each in self._constraints
        )
        names = dict.fromkeys(each.name for each in self._constraints)
        if len(names) > 1 or len(self._constraints) == 1:
            reached = ", ".join(self._describe(name, self._least[1][name]) for name in names)
            return f"search: no subnet was found with {wanted}; the nearest has {reached}"
        sides = [
            f"{self._describe(each.name, self._nearest[each])} {'below' if each.minimum else 'above'}"
            for each in self._constraints
            if each in self._nearest
        ]
        return f"search: no subnet was found with {wanted}; the nearest are {' and '.join(sides)}"
