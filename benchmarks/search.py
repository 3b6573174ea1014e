"""What the search algorithm itself costs: time per suggestion, without evaluating anything.

python benchmarks/search.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from common import write_table

from bootstrapnas.search import SearchSettings, build_algorithm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    rows = []
    for genes in (12, 24, 96):
        rng = np.random.default_rng(0)
        cardinalities = [5] * genes
        settings = SearchSettings(num_evals=1000, population=40)
        algorithm = build_algorithm(cardinalities, settings, [(0,) * genes, (4,) * genes])
        milliseconds = []
        for _ in range(settings.generations):
            start = time.perf_counter()
            genomes = algorithm.ask()
            asked = time.perf_counter() - start
            objectives = [(5.0 - sum(genome) / genes, sum(genome) / genes + rng.normal() / 10) for genome in genomes]
            start = time.perf_counter()
            algorithm.tell(genomes, objectives, [0.0] * len(genomes))
            milliseconds.append(1e3 * (asked + time.perf_counter() - start) / len(genomes))
        spread = np.percentile(milliseconds, (50, 0, 100))
        rows.append([f"NSGA-II, {genes} genes of 5 choices", *(f"{value:.3f}" for value in spread), "1"])
    write_table(
        arguments.output / "search.md",
        "Cost of the search algorithm",
        ["milliseconds a suggestion", "median", "min", "max", "at most"],
        rows,
        "Ask and tell of a generation of 40, divided by 40; 25 generations.",
    )


if __name__ == "__main__":
    main()
