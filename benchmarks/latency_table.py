"""Latency tables: what they predict against what is measured, and what a search gains by them.

python benchmarks/latency_table.py [--precisions f32,bf16] [--batches 1,8] [--length 128] [--subnets 20]

A BERT of 6 layers x 384 with random weights, its heads, channels and half-blocks elastic. For every precision and batch
a table is measured, then random subnets that it has not seen. The second table has what the space's best subnets by
MACs and by predicted latency take, at the same value of the same made-up metric. As that adds up over layers too, they
are found exactly: a search's own luck does not blur what the objectives differ in.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import build_bert, write_table

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.export import available_precisions
from bootstrapnas.export.latency_build import (
    CHECKED,
    check_accuracy,
    checked_subnets,
    circumstances_of,
    complete_latency_table,
    models_to_measure,
    open_latency_table,
    openvino_timer,
)
from bootstrapnas.export.latency_table import LatencyTable
from bootstrapnas.space import SearchSpace

HEADS = (12, 10, 9, 8, 6, 4, 3, 2)
CHANNELS = (1536, 1280, 1187, 1024, 890, 768, 600, 512, 256)  # multiples of 128, and what ranking by importance leaves
EVENLY = (0, 0.2, 0.4, 0.6, 0.8, 1)
LEVELS = (0.95, 0.9, 0.8, 0.7)
STEPS = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", default=",".join(p for p in ("f32", "bf16") if p in available_precisions()))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--subnets", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    model = build_bert().eval()
    blueprint = Blueprint.of(model)
    space, length = build_space(blueprint), arguments.length
    suffix = "" if length == parser.get_default("length") else f"_{length}_tokens"
    accuracy_rows, search_rows = [], []
    for precision, batch in itertools.product(arguments.precisions.split(","), map(int, arguments.batches.split(","))):
        circumstances = circumstances_of(model, blueprint, precision=precision, batch=batch, length=length)
        with tempfile.TemporaryDirectory() as temporary, openvino_timer(model, blueprint, circumstances) as measure:
            path, started = Path(temporary) / "table.json", time.perf_counter()
            table = open_latency_table(path, blueprint, space, circumstances)
            models = models_to_measure(table, space) - CHECKED
            complete_latency_table(table, path, measure, space)
            seconds = time.perf_counter() - started
            subnets = checked_subnets(table, space, arguments.subnets, seed=1)
            found = check_accuracy(table, measure, subnets)
            assert found.rank_correlation is not None
            errors = [abs(p / m - 1) for p, m in zip(found.predicted_ms, found.measured_ms, strict=True)]
            evenly = even_subnets(space)
            even = check_accuracy(table, measure, evenly)
            (base,) = table.base_ms.values()
            added = [
                replace(each, predicted_ms=tuple(statistics.median(base) * table.added_up(subnet) for subnet in of))
                for each, of in ((found, subnets), (even, evenly))
            ]
            figures = [f"{found.mean_error:.1%}", f"{max(errors):.1%}", f"{found.rank_correlation:.3f}"]
            figures += [f"{even.mean_error:.1%}", *(f"{each.mean_error:.1%}" for each in added)]
            noise = (np.percentile(base, 75) - np.percentile(base, 25)) / np.median(base)
            spread = f"{min(found.measured_ms):.1f} - {max(found.measured_ms):.1f}"
            accuracy_rows.append(
                [precision, str(batch), str(models), f"{seconds:.0f}", spread, *figures, f"{noise:.1%}"]
            )
            for level in LEVELS:
                pair = [best_subnet(table, space, goal, level) for goal in ("macs", "latency")]
                first, second = (statistics.median(samples) for samples in measure(pair))
                shares = [count_macs(blueprint, s, length=length) / count_macs(blueprint, length=length) for s in pair]
                figures = [*(f"{share:.1%}" for share in shares), f"{first:.2f}", f"{second:.2f}"]
                search_rows.append([precision, str(batch), f"{level:.2f}", *figures, f"{1 - second / first:.1%}"])
    write_table(
        arguments.output / f"latency_table{suffix}.md",
        "Latency tables: predicted against measured",
        (
            "precision|batch|models measured|seconds|range (ms)|mean error|largest|rank correlation|evenly cut|"
            "random, added up|evenly cut, added up|noise"
        ).split("|"),
        accuracy_rows,
        f"BERT 6 x 384, random weights, {length} tokens; {arguments.subnets} random subnets that the table has not "
        f"seen, and {len(EVENLY)} evenly cut ones, every layer alike (mean error). Added up are the same predictions "
        "without their correction by the ends of the space. Seconds are those of the whole table, export and check "
        "included. Noise is the interquartile range of "
        "the reference's time between groups; predictions are ratios to it, taken side by side.",
    )
    write_table(
        arguments.output / f"latency_objective{suffix}.md",
        "The best subnet by latency and by MACs",
        [
            "precision",
            "batch",
            "metric",
            "MACs of best by MACs",
            "by latency",
            "ms of best by MACs",
            "by latency",
            "saved",
        ],
        search_rows,
        f"BERT 6 x 384, random weights, {length} tokens. The metric is made up, no accuracy: of every width the square "
        "root of the kept share, weighted at random, as a share of the full model's. Of the whole space the best "
        "subnet by each cost with at least that metric, measured side by side.",
    )


def build_space(blueprint: Blueprint) -> SearchSpace:
    """Return the space: all heads, channels and half-blocks."""
    choices = {"head": HEADS, "ffn": CHANNELS, "mha_block": (1, 0), "ffn_block": (1, 0)}
    return SearchSpace.build(blueprint, [(key, choices[key.dim]) for key in blueprint.elastic if key.dim in choices])


def even_subnets(space: SearchSpace) -> list[Subnet]:
    """Return subnets that have the same share of every width and skip nothing."""
    return [
        space.subnet(tuple(0 if 0 in gene.choices else round(place * (len(gene.choices) - 1)) for gene in space.genes))
        for place in EVENLY
    ]


def best_subnet(table: LatencyTable, space: SearchSpace, goal: str, level: float) -> Subnet:
    """Return the subnet of least MACs or predicted latency whose made-up metric is at least `level`.

    The metric is the sum over all widths of the square root of the kept share, weighted at random, as a share of the
    full model's: more is better, ever less so. Dynamic programming over the metric in `STEPS` steps.
    """
    blueprint, rng, length = table.blueprint, np.random.default_rng(0), table.circumstances.length

    def cost(subnet: Subnet) -> float:
        return count_macs(blueprint, subnet, length=length) if goal == "macs" else table.added_up(subnet)

    choices = {key: gene.choices for gene in space.genes for key in gene.keys}
    weights = {key: float(rng.uniform(0.5, 1.5)) for key in choices if not blueprint.is_block(key)}
    full, needed = cost({}), int(level * STEPS)
    best: dict[int, tuple[float, dict[Key, int]]] = {0: (full, {})}
    for width, weight in weights.items():
        block = Key("mha_block" if width.dim == "head" else "ffn_block", width.layer)
        better: dict[int, tuple[float, dict[Key, int]]] = {}
        for part in ({block: 0}, *({width: size} for size in choices[width])):
            kept = 0 if block in part else part[width] / blueprint.full[width]
            gained = round(STEPS * weight / sum(weights.values()) * kept**0.5)
            added = cost(part) - full
            for metric, (spent, subnet) in best.items():
                reached = min(metric + gained, needed)
                if reached not in better or spent + added < better[reached][0]:
                    better[reached] = (spent + added, subnet | part)
        best = better
    return best[needed][1]


if __name__ == "__main__":
    main()
