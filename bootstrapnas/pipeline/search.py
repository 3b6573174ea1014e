"""Search a trained supernet for the Pareto-optimal subnets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Optional

import torch

from bootstrapnas.artefacts import read_stage
from bootstrapnas.costs import COSTS, FULL, Conditions, Cost, count_macs
from bootstrapnas.dims import subnet_to_json
from bootstrapnas.distillation import divergence
from bootstrapnas.errors import UserError
from bootstrapnas.nncf_config import NNCFConfig, read_config, search_settings, sequence_length
from bootstrapnas.outputs import Outputs
from bootstrapnas.pipeline.arguments import OutputArguments, TaskArguments, flag, required, shares
from bootstrapnas.pipeline.data import Rows, data_inputs, resolve_task, task_settings
from bootstrapnas.pipeline.deployed import Deployed
from bootstrapnas.pipeline.early_stop import check_early_stop, estimates, split_up
from bootstrapnas.pipeline.finalists import (
    Finalist,
    FinalistArguments,
    check_finalists,
    choose_finalists,
    measure_finalists,
    measured,
)
from bootstrapnas.pipeline.latency_table import LATENCY, LatencyArguments, searched_table
from bootstrapnas.pipeline.models import SPACE_FILE, load_tokenizer, outputs_of
from bootstrapnas.pipeline.objectives import (
    DIVERGENCE,
    ConstraintArguments,
    bounded_costs,
    check_divergence,
    constraints_of,
    describe,
    described,
    objectives_of,
)
from bootstrapnas.pipeline.stages import begin, preferred
from bootstrapnas.pipeline.supernets import (
    check_elastic,
    computing,
    evaluation_dtypes,
    load_supernet,
    read_super_adapter,
)
from bootstrapnas.pipeline.teacher import validation_outputs
from bootstrapnas.progress import Ticker, notice, warn
from bootstrapnas.search import (
    ALGORITHMS,
    Candidate,
    Constraint,
    CostWindow,
    Estimate,
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
from bootstrapnas.tasks import TaskSpec

# ruff: noqa: UP045

EVALUATIONS, PARETO = "evaluations.jsonl", "pareto.json"


@dataclass
class SearchArguments:
    """The search; what is not given comes from the config's bootstrapNAS.search section."""

    _argument_group_name = "search (default: the config's bootstrapNAS.search)"

    supernet_dir: str = required("Output of train.")
    objectives: str = flag(
        "metric,macs",
        f"What to improve, separated by commas: metric and any of {', '.join(COSTS)}; pictures show the first cost. "
        "Instead of metric, divergence: how far a subnet's outputs are from a teacher's, which few rows tell better.",
    )
    kd_teacher_model: Optional[str] = flag(
        None,
        "Whose outputs a divergence is from: hub id or directory, fine-tuned; default: the largest subnet.",
    )
    algorithm: Optional[str] = flag(None, f"{', '.join(ALGORITHMS)}.")
    num_evals: Optional[int] = flag(None, "Subnets to propose in all.")
    population: Optional[int] = flag(None, "Subnets of a generation.")
    search_seed: Optional[int] = flag(None, "Seed of the algorithm.")
    macs_ratios: Optional[str] = flag(
        None,
        "Shares of the full MACs that are wanted, separated by commas; a subnet of each is proposed first.",
    )
    ref_acc: Optional[float] = flag(
        None,
        "Metric that the best subnet is held against; above 1 it is a percentage where more is better, -1 is the "
        "maximum subnet's.",
    )
    acc_delta: Optional[float] = flag(None, "Points of a percent that the best subnet may lose against ref_acc.")
    eval_metric_name: Optional[str] = flag(None, "Metric to search by; default: the task's.")
    precision: str = flag(
        "auto",
        "Of the evaluations: auto (bfloat16 where the hardware has it, else as trained), float32, bfloat16.",
    )
    eval_batch_size: int = flag(64, "Rows of a batch.")
    merge_adapters: bool = flag(
        False, "Super-adapters: evaluate each subnet with its adapters added to a copy of its weights; faster."
    )
    model_name_or_path: Optional[str] = flag(
        None, "Super-adapters: where the base model is; default: where it was in training."
    )
    early_stop: Optional[float] = flag(
        None,
        "Stop evaluating a subnet once it will not reach the front, with this confidence: 0.99, or 1 for certain. "
        "Default: evaluate all on all rows.",
    )


