"""Which subnets a training step computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import TypeAlias

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.space import Genome, SearchSpace

Sampling: TypeAlias = Callable[[SearchSpace, Random], dict[str, Genome]]
"""A space and a random generator -> the genomes of one step, by name."""


LARGEST, SMALLEST = "max", "min"
"""Names in a step of the two subnets that are not drawn; the others are random."""


def sandwich(space: SearchSpace, random: Random) -> dict[str, Genome]:
    """Return the largest, one random and the smallest subnet (Yu & Huang 2019, "sandwich rule"; EFTNAS)."""
    return {LARGEST: space.max_genome, "random": space.sample(random), SMALLEST: space.min_genome}


def one_random(space: SearchSpace, random: Random) -> dict[str, Genome]:
    """Return one random subnet (stock BootstrapNAS, LoNAS)."""
    return {"random": space.sample(random)}


def with_largest(sample: Sampling) -> Sampling:
    """Return a way of sampling that computes the largest subnet of each step first, beside what `sample` draws."""
    return lambda space, random: {LARGEST: space.max_genome, **sample(space, random)}


def distinct(genomes: Mapping[str, Genome]) -> dict[str, Genome]:
    """Return the genomes of a step but those that an earlier name has: what comes up twice is computed once.

    That is every step of a stage in which nothing is elastic yet.
    """
    first = {genomes[name]: name for name in reversed(list(genomes))}
    return {name: genome for name, genome in genomes.items() if first[genome] == name}


SAMPLINGS: Mapping[str, Sampling] = {"sandwich": sandwich, "random": one_random}


def sampling_of(name: str) -> Sampling:
    """Return the way of sampling registered as `name`; `UserError` if there is none."""
    try:
        return SAMPLINGS[name]
    except KeyError:
        raise UserError(f"unknown sampling {name!r} (known: {listed(SAMPLINGS)}){near_miss(name, SAMPLINGS)}") from None


def step_random(seed: int, step: int, draw: int = 0) -> Random:
    """Return the random generator of a draw of one optimiser step, by these alone, so that a resumed run repeats it."""
    return Random(f"{seed}/{step}" if draw == 0 else f"{seed}/{step}/{draw}")
