"""What a search by latency gains over one by MACs on real data: both search the same trained supernets.

python benchmarks/latency_search.py --columns DIR... --work_dir DIR [--precision int8] [--batch 1] [--length 128]

A column is a directory of benchmarks/quality.py or skippable.py, such as WORK/stsb/seed0: a teacher and the supernet
that learnt from it; or one with links of these names, `supernet` to a trained super-adapter and `teacher` to a merged
LoRA. Two `eftnas search`es propose as many subnets by the divergence from the teacher on held-out rows and by MACs, or
by latency as a table predicts it. At divergences that both fronts reach, the cheapest subnet of each front is then
measured, all side by side; and, as searches differ by luck, too, so are the cheapest by either cost of all subnets that
both proposed. A rerun finds searches and table again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from columns import obey
from common import write_table

from bootstrapnas.artefacts import STAGE_FILE, read_json, replacing_directory, write_json
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Subnet
from bootstrapnas.export.latency_build import Measure, circumstances_of, openvino_timer
from bootstrapnas.export.latency_table import LatencyTable
from bootstrapnas.pipeline.cli import execute, to_arguments
from bootstrapnas.pipeline.data import Rows, inherited_task
from bootstrapnas.pipeline.deployed import Deployed
from bootstrapnas.pipeline.latency_table import table_at
from bootstrapnas.pipeline.models import SPACE_FILE, load_tokenizer, outputs_of
from bootstrapnas.pipeline.search.command import EVALUATIONS, PARETO
from bootstrapnas.pipeline.search.objectives import DIVERGENCE
from bootstrapnas.pipeline.supernets import SUPER_ADAPTER_FILE, load_supernet
from bootstrapnas.progress import notice
from bootstrapnas.search import Genome
from bootstrapnas.space import SearchSpace
from bootstrapnas.supernet import Supernet
from eftnas.commands import COMMANDS

COSTS = ("macs", "latency")
LEVELS = (0.2, 0.4, 0.6, 0.8)
"""Quantiles of the divergences on both fronts that subnets are compared at."""

FRONTS, POOLED = "each search's", "both searches'"
"""Of which subnets the cheapest ones are compared: the front that each search found by its cost, or all proposed."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """The cheapest subnets by each of `COSTS` whose divergence is at most a level, of the subnets of `FRONTS` or so."""

    seed: int
    of: str
    level: float
    entries: tuple[Entry, Entry]


@dataclass(frozen=True)
class Searched:
    """A column's supernet, the latency table of its space, what is to be compared, and the reported metric of each."""

    name: str
    deployed: Deployed
    space: SearchSpace
    table: LatencyTable
    pairs: tuple[Pair, ...]
    metrics: Mapping[Genome, float]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=Path, nargs="+", required=True, help="of benchmarks/quality.py")
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--num_evals", type=int, default=100)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--eval_rows", type=int, help="held-out rows that a divergence is measured on; default: all")
    parser.add_argument("--seeds", default="0,1,2", help="of the searches")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    return obey("latency_search", parser.parse_args(argv), compare)


