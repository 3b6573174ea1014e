"""What a search by latency gains over one by MACs on real data: both search the same trained supernets.

python benchmarks/latency_search.py --columns DIR... --work_dir DIR [--precision int8] [--batch 1] [--length 128]

A column is a directory of benchmarks/quality.py, such as WORK/stsb/seed0: a teacher and the supernet that learnt from
it. Two `eftnas search`es propose as many subnets by the divergence from the teacher on held-out rows and by MACs, or by
latency as a table predicts it. At divergences that both fronts reach, the cheapest subnet of each front is then
measured, all side by side. A rerun finds searches and table again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import write_table

from bootstrapnas.artefacts import read_json
from bootstrapnas.costs import count_macs
from bootstrapnas.errors import UserError
from bootstrapnas.export.latency_build import Measure, circumstances_of, openvino_timer
from bootstrapnas.export.latency_table import LatencyTable
from bootstrapnas.pipeline.cli import execute, to_arguments
from bootstrapnas.pipeline.data import Rows, inherited_task
from bootstrapnas.pipeline.latency_table import table_at
from bootstrapnas.pipeline.models import load_tokenizer, outputs_of
from bootstrapnas.pipeline.search.command import PARETO
from bootstrapnas.pipeline.search.objectives import DIVERGENCE
from bootstrapnas.pipeline.supernets import load_supernet
from bootstrapnas.search import Genome
from bootstrapnas.supernet import Supernet
from eftnas.commands import COMMANDS

COSTS = ("macs", "latency")
LEVELS = (0.2, 0.4, 0.6, 0.8)
"""Quantiles of the divergences on both fronts that subnets are compared at."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """The cheapest subnets by each of `COSTS` whose divergence is at most a level."""

    seed: int
    level: float
    entries: tuple[Entry, Entry]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=Path, nargs="+", required=True, help="of benchmarks/quality.py")
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--num_evals", type=int, default=100)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--seeds", default="0,1,2", help="of the searches")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(argv)
    try:
        compare(arguments)
    except UserError as error:
        print(f"latency_search: error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(arguments: argparse.Namespace) -> None:
    """Search every column by each cost, measure what is compared, and write the table."""
    lines, saved, errors = [], {}, []
    for column in arguments.columns:
        spec = inherited_task(str(column / "supernet"))
        supernet, _ = load_supernet(str(column / "supernet"), spec)
        circumstances = circumstances_of(
            supernet.model,
            supernet.blueprint,
            precision=arguments.precision,
            batch=arguments.batch,
            length=arguments.length,
        )
        directory = arguments.work_dir / column.parent.name / column.name
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{arguments.precision}_batch{arguments.batch}_{arguments.length}.json"
        table = table_at(path, supernet.model, supernet.blueprint, supernet.space, circumstances)
        rows = Rows(spec, load_tokenizer(str(column / "supernet")))
        pairs = []
        for seed in map(int, arguments.seeds.split(",")):
            fronts = [search(arguments, column, directory, path, seed, cost) for cost in COSTS]
            pairs += pairs_of(seed, *fronts)
        with openvino_timer(supernet.model, supernet.blueprint, circumstances) as measure:
            shares = []
            for pair in pairs:
                times = time_pair(measure, table, supernet, pair)
                shares.append(times[1] / times[0])
                errors += [
                    abs(
                        table.predict(supernet.blueprint.complete(supernet.space.subnet(tuple(entry["genome"])))) / time
                        - 1
                    )
                    for entry, time in zip(pair.entries, times, strict=True)
                ]
                lines.append(line_of(column.parent.name, pair, times, supernet, rows, arguments.length))
        saved[f"{column.parent.name} {column.name}"] = shares
    every = [share for shares in saved.values() for share in shares]
    by_task = ", ".join(f"{name} {1 - geometric_mean(shares):.1%}" for name, shares in saved.items())
    write_table(
        arguments.output / f"latency_search_{arguments.precision}_batch{arguments.batch}.md",
        "Searching by latency and by MACs, on real data",
        "task|search seed|divergence at most|MACs of best by MACs|by latency|metric of best by MACs|by latency|"
        "ms of best by MACs|by latency|saved".split("|"),
        lines,
        f"Trained supernets of a BERT of 6 layers x 384 (benchmarks/quality.py), {arguments.precision}, batch "
        f"{arguments.batch}, {arguments.length} tokens. Each search proposes {arguments.num_evals} subnets, "
        f"{arguments.population} a generation, by divergence from the teacher on held-out rows and one cost. Of both "
        "fronts the cheapest subnet with at most a divergence, which are the "
        f"{', '.join(f'{level:.0%}' for level in LEVELS)} quantiles of those on both fronts; the metric is of the "
        "official validation rows, in percent, before quantisation; times are measured side by side. Predictions of "
        f"these subnets were off by {statistics.mean(errors):.1%} on average.\n\n"
        f"Saved: {by_task}; all {1 - geometric_mean(every):.1%} (geometric means), from {1 - max(every):.1%} to "
        f"{1 - min(every):.1%}.",
    )


def search(
    arguments: argparse.Namespace, column: Path, directory: Path, table: Path, seed: int, cost: str
) -> list[Entry]:
    """Run `eftnas search` on a column's supernet by divergence and a cost; return the front."""
    by_latency = {
        "latency_table": table,
        "latency_precision": arguments.precision,
        "latency_batch": arguments.batch,
        "latency_length": arguments.length,
    }
    name = f"{table.stem}-{cost}" if cost == "latency" else cost
    found = execute(
        "eftnas",
        COMMANDS,
        "search",
        to_arguments(
            {
                "supernet_dir": column / "supernet",
                "kd_teacher_model": column / "teacher",
                "objectives": f"{DIVERGENCE},{cost}",
                "num_evals": arguments.num_evals,
                "population": arguments.population,
                "search_seed": seed,
                "output_dir": directory / f"{name}-seed{seed}",
                **(by_latency if cost == "latency" else {}),
            }
        ),
    )
    return list(read_json(Path(found) / PARETO)["front"])


