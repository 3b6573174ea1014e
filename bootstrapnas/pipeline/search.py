"""Search a trained supernet for the Pareto-optimal subnets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import torch

from bootstrapnas.artefacts import read_stage
from bootstrapnas.costs import count_costs
from bootstrapnas.dims import subnet_to_json
from bootstrapnas.evaluation import evaluation_dtype
from bootstrapnas.nncf_config import NNCFConfig, search_settings, sequence_length
from bootstrapnas.pipeline.arguments import OutputArguments, TaskArguments, flag, required
from bootstrapnas.pipeline.data import Rows, data_inputs, resolve_task, task_settings
from bootstrapnas.pipeline.models import evaluate_model, load_supernet, load_tokenizer
from bootstrapnas.pipeline.stages import begin, preferred
from bootstrapnas.progress import Ticker, notice, warn
from bootstrapnas.search import (
    Candidate,
    EvaluationLog,
    Genome,
    NothingQualifiesError,
    Objective,
    SearchResult,
    SearchSettings,
    build_algorithm,
    run_search,
    select_best,
    write_pareto_json,
    write_progression_csv,
    write_progression_png,
)
from bootstrapnas.supernet import Supernet

# ruff: noqa: UP045

COST = "macs"
EVALUATIONS, PARETO = "evaluations.jsonl", "pareto.json"


@dataclass
class SearchArguments:
    """The search; what is not given comes from the config's bootstrapNAS.search section."""

    _argument_group_name = "search (default: the config's bootstrapNAS.search)"

    supernet_dir: str = required("Output of eftnas train.")
    algorithm: Optional[str] = flag(None, "NSGA2 or random.")
    num_evals: Optional[int] = flag(None, "Subnets to propose in all.")
    population: Optional[int] = flag(None, "Subnets of a generation.")
    search_seed: Optional[int] = flag(None, "Seed of the algorithm.")
    ref_acc: Optional[float] = flag(
        None, "Metric that the best subnet is held against; above 1 it is a percentage, -1 is the maximum subnet's."
    )
    acc_delta: Optional[float] = flag(None, "Points of a percent that the best subnet may lose against ref_acc.")
    precision: str = flag("auto", "Of the evaluations: auto (bfloat16 where the hardware has it), float32, bfloat16.")
    eval_batch_size: int = flag(64, "Rows of a batch.")


GROUPS = (SearchArguments, TaskArguments, OutputArguments)


def run(
    search: SearchArguments, task_args: TaskArguments, output: OutputArguments, *, typed: Mapping[str, Any]
) -> Path:
    """Search; return the output directory."""
    read_stage(search.supernet_dir, "train")
    spec = resolve_task(task_args, search.supernet_dir)
    stage = begin(
        "search",
        output.output_dir,
        typed,
        {"supernet": search.supernet_dir, **data_inputs(spec)},
        overwrite=output.overwrite_output_dir,
        settings=task_settings(spec),
    )
    if stage.finished:
        return stage.directory
    supernet, config = load_supernet(search.supernet_dir, spec)
    settings, length = settings_of(search, config, typed), sequence_length(config)
    rows = Rows(spec, load_tokenizer(search.supernet_dir), search.eval_batch_size)
    prepared = rows.batches("validation")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    supernet.model.to(device, evaluation_dtype(search.precision, device))

    def evaluate(genome: Genome) -> dict[str, float]:
        subnet = supernet.space.subnet(genome)
        costs = count_costs(supernet.blueprint, subnet, length=length)
        with supernet.activate(subnet):
            metrics = evaluate_model(supernet.model, rows, "validation", prepared)
        return {spec.metric: metrics[spec.metric], COST: costs.macs, "params": costs.params}

    objectives = (Objective(COST), Objective(spec.metric, maximise=True))
    space = supernet.space
    seeds = list(dict.fromkeys([space.max_genome, space.heuristic_genome, space.min_genome]))[: settings.population]
    algorithm = build_algorithm(space.cardinalities, settings, seeds)
    log = EvaluationLog(stage.directory / EVALUATIONS, space.cardinalities, asdict(settings))
    if len(log):
        notice(f"search: {len(log)} evaluations found")
    with Ticker("search", settings.budget) as ticker:

        def progress(done: int, candidate: Candidate) -> None:
            values = candidate.values
            ticker.update(done, f"{spec.metric} {values[spec.metric]:.4f} at {values[COST] / 1e6:.0f} M MACs")

        result = run_search(algorithm, evaluate, objectives, log, settings.budget, progress, canonical_of(supernet))
    best = choose_best(result, spec.metric, settings.ref_acc, settings.acc_delta)
    write_results(stage.directory, result, best, supernet, spec.metric, length)
    spec.save(stage.directory / "task.json")
    stage.complete(metric=spec.metric, evaluations=len(log), best=dict(best.values))
    return stage.directory