def compare(arguments: argparse.Namespace) -> None:
    """Search every column by each cost, measure what is compared, and write the table."""
    every = [search_column(arguments, column) for column in arguments.columns]
    notice("latency_search: measuring; nothing else should run on this machine now")
    lines, errors = [], []
    saved: dict[str, dict[str, list[float]]] = {FRONTS: {}, POOLED: {}}
    for searched in every:
        deployed = searched.deployed
        with openvino_timer(deployed.model, deployed.blueprint, searched.table.circumstances) as measure:
            for pair in searched.pairs:
                times = time_pair(measure, searched, pair)
                saved[pair.of].setdefault(searched.name, []).append(times[1] / times[0])
                errors += [
                    abs(searched.table.predict(subnet_of(entry, searched.space, deployed)) / time - 1)
                    for entry, time in zip(pair.entries, times, strict=True)
                ]
                lines.append(line_of(searched, pair, times, arguments.length))
    adapters = any((column / "supernet" / SUPER_ADAPTER_FILE).is_file() for column in arguments.columns)
    trained = "supernets (benchmarks/quality.py or benchmarks/skippable.py)"
    if adapters:
        trained = "super-adapters (benchmarks/adapters_quality.py)"
    told = []
    for of, shares in saved.items():
        pooled = [share for each in shares.values() for share in each]
        by_task = ", ".join(f"{name} {1 - geometric_mean(each):.1%}" for name, each in shares.items())
        told.append(
            f"Saved, of {of} subnets: {by_task}; all {1 - geometric_mean(pooled):.1%} (geometric means), from "
            f"{1 - max(pooled):.1%} to {1 - min(pooled):.1%}."
        )
    write_table(
        arguments.output / f"latency_search_{'adapters_' if adapters else ''}{setting_of(arguments)}.md",
        "Searching by latency and by MACs, on real data",
        "task|search seed|subnets|divergence at most|MACs of best by MACs|by latency|metric of best by MACs|by latency|"
        "ms of best by MACs|by latency|saved".split("|"),
        lines,
        f"Trained {trained} of a BERT of 6 layers x 384, {arguments.precision}, batch "
        f"{arguments.batch}; time and MACs of {arguments.length} tokens. Each search proposes {arguments.num_evals} "
        f"subnets, {arguments.population} a generation, by divergence from the teacher on "
        f"{arguments.eval_rows or 'the'} held-out rows and one cost. "
        "Compared are the cheapest subnets with at most a divergence, of each search's front by its own cost, or by "
        "either cost of all subnets that both searches proposed; divergences are the "
        f"{', '.join(f'{level:.0%}' for level in LEVELS)} quantiles of those on both fronts. The metric is of the "
        "official validation rows, in percent, before quantisation; times are measured side by side. Predictions of "
        f"these subnets were off by {statistics.mean(errors):.1%} on average.\n\n" + "\n\n".join(told),
    )


def search_column(arguments: argparse.Namespace, column: Path) -> Searched:
    """Measure the latency table of a column's space, search it by each cost, and return what is to be compared."""
    directory = arguments.work_dir / column.parent.name / column.name
    directory.mkdir(parents=True, exist_ok=True)
    trained = of_length(column / "supernet", directory / f"supernet_{arguments.length}", arguments.length)
    spec = inherited_task(str(trained))
    supernet, _ = load_supernet(str(trained), spec)
    deployed, space = Deployed(str(trained), spec, supernet), supernet.space
    measured = {name: getattr(arguments, name) for name in ("precision", "batch", "length")}
    circumstances = circumstances_of(deployed.model, deployed.blueprint, **measured)
    path = directory / f"{setting_of(arguments)}.json"
    table = table_at(path, deployed.model, deployed.blueprint, deployed.space, circumstances)
    pairs: list[Pair] = []
    for seed in map(int, arguments.seeds.split(",")):
        found = [search(arguments, column, directory, trained, path, seed, cost) for cost in COSTS]
        fronts = [list(read_json(each / PARETO)["front"]) for each in found]
        pairs += pairs_of(seed, FRONTS, *fronts)
        proposed = [
            with_latency(entry, table.predict(subnet_of(entry, space, deployed)))
            for each in found
            for entry in evaluated(each)
        ]
        pairs += pairs_of(seed, POOLED, *(front_of(proposed, cost) for cost in COSTS))
    rows = Rows(spec, load_tokenizer(str(trained)))
    genomes = dict.fromkeys(tuple(entry["genome"]) for pair in pairs for entry in pair.entries)
    metrics = {genome: reported(supernet, genome, rows) for genome in genomes}
    return Searched(f"{column.parent.name} {column.name}", deployed, space, table, tuple(pairs), metrics)


def setting_of(arguments: argparse.Namespace) -> str:
    """Return what latencies are of, for names of files."""
    return f"{arguments.precision}_batch{arguments.batch}_{arguments.length}"


def of_length(trained: Path, directory: Path, length: int) -> Path:
    """Return a copy of a supernet whose config says that sequences have so many tokens, as costs go by it."""
    if not directory.is_dir():
        with replacing_directory(directory) as temporary:
            shutil.copytree(trained, temporary, dirs_exist_ok=True)
            config = read_json(temporary / SPACE_FILE)
            for entry in config["input_info"]:
                entry["sample_size"][1] = length
            write_json(temporary / SPACE_FILE, config)
            stage = read_json(temporary / STAGE_FILE)
            stage["files"][SPACE_FILE] = (temporary / SPACE_FILE).stat().st_size
            write_json(temporary / STAGE_FILE, stage)
    return directory