GROUPS = (
    SearchArguments,
    ConstraintArguments,
    LatencyArguments,
    FinalistArguments,
    TaskArguments,
    OutputArguments,
)


def run(
    search: SearchArguments,
    bounds: ConstraintArguments,
    timing: LatencyArguments,
    finalists: FinalistArguments,
    task_args: TaskArguments,
    output: OutputArguments,
    *,
    typed: Mapping[str, Any],
) -> Path:
    """Search; return the output directory."""
    read_stage(search.supernet_dir, "train")
    check_elastic(search.supernet_dir)
    spec = resolve_task(task_args, search.supernet_dir)
    config = read_config(Path(search.supernet_dir) / SPACE_FILE)
    spec = replace(spec, metric=metric_of(search, config, spec, typed))
    objectives = objectives_of(search.objectives, spec.metric, spec.maximise)
    base = search.model_name_or_path
    by_latency = LATENCY in bounded_costs(bounds) or any(goal.name == LATENCY for goal in objectives)
    check_timing(typed, by_latency=by_latency, measured=finalists.measure_finalists > 0)
    check_finalists(finalists, timing, search.supernet_dir, spec, base)
    by_divergence = objectives[-1].name == DIVERGENCE
    if by_divergence:
        check_divergence(spec, search.early_stop)
    elif search.kd_teacher_model is not None:
        raise UserError("--kd_teacher_model has nothing to say in a search by the metric: --objectives divergence,macs")
    check_early_stop(search.early_stop, spec)
    if search.merge_adapters or base is not None:
        read_super_adapter(search.supernet_dir)
    stage = begin(
        "search",
        output.output_dir,
        typed,
        {"supernet": search.supernet_dir, "teacher": search.kd_teacher_model, **data_inputs(spec)},
        overwrite=output.overwrite_output_dir,
        settings=task_settings(spec),
    )
    if stage.finished:
        return stage.directory
    settings = for_objectives(settings_of(search, config, typed, spec.maximise), objectives, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    supernet, _ = load_supernet(
        search.supernet_dir, spec, *evaluation_dtypes(search.supernet_dir, search.precision, device), base
    )
    length = sequence_length(config)
    table, conditions = None, Conditions(length, None)
    if by_latency:
        deployed = Deployed(search.supernet_dir, spec, supernet, base=base)
        table = searched_table(timing, stage.directory, deployed, length)
        predict, part = table.predict, deployed.part
        conditions = Conditions(length, lambda subnet: predict(part(subnet)))
    metric = Objective(spec.metric, spec.maximise)
    problem = build_problem(supernet, objectives, metric, bounds, conditions)
    rows = Rows(spec, load_tokenizer(search.supernet_dir), search.eval_batch_size)
    prepared = rows.batches("validation", tail=True) if search.early_stop is None else []
    parts = [] if search.early_stop is None else split_up(rows, "validation")
    supernet.model.to(device)

    def outputs(genome: Genome) -> Outputs:
        with computing(supernet, supernet.space.subnet(genome), merge=search.merge_adapters):
            return outputs_of(supernet.model, rows, prepared)

    reference: Outputs = {}
    if by_divergence:
        teacher = search.kd_teacher_model
        reference = outputs(supernet.space.max_genome) if teacher is None else validation_outputs(rows, teacher, device)

    def evaluate(genome: Genome) -> dict[str, float]:
        found = outputs(genome)
        values = {spec.metric: rows.measure("validation", found)[spec.metric]}
        return values | ({DIVERGENCE: divergence(spec.kind.outputs, reference, found)} if by_divergence else {})

    def evaluate_in_parts(genome: Genome) -> Generator[Estimate, None, None]:
        with computing(supernet, supernet.space.subnet(genome), merge=search.merge_adapters):
            yield from estimates(supernet.model, rows, parts, search.early_stop or 1)

    space = supernet.space
    wanted = wanted_genomes(search.macs_ratios, supernet, length)
    seeds = list(dict.fromkeys([space.max_genome, *wanted, space.heuristic_genome, space.min_genome]))
    seeds = seeds[: settings.population]
    algorithm = build_algorithm(space.cardinalities, settings, seeds, problem.window)
    described_search = {
        **asdict(settings),
        "objectives": [goal.name for goal in objectives],
        "constraints": [asdict(each) for each in problem.constraints],
    }
    log = EvaluationLog(stage.directory / EVALUATIONS, space.cardinalities, described_search)
    if len(log):
        notice(f"search: {len(log)} evaluations found")
    with Ticker("search", settings.budget) as ticker:

        def progress(done: int, candidate: Candidate) -> None:
            measured = f"{spec.metric} {candidate.values[spec.metric]:.4f}" if spec.metric in candidate.values else ""
            stopped = "" if candidate.stopped is None else f"stopped after {candidate.stopped:.0%}, "
            reached = f"{stopped}{measured or 'out of bounds'}"
            ticker.update(done, f"{reached} at {problem.cost.shown(candidate.values[problem.cost.name])}")

        title = f"Search progression ({settings.algorithm})"
        files = Progression(stage.directory, supernet, metric, title, problem.cost)
        known = len(log)

        def generation_done(candidates: Sequence[Candidate]) -> None:
            if len(log) > known:  # while a search that was killed is replayed, the files are there
                files.update(candidates)

        result = run_search(
            algorithm,
            evaluate if search.early_stop is None else evaluate_in_parts,
            objectives,
            log,
            settings.budget,
            progress,
            canonical_of(supernet),
            generation_done,
            problem.costs,
            problem.constraints,
        )
    if search.early_stop is not None:
        notice(saved(result.candidates))
    best = choose_best(result, metric, problem.cost, settings.ref_acc, settings.acc_delta)
    if finalists.measure_finalists:
        chosen = choose_finalists(result.front, best, finalists.measure_finalists)
        found = measure_finalists(
            stage,
            chosen,
            search.supernet_dir,
            spec,
            timing,
            length,
            problem.costs,
            keep=finalists.keep_finalists,
            base=base,
        )
        if problem.cost.name == "latency":
            best = best_as_measured(result, found, metric, settings.ref_acc, settings.acc_delta)
    files.write(result.candidates, best)
    write_pareto_json(
        stage.directory / PARETO,
        result,
        best,
        describe=lambda genome: subnet_to_json(supernet.blueprint.complete(space.subnet(genome))),
        extra={
            "metric": spec.metric,
            "maximise": spec.maximise,
            "cost": problem.cost.name,
            "full": problem.full,
            "length": length,
            "latency_table": None if table is None else table.summary(),
        },
    )
    spec.save(stage.directory / "task.json")
    stage.complete(metric=spec.metric, evaluations=len(log), best=dict(best.values))
    reached = f"{spec.metric} {best.values[spec.metric]:.4f} " if spec.metric in best.values else ""
    notice(
        f"search: {len(result.front)} of {len(log)} subnets are on the front; the best one has {reached}at "
        f"{problem.cost.shown(best.values[problem.cost.name])}"
    )
    return stage.directory


ALWAYS = ("macs", "params")
"""Costs that every log has."""


@dataclass(frozen=True)
class Problem:
    """What a search knows of a subnet without evaluating it, and the bounds that hold.

    Attributes
    ----------
    cost
        The first of the objectives: what pictures show and the best subnet has least of.
    costs
        The costs of a genome, by name.
    full
        Those of the full model that are known in closed form.
    constraints
        The bounds.
    window
        Where the bounds on costs leave proposals; `None` if there are none.
    """

    cost: Cost
    costs: Callable[[Genome], dict[str, float]]
    full: dict[str, float]
    constraints: tuple[Constraint, ...]
    window: CostWindow | None


def build_problem(
    supernet: Supernet,
    objectives: Sequence[Objective],
    metric: Objective,
    bounds: ConstraintArguments,
    conditions: Conditions,
) -> Problem:
    """Return what the objectives and the bounds, which may be on the metric, need to know of a subnet.

    Raises
    ------
    UserError
        If a bound is out of its range, nothing keeps those on costs, or nothing predicts a latency that is asked for.
    """
    space, blueprint = supernet.space, supernet.blueprint
    aims = objectives[:-1]
    counted = [COSTS[name] for name in dict.fromkeys([*ALWAYS, *(goal.name for goal in aims), *bounded_costs(bounds)])]
    if conditions.latency is None and COSTS["latency"] in counted:
        raise UserError("a latency as objective or bound needs --latency_table: what the parts of a layer take here")
    full = {cost.name: cost.count(blueprint, FULL, conditions) for cost in counted if cost.closed_form}

    def costs(genome: Genome) -> dict[str, float]:
        subnet = space.subnet(genome)
        return {cost.name: cost.count(blueprint, subnet, conditions) for cost in counted}

    constraints = constraints_of(bounds, full, metric)
    window = None
    if bounded_costs(bounds):
        described_cost = partial(describe, full=full)
        window = CostWindow(space.cardinalities, costs, constraints, described_cost, canonical_of(supernet))
        window.fill(1, Random(0))  # where nothing is inside, this says so before anything is written
    return Problem(COSTS[aims[0].name], costs, full, constraints, window)


def check_timing(typed: Mapping[str, Any], *, by_latency: bool, measured: bool) -> None:
    """Raise `UserError` if flags say how latencies are predicted or measured, and none are."""
    for field in fields(LatencyArguments):
        if field.name in typed and not by_latency and (field.name == "latency_table" or not measured):
            others = "" if field.name == "latency_table" else ", or --measure_finalists"
            raise UserError(f"--{field.name} needs latency among --objectives, or --max_latency_ms{others}")


def for_objectives(settings: SearchSettings, objectives: Sequence[Objective], config: NNCFConfig) -> SearchSettings:
    """Return the settings with points of as many numbers as there are objectives.

    Raises
    ------
    UserError
        If RNSGA2 has points or weights, which in a config belong to MACs and the metric, and the objectives are others.
    """
    if [goal.name for goal in objectives[:-1]] == ["macs"] and objectives[-1].name != DIVERGENCE:
        return settings
    for name in ("aspiration_points", "weights"):
        if settings.algorithm == "RNSGA2" and name in config.search.model_fields_set:
            raise UserError(
                f"{config.path}: bootstrapNAS.search.{name} is of MACs and the metric, but --objectives are "
                f"{', '.join(goal.name for goal in objectives)}: leave it out, or search with NSGA2"
            )
    return replace(settings, aspiration_points=((0.0,) * len(objectives),), weights=None)


def metric_of(search: SearchArguments, config: NNCFConfig, spec: TaskSpec, typed: Mapping[str, Any]) -> str:
    """Return the metric that the flags, the config or the task name."""
    key = "bootstrapNAS.search.eval_metric_name"
    name = preferred(typed, "eval_metric_name", None, key, config.search.eval_metric_name)
    try:
        return spec.metric if name is None else spec.metric_named(name)
    except UserError as error:
        where = "--eval_metric_name" if "eval_metric_name" in typed else f"{config.path}: {key}"
        raise UserError(f"{where}: {error}") from None


def wanted_genomes(ratios: str | None, supernet: Supernet, length: int) -> list[Genome]:
    """Return a genome of about each share of the full model's MACs, not above it; warn where the space has none."""
    if ratios is None:
        return []
    space, blueprint = supernet.space, supernet.blueprint
    full, found = count_macs(blueprint, length=length), []
    for ratio in shares("macs_ratios", ratios):
        genome = space.within(lambda g: count_macs(blueprint, space.subnet(g), length=length), ratio * full)
        if genome is None:
            warn(f"--macs_ratios: no subnet of the space has at most {ratio:g} of the full model's MACs")
        else:
            found.append(genome)
    return found


def settings_of(
    search: SearchArguments, config: NNCFConfig, typed: Mapping[str, Any], maximise: bool
) -> SearchSettings:
    """Return the config's search settings, changed by the flags that were typed.

    `maximise` says whether more of the metric is better; then ``ref_acc`` is a share.
    """
    settings = search_settings(config)
    for name in ("algorithm", "num_evals", "population", "seed", "ref_acc", "acc_delta"):
        key, flag_name = f"bootstrapNAS.search.{name}", "search_seed" if name == "seed" else name
        chosen = preferred(typed, flag_name, None, key, settings.get(name))
        if chosen is not None:
            settings[name] = chosen
    if maximise and settings.get("ref_acc", -1.0) > 100:
        raise UserError(f"search: ref_acc must be a fraction, or a percentage up to 100, not {settings['ref_acc']:g}")
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


def saved(candidates: Sequence[Candidate]) -> str:
    """Return in words what stopping evaluations early saved."""
    begun = {each.genome: each.stopped for each in candidates if each.evaluated or each.stopped is not None}
    stopped = [share for share in begun.values() if share is not None]
    rows = sum(1 - share for share in stopped) / len(begun)
    return f"search: {len(stopped)} of {len(begun)} evaluations were stopped early, which saved {rows:.0%} of the rows"


def choose_best(
    result: SearchResult, metric: Objective, cost: Cost, ref_acc: float | None, acc_delta: float
) -> Candidate:
    """Return the cheapest candidate within the tolerated loss; when none is, warn and return the nearest to it.

    When all have lost more, the nearest is the one with the best metric; of equals, the cheapest. Candidates that
    break a bound are not chosen. If none keeps all bounds, a warning says so, and those that come nearest are chosen
    from. Where the bounds leave out the largest subnet, whose metric is the reference by default, it is the best metric
    within them instead.
    """
    candidates = result.admitted
    if candidates[0].violation:
        broken = [each for each in result.constraints if each.violation(candidates[0].values)]
        warn(
            f"search: no subnet found has {described(broken, {})}; the nearest has "
            + " and ".join(describe(each.name, candidates[0].values[each.name], {}) for each in broken)
        )
    best = min(candidates, key=lambda each: (metric.minimised(each.values), each.values[cost.name]))
    if result.constraints and ref_acc in (None, -1) and all(any(each.genome) for each in candidates):
        ref_acc = best.values[metric.name]
    try:
        return select_best(candidates, metric, cost.name, ref_acc, acc_delta)
    except NothingQualifiesError as error:
        warn(f"{error}; taking the nearest to the floor, which has {cost.shown(best.values[cost.name])}")
        return best


def best_as_measured(
    result: SearchResult, finalists: Sequence[Finalist], metric: Objective, ref_acc: float | None, acc_delta: float
) -> Candidate:
    """Return the finalist that `choose_best` chooses by what was measured instead of what the search knew."""
    real = measured(finalists, metric.name)
    if ref_acc in (None, -1) and not result.constraints:
        ref_acc = next(each.values[metric.name] for each in real if not any(each.genome))
    admitted = {candidate.genome: candidate for candidate in result.admitted}
    within = replace(result, candidates=tuple(each for each in real if each.genome in admitted))
    return admitted[choose_best(within, metric, COSTS["latency"], ref_acc, acc_delta).genome]


class Progression:
    """NNCF's search_progression.csv and .png, kept up to date while a search goes on."""

    PICTURE_EVERY_S = 10.0  # a picture takes a while to draw, a generation of a small model less

    def __init__(
        self, directory: Path, supernet: Supernet, metric: Objective, title: str, cost: Cost = COSTS["macs"]
    ) -> None:
        self.directory, self.metric, self.title, self.cost = directory, metric, title, cost
        self._space, self._blueprint = supernet.space, supernet.blueprint
        self._widths = [gene for gene in self._space.genes if not self._blueprint.is_block(gene.keys[0])]
        self._blocks = [gene for gene in self._space.genes if self._blueprint.is_block(gene.keys[0])]
        self._drawn = -math.inf

    def update(self, candidates: Sequence[Candidate]) -> None:
        """Write what was found so far; the picture only if the last one is some seconds old."""
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