def settings_of(search: SearchArguments, config: NNCFConfig, typed: Mapping[str, Any]) -> SearchSettings:
    """Return the config's search settings, changed by the flags that were typed."""
    settings = search_settings(config)
    for name in ("algorithm", "num_evals", "population", "seed", "ref_acc", "acc_delta"):
        key, flag_name = f"bootstrapNAS.search.{name}", "search_seed" if name == "seed" else name
        chosen = preferred(typed, flag_name, None, key, settings.get(name))
        if chosen is not None:
            settings[name] = chosen
    return SearchSettings(**settings)


def canonical_of(supernet: Supernet) -> Callable[[Genome], Genome]:
    """Return what maps a genome to the one that stands for its network: widths inside a skipped block at index 0."""
    space, blueprint = supernet.space, supernet.blueprint
    blocks = {key: blueprint.inside(key) for gene in space.genes for key in gene.keys if blueprint.is_block(key)}

    def canonical(genome: Genome) -> Genome:
        subnet = space.subnet(genome)
        idle = {key for block, inside in blocks.items() if subnet[block] == 0 for key in inside}
        return tuple(
            0 if idle.issuperset(gene.keys) else index for gene, index in zip(space.genes, genome, strict=True)
        )

    return canonical


def choose_best(result: SearchResult, metric: str, ref_acc: float | None, acc_delta: float) -> Candidate:
    """Return the cheapest candidate above the floor; when none is, warn and return the one with the best metric."""
    try:
        return select_best(result.candidates, metric, COST, ref_acc, acc_delta)
    except NothingQualifiesError as error:
        warn(f"{error}; taking the subnet with the best {metric}")
        return max(result.candidates, key=lambda c: (c.values[metric], -c.values[COST]))


def write_results(
    directory: Path, result: SearchResult, best: Candidate, supernet: Supernet, metric: str, length: int
) -> None:
    """Write search_progression.csv and .png and pareto.json."""
    space, blueprint = supernet.space, supernet.blueprint
    widths = [gene for gene in space.genes if not blueprint.is_block(gene.keys[0])]
    blocks = [gene for gene in space.genes if blueprint.is_block(gene.keys[0])]

    def describe_nncf(genome: Genome) -> tuple[dict[int, int], list[int] | None]:
        subnet = space.subnet(genome)
        channels = {
            group: subnet[gene.keys[0]] * blueprint.channels_per_unit(gene.keys[0]) for group, gene in enumerate(widths)
        }
        skipped = [number for number, gene in enumerate(blocks) if subnet[gene.keys[0]] == 0]
        return channels, skipped if blocks else None

    write_progression_csv(directory / "search_progression.csv", result.candidates, describe_nncf, metric=metric)
    write_progression_png(directory / "search_progression.png", result.candidates, metric=metric, chosen={"best": best})
    write_pareto_json(
        directory / PARETO,
        result,
        best,
        describe=lambda genome: subnet_to_json(blueprint.complete(space.subnet(genome))),
        extra={"metric": metric, "cost": COST, "length": length},
    )