def pairs_of(seed: int, by_macs: Sequence[Entry], by_latency: Sequence[Entry]) -> list[Pair]:
    """Return what is compared of two fronts: a pair for each of `LEVELS`, at divergences that both reach."""
    fronts = (by_macs, by_latency)
    reached = max(min(map(divergence, front)) for front in fronts)
    levels = np.quantile([divergence(entry) for front in fronts for entry in front], LEVELS)
    pairs = []
    for level in sorted({max(float(level), reached) for level in levels}):
        cheapest = [
            min((entry for entry in front if divergence(entry) <= level), key=lambda entry: entry["values"][cost])
            for front, cost in zip(fronts, COSTS, strict=True)
        ]
        if not pairs or pairs[-1].entries != tuple(cheapest):
            pairs.append(Pair(seed, level, (cheapest[0], cheapest[1])))
    return pairs


def divergence(entry: Entry) -> float:
    """Return the divergence of a subnet on a front."""
    return float(entry["values"][DIVERGENCE])


def time_pair(measure: Measure, table: LatencyTable, supernet: Supernet, pair: Pair) -> tuple[float, float]:
    """Return the milliseconds of both subnets: their ratios to the table's reference, times its time there."""
    blueprint, space = supernet.blueprint, supernet.space
    subnets = [blueprint.complete(space.subnet(tuple(entry["genome"]))) for entry in pair.entries]
    wide = table.wide(subnets[0])
    base, *others = measure([table.middle(wide), *subnets])
    first, second = (
        statistics.median(table.base_ms[wide]) * float(np.median(np.divide(samples, base))) for samples in others
    )
    return first, second


def line_of(
    task: str, pair: Pair, times: tuple[float, float], supernet: Supernet, rows: Rows, length: int
) -> list[str]:
    """Return a pair's line of the table."""
    full = count_macs(supernet.blueprint, length=length)
    genomes: list[Genome] = [tuple(entry["genome"]) for entry in pair.entries]
    shares = [count_macs(supernet.blueprint, supernet.space.subnet(g), length=length) / full for g in genomes]
    metrics = []
    for genome in genomes:
        with supernet.activate(supernet.space.subnet(genome)):
            outputs = outputs_of(supernet.model, rows, rows.batches("test", tail=True))
        metrics.append(rows.measure("test", outputs)[rows.spec.metric])
    return [
        task,
        str(pair.seed),
        f"{pair.level:.4f}",
        *(f"{share:.1%}" for share in shares),
        *(f"{100 * metric:.1f}" for metric in metrics),
        *(f"{time:.2f}" for time in times),
        f"{1 - times[1] / times[0]:.1%}",
    ]


def geometric_mean(shares: Sequence[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(shares))))


if __name__ == "__main__":
    sys.exit(main())