def search(
    arguments: argparse.Namespace, column: Path, directory: Path, trained: Path, table: Path, seed: int, cost: str
) -> Path:
    """Run `eftnas search` on a column's supernet by divergence and a cost; return its directory."""
    by_latency = {
        "latency_table": table,
        "latency_precision": arguments.precision,
        "latency_batch": arguments.batch,
        "latency_length": arguments.length,
    }
    name = table.stem if cost == "latency" else str(arguments.length)
    found = execute(
        "eftnas",
        COMMANDS,
        "search",
        to_arguments(
            {
                "supernet_dir": trained,
                "kd_teacher_model": column / "teacher",
                "objectives": f"{DIVERGENCE},{cost}",
                "num_evals": arguments.num_evals,
                "population": arguments.population,
                "max_eval_samples": arguments.eval_rows,
                "search_seed": seed,
                "output_dir": directory / f"{name}-{cost}-seed{seed}",
                **(by_latency if cost == "latency" else {}),
            }
        ),
    )
    return Path(found)


def evaluated(found: Path) -> list[Entry]:
    """Return all subnets that a search proposed."""
    lines = (found / EVALUATIONS).read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "genome" in entry]


def with_latency(entry: Entry, latency: float) -> Entry:
    """Return what a search says of a subnet with its latency."""
    return {**entry, "values": {**entry["values"], "latency": latency}}


def subnet_of(entry: Entry, space: SearchSpace, deployed: Deployed) -> Subnet:
    """Return an entry's subnet as it is deployed: without the ranks of adapters, which are merged."""
    return deployed.part(space.subnet(tuple(entry["genome"])))


def front_of(entries: Sequence[Entry], cost: str) -> list[Entry]:
    """Return the subnets that no other one beats by divergence and a cost."""
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: (divergence(entry), entry["values"][cost])):
        if not front or entry["values"][cost] < front[-1]["values"][cost]:
            front.append(entry)
    return front


def pairs_of(seed: int, of: str, by_macs: Sequence[Entry], by_latency: Sequence[Entry]) -> list[Pair]:
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
            pairs.append(Pair(seed, of, level, (cheapest[0], cheapest[1])))
    return pairs


def divergence(entry: Entry) -> float:
    """Return the divergence of a subnet on a front."""
    return float(entry["values"][DIVERGENCE])


def reported(supernet: Supernet, genome: Genome, rows: Rows) -> float:
    """Return the task's metric of a subnet on the official validation rows."""
    with supernet.activate(supernet.space.subnet(genome)):
        outputs = outputs_of(supernet.model, rows, rows.batches("test", tail=True))
    return rows.measure("test", outputs)[rows.spec.metric]


def time_pair(measure: Measure, searched: Searched, pair: Pair) -> tuple[float, float]:
    """Return the milliseconds of both subnets: their ratios to the table's reference, times its time there.

    Where both are one model, it is measured once.
    """
    blueprint, table = searched.deployed.blueprint, searched.table
    first, last = (blueprint.complete(subnet_of(entry, searched.space, searched.deployed)) for entry in pair.entries)
    wide = table.wide(first)
    base, *others = measure([table.middle(wide), first, *([] if last == first else [last])])
    times = [statistics.median(table.base_ms[wide]) * float(np.median(np.divide(samples, base))) for samples in others]
    return times[0], times[-1]


def line_of(searched: Searched, pair: Pair, times: tuple[float, float], length: int) -> list[str]:
    """Return a pair's line of the table."""
    blueprint = searched.deployed.blueprint
    full = count_macs(blueprint, length=length)
    subnets = [subnet_of(entry, searched.space, searched.deployed) for entry in pair.entries]
    return [
        searched.name.split()[0],
        str(pair.seed),
        pair.of,
        f"{pair.level:.4f}",
        *(f"{count_macs(blueprint, subnet, length=length) / full:.1%}" for subnet in subnets),
        *(f"{100 * searched.metrics[tuple(entry['genome'])]:.1f}" for entry in pair.entries),
        *(f"{time:.2f}" for time in times),
        f"{1 - times[1] / times[0]:.1%}",
    ]


def geometric_mean(shares: Sequence[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(shares))))


if __name__ == "__main__":
    sys.exit(main())
