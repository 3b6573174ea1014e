"""NNCF's search_progression.csv and .png, kept up to date while a search goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bootstrapnas.costs import COSTS, Cost
from bootstrapnas.search import Candidate, Genome, Objective, write_progression_csv, write_progression_png
from bootstrapnas.supernet import Supernet


class Progression:
    """Both files of one search."""

    PICTURE_EVERY_S = 10.0  # a picture takes a while to draw, a generation of a small model less

    def __init__(
        self, directory: Path, supernet: Supernet, metric: Objective, title: str, cost: Cost = COSTS["macs"]
    ) -> None:
        self.directory, self.metric, self.title, self.cost = directory, metric, title, cost
        self._space, self._blueprint = supernet.space, supernet.blueprint
        self._widths = [gene for gene in self._space.genes if not self._blueprint.is_block(gene.keys[0])]
        self._blocks = [gene for gene in self._space.genes if self._blueprint.is_block(gene.keys[0])]
        self._drawn = time.monotonic()

    def update(self, candidates: Sequence[Candidate]) -> None:
        """Write what was found so far; the picture only if the last one, or the search, is some seconds old."""
        self.write(candidates, None, draw=time.monotonic() - self._drawn >= self.PICTURE_EVERY_S)

    def write(self, candidates: Sequence[Candidate], best: Candidate | None, *, draw: bool = True) -> None:
        """Write both files, with the chosen subnet in the picture."""
        path = self.directory / "search_progression.csv"
        write_progression_csv(path, candidates, self._describe, metric=self.metric, cost=self.cost)
        if draw and any(each.evaluated for each in candidates):
            chosen = {} if best is None else {"best": best}
            picture = path.with_suffix(".png")
            write_progression_png(
                picture, candidates, metric=self.metric, cost=self.cost, chosen=chosen, title=self.title
            )
            self._drawn = time.monotonic()

    def _describe(self, genome: Genome) -> tuple[dict[int, int], list[int] | None]:
        """Return channels by group number, and the numbers of the skipped blocks."""
        subnet = self._space.subnet(genome)
        channels = {
            group: subnet[gene.keys[0]] * self._blueprint.channels_per_unit(gene.keys[0])
            for group, gene in enumerate(self._widths)
        }
        skipped = [number for number, gene in enumerate(self._blocks) if subnet[gene.keys[0]] == 0]
        return channels, skipped if self._blocks else None
