"""R-NSGA-II: a genetic algorithm that looks near the points that somebody aspires to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.moo.rnsga2 import RNSGA2, RankAndModifiedCrowdingSurvival

from bootstrapnas.search.base import Algorithm, SearchSettings, Window
from bootstrapnas.search.nsga2 import GeneticSearch, genetic_operators
from bootstrapnas.space import Genome


def build_rnsga2(
    cardinalities: Sequence[int], settings: SearchSettings, seeds: Sequence[Genome], window: Window | None
) -> Algorithm:
    """Build R-NSGA-II (Deb and Sundar, "Reference point based multi-objective optimization", 2006)."""
    points = np.array(settings.aspiration_points, dtype=float)
    weights = None if settings.weights is None else np.array(settings.weights, dtype=float)
    algorithm = RNSGA2(points, **genetic_operators(cardinalities, settings, seeds, window))
    algorithm.survival = _Survival(points, settings.epsilon, weights, "front", settings.extreme_points_as_ref_points)
    return GeneticSearch(algorithm, cardinalities)


class _Survival(RankAndModifiedCrowdingSurvival):
    """pymoo's, but for two points.

    Distances are normalised by the extent of the front, which is nought along an objective in which all of the front is
    equal: such a distance is not a number, and sorts last. And pymoo adds the extreme points to the reference points
    anew with every generation, so that those of long ago would attract for ever.
    """

    def __init__(self, points: np.ndarray, *arguments: Any) -> None:
        super().__init__(points, *arguments)
        self._points = points

    def _do(self, *arguments: Any, **options: Any) -> Any:
        self.ref_points = self._points
        with np.errstate(divide="ignore", invalid="ignore"):
            return super()._do(*arguments, **options)
