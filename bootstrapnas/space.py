"""The search space: which sizes each coupled group may take, as genes. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.errors import UserError

Genome: TypeAlias = tuple[int, ...]
"""One index per gene into its choices; 0 is the largest choice."""


@dataclass(frozen=True, slots=True)
class Gene:
    """One free choice of a search space.

    Attributes
    ----------
    keys
        The dimensions that take the chosen size together (usually one).
    choices
        The sizes to choose from, in units, strictly descending.
    """

    keys: tuple[Key, ...]
    choices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.keys or not self.choices:
            raise UserError(f"a gene needs keys and choices, got {self.keys} and {self.choices}")
        if list(self.choices) != sorted(set(self.choices), reverse=True):
            raise UserError(f"choices of {self.name} must descend without repeats, got {list(self.choices)}")

    @property
    def name(self) -> str:
        return " = ".join(str(key) for key in self.keys)


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """An ordered list of genes, and the subnets that they span."""

    genes: tuple[Gene, ...]

    def __post_init__(self) -> None:
        keys = [key for gene in self.genes for key in gene.keys]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise UserError(f"the search space chooses {twice[0]} twice")

    @classmethod
    def build(cls, blueprint: Blueprint, choices: Iterable[tuple[Key, Sequence[int]]]) -> SearchSpace:
        """Build a space with one gene per key, checked against the model. Order and repeats of sizes do not matter."""
        genes = tuple(Gene((key,), tuple(sorted(set(sizes), reverse=True))) for key, sizes in choices)
        space = cls(genes)
        space.check(blueprint)
        return space

    def check(self, blueprint: Blueprint) -> None:
        """Raise `UserError` unless the model has every key and can take every size."""
        for gene in self.genes:
            for size in gene.choices:
                blueprint.check(dict.fromkeys(gene.keys, size))

    @property
    def cardinalities(self) -> tuple[int, ...]:
        return tuple(len(gene.choices) for gene in self.genes)

    def __len__(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @property
    def num_subnets(self) -> int:
        """Number of genomes in the space (exact, may be huge)."""
        return math.prod(self.cardinalities)

    def subnet(self, genome: Sequence[int]) -> dict[Key, int]:
        """Return the subnet that a genome describes.

        Raises
        ------
        UserError
            If the genome has another length than the space, or an index that is not one of a gene's choices.
        """
        if len(genome) != len(self.genes):
            raise UserError(f"a genome of this space has {len(self.genes)} genes, not {len(genome)}")
        for gene, index in zip(self.genes, genome, strict=True):
            if not 0 <= index < len(gene.choices):
                raise UserError(f"gene {index} of {gene.name} is not an index into its {len(gene.choices)} choices")
        return {key: gene.choices[index] for gene, index in zip(self.genes, genome, strict=True) for key in gene.keys}

    def genome(self, subnet: Subnet) -> Genome:
        """Return the genome of a subnet; keys that the subnet leaves out are at their largest choice.

        Raises
        ------
        UserError
            If the space does not contain the subnet.
        """
        genome = []
        known = {key for gene in self.genes for key in gene.keys}
        for key in subnet:
            if key not in known:
                raise UserError(f"the search space has no gene for {key}")
        for gene in self.genes:
            sizes = {subnet.get(key, gene.choices[0]) for key in gene.keys}
            if len(sizes) > 1 or not sizes <= set(gene.choices):
                found = ", ".join(str(size) for size in sorted(sizes))
                raise UserError(f"{gene.name} = {found} is not in the search space, which has {list(gene.choices)}")
            genome.append(gene.choices.index(sizes.pop()))
        return tuple(genome)

    def __contains__(self, subnet: Subnet) -> bool:
        """Whether a genome describes the subnet."""
        try:
            self.genome(subnet)
        except UserError:
            return False
        return True

    @property
    def model_wide(self) -> frozenset[str]:
        """The dimensions of the genes that are no layer's own, such as the hidden size."""
        return frozenset(key.dim for gene in self.genes for key in gene.keys if key.layer is None)

    @property
    def max_genome(self) -> Genome:
        return (0,) * len(self.genes)

    @property
    def min_genome(self) -> Genome:
        return tuple(count - 1 for count in self.cardinalities)

    @property
    def heuristic_genome(self) -> Genome:
        """The middle choice of every gene, rounded towards larger sizes (the rule published with LoNAS)."""
        return tuple((count - 1) // 2 for count in self.cardinalities)

    def sample(self, random: Random) -> Genome:
        """Draw every gene independently and uniformly."""
        return tuple(random.randrange(count) for count in self.cardinalities)

    def within(self, cost: Callable[[Genome], float], budget: float) -> Genome | None:
        """Return a large genome that costs at most `budget`, with much the same share of every size; None if none does.

        From the largest subnet down, the size that loses least of its gene's full one goes next, so that skipping
        comes last; what is left of the budget raises the smallest shares again.
        """
        genome = [0] * len(self.genes)

        def share(gene: int, index: int) -> float:
            choices = self.genes[gene].choices
            return choices[index] / max(choices[0], 1) if index < len(choices) else -1.0

        while cost(tuple(genome)) > budget:
            gene = max(range(len(genome)), key=lambda gene: share(gene, genome[gene] + 1), default=None)
            if gene is None or share(gene, genome[gene] + 1) < 0:
                return None
            genome[gene] += 1
        for gene in sorted(range(len(genome)), key=lambda gene: share(gene, genome[gene])):
            while genome[gene] > 0:
                genome[gene] -= 1
                if cost(tuple(genome)) > budget:
                    genome[gene] += 1
                    break
        return tuple(genome)

    def limited(self, width_indicator: int) -> SearchSpace:
        """Return the space of the first `width_indicator` widths of every gene (NNCF); -1 means all.

        Blocks, which have no width, stay as they are.
        """
        if width_indicator == -1:
            return self
        if width_indicator < 1:
            raise UserError(f"width_indicator must be -1 or at least 1, not {width_indicator}")
        return SearchSpace(
            tuple(g if 0 in g.choices else Gene(g.keys, g.choices[:width_indicator]) for g in self.genes)
        )
