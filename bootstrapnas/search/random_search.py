"""The baseline that every search has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from bootstrapnas.search.base import Algorithm, SearchSettings, Window
from bootstrapnas.space import Genome


def build_random(
    cardinalities: Sequence[int], settings: SearchSettings, seeds: Sequence[Genome], window: Window | None
) -> Algorithm:
    """Build uniform random search without repeats."""
    return RandomSearch(cardinalities, settings.population, settings.seed, seeds, window)


class RandomSearch:
    """Propose every genome of the space with the same probability, none twice, until none is left.

    Where there is a window, what was drawn is led into it.
    """

    def __init__(
        self, cardinalities: Sequence[int], batch: int, seed: int, seeds: Sequence[Genome], window: Window | None
    ) -> None:
        self._cardinalities = cardinalities
        self._size = math.prod(cardinalities)
        self._batch = batch
        self._random = Random(seed)
        self._waiting = list(seeds)
        self._window = window
        self._proposed: set[Genome] = set()

    def ask(self) -> list[Genome]:
        if self._window is not None:
            start, self._waiting = self._waiting, []
            inside = self._window.fill(self._batch, self._random, start, self._proposed)
            self._proposed.update(inside)
            return inside
        batch: list[Genome] = []
        while len(batch) < self._batch and len(self._proposed) < self._size:
            genome = self._waiting.pop(0) if self._waiting else self._draw()
            if genome not in self._proposed:
                self._proposed.add(genome)
                batch.append(genome)
        return batch

    def tell(
        self, genomes: Sequence[Genome], objectives: Sequence[Sequence[float]], violations: Sequence[float]
    ) -> None:
        """Learn nothing."""

    def _draw(self) -> Genome:
        return tuple(self._random.randrange(count) for count in self._cardinalities)
