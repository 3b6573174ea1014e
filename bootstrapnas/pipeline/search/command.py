"""Search a trained supernet for the Pareto-optimal subnets."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Optional

import torch

from bootstrapnas.costs import COSTS, Conditions, Cost
from bootstrapnas.dims import subnet_to_json
from bootstrapnas.distillation import divergence
from bootstrapnas.errors import UserError
from bootstrapnas.export.latency_table import LatencyTable
from bootstrapnas.nncf_config import NNCFConfig, read_config, search_settings, sequence_length
from bootstrapnas.outputs import Outputs
from bootstrapnas.pipeline.arguments import OutputArguments, TaskArguments, flag, required
from bootstrapnas.pipeline.data import Rows, check_writing, data_inputs, resolve_task, task_settings
from bootstrapnas.pipeline.deployed import Deployed
from bootstrapnas.pipeline.latency_table import LATENCY, TABLE_FILE, LatencyArguments, check_table, searched_table
from bootstrapnas.pipeline.models import SPACE_FILE, load_tokenizer, outputs_of
from bootstrapnas.pipeline.search.early_stop import check_early_stop, estimates, split_up
from bootstrapnas.pipeline.search.finalists import (
    Finalist,
    FinalistArguments,
    check_finalists,
    choose_finalists,
    measure_finalists,
    measured,
    without_attention,
)
from bootstrapnas.pipeline.search.objectives import (
    DIVERGENCE,
    ConstraintArguments,
    bounded_costs,
    check_bounds,
    check_divergence,
    describe,
    described,
    metric_of,
    objectives_of,
)
from bootstrapnas.pipeline.search.problem import Problem, build_problem, canonical_of, first_genomes
from bootstrapnas.pipeline.search.progression import Progression
from bootstrapnas.pipeline.stages import begin, preferred
from bootstrapnas.pipeline.supernets import (
    check_elastic,
    computing,
    evaluation_dtypes,
    load_supernet,
    read_super_adapter,
    read_trained,
)
from bootstrapnas.pipeline.teacher import validation_outputs
from bootstrapnas.progress import Ticker, notice, warn
from bootstrapnas.search import (
    ALGORITHMS,
    Algorithm,
    Candidate,
    Estimate,
    Evaluation,
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
    population: Optional[int] = flag(None, "Subnets of a generation: at least 2, unless the algorithm is random.")
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
    read_trained(search.supernet_dir)
    check_elastic(search.supernet_dir)
    spec = resolve_task(task_args, search.supernet_dir)
    check_writing(task_args, spec)
    config = read_config(Path(search.supernet_dir) / SPACE_FILE)
    spec = replace(spec, metric=metric_of(config, spec, typed))
    objectives = objectives_of(search.objectives, spec.metric, spec.maximise)
    by_latency = LATENCY in bounded_costs(bounds) or any(goal.name == LATENCY for goal in objectives)
    check_timing(typed, by_latency=by_latency, measured=finalists.measure_finalists > 0)
    check_finalists(finalists, timing, search.supernet_dir, spec, search.model_name_or_path)
    check_evaluation(search, spec, objectives)
    check_bounds(bounds, Objective(spec.metric, spec.maximise))
    check_table(timing, Path(output.output_dir), overwrite=output.overwrite_output_dir)
    stage = begin(
        "search",
        output.output_dir,
        typed,
        {"supernet": search.supernet_dir, "teacher": search.kd_teacher_model, **data_inputs(spec)},
        overwrite=output.overwrite_output_dir,
        settings=task_settings(spec),
        reusable=(TABLE_FILE,),
    )
    if stage.finished:
        return stage.directory
    settings = for_objectives(settings_of(search, config, typed, spec.maximise), objectives, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = evaluation_dtypes(search.supernet_dir, search.precision, device)
    supernet, _ = load_supernet(search.supernet_dir, spec, *dtypes, search.model_name_or_path)
    length = sequence_length(config)
    table, conditions = None, Conditions(length, None)
    if by_latency:
        table, conditions = latencies(search, timing, spec, supernet, length, stage.directory)
    metric = Objective(spec.metric, spec.maximise)
    problem = build_problem(supernet, objectives, metric, bounds, conditions)
    if table is not None:
        table.save(stage.directory / TABLE_FILE)
    rows = Rows(spec, load_tokenizer(search.supernet_dir), search.eval_batch_size)
    supernet.model.to(device)
    evaluate = evaluation_of(search, supernet, rows, objectives[-1], device)
    seeds = first_genomes(search.macs_ratios, supernet, length)[: settings.population]
    algorithm = build_algorithm(supernet.space.cardinalities, settings, seeds, problem.window)
    log = open_log(stage.directory, supernet, settings, problem)
    title = f"Search progression ({settings.algorithm})"
    files = Progression(stage.directory, supernet, metric, title, problem.cost)
    result = explore(algorithm, problem, supernet, settings.budget, evaluate, log, files)
    if len(result.candidates) < settings.budget:
        notice(f"search: nothing new to propose after {len(result.candidates)} of {settings.budget} proposals")
    if search.early_stop is not None:
        notice(saved(result.candidates))
    best = choose_best(result, metric, problem.cost, settings.ref_acc, settings.acc_delta)
    files.write(result.candidates, best)
    write_front(stage.directory, result, best, problem, supernet, length, table)  # whatever becomes of the finalists
    if finalists.measure_finalists:
        left_out = without_attention([*result.front, best], supernet) if spec.kind.causal else ()
        chosen = choose_finalists(result.front, best, finalists.measure_finalists, left_out)
        keep, base = finalists.keep_finalists, search.model_name_or_path
        found = measure_finalists(
            stage, chosen, search.supernet_dir, spec, timing, length, problem.costs, keep=keep, base=base
        )
        if problem.cost.name == LATENCY and chosen:
            best = best_as_measured(result, found, metric, settings.ref_acc, settings.acc_delta)
            files.write(result.candidates, best)
            write_front(stage.directory, result, best, problem, supernet, length, table)
    spec.save(stage.directory / "task.json")
    stage.complete(metric=metric.name, evaluations=len(log), best=dict(best.values))
    notice(
        f"search: {len(result.front)} of {len(log)} subnets are on the front; the best one has {metric.name} "
        f"{best.values[metric.name]:.4f} at {problem.cost.shown(best.values[problem.cost.name])}"
    )
    return stage.directory


def check_timing(typed: Mapping[str, Any], *, by_latency: bool, measured: bool) -> None:
    """Raise `UserError` if flags say how latencies are predicted or measured, and none are."""
    for field in fields(LatencyArguments):
        if field.name in typed and not by_latency and (field.name == "latency_table" or not measured):
            others = "" if field.name == "latency_table" else ", or --measure_finalists"
            raise UserError(f"--{field.name} needs latency among --objectives, or --max_latency_ms{others}")


def check_evaluation(search: SearchArguments, spec: TaskSpec, objectives: Sequence[Objective]) -> None:
    """Raise `UserError` if subnets cannot be evaluated as the flags ask."""
    if objectives[-1].name == DIVERGENCE:
        check_divergence(spec, search.early_stop)
    elif search.kd_teacher_model is not None:
        raise UserError("--kd_teacher_model has nothing to say in a search by the metric: --objectives divergence,macs")
    check_early_stop(search.early_stop, spec)
    if search.merge_adapters or search.model_name_or_path is not None:
        read_super_adapter(search.supernet_dir)


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


def latencies(
    search: SearchArguments,
    timing: LatencyArguments,
    spec: TaskSpec,
    supernet: Supernet,
    length: int,
    directory: Path,
) -> tuple[LatencyTable, Conditions]:
    """Return the table of latencies, after measuring what it lacks, and the conditions that predict by it."""
    deployed = Deployed(search.supernet_dir, spec, supernet, base=search.model_name_or_path)
    table = searched_table(timing, directory, deployed, length)
    predict, part = table.predict, deployed.part
    return table, Conditions(length, lambda subnet: predict(part(subnet)))


def evaluation_of(
    search: SearchArguments, supernet: Supernet, rows: Rows, goal: Objective, device: torch.device
) -> Evaluation:
    """Return what evaluates a genome on the validation rows.

    It measures the metric, part by part with ``--early_stop``, and the divergence where that is the goal.
    """
    model, metric, confidence = supernet.model, rows.spec.metric, search.early_stop

    def computed(genome: Genome) -> AbstractContextManager[None]:
        return computing(supernet, supernet.space.subnet(genome), merge=search.merge_adapters)

    if confidence is not None:
        parts = split_up(rows, "validation")

        def evaluate_in_parts(genome: Genome) -> Generator[Estimate, None, None]:
            with computed(genome):
                yield from estimates(model, rows, parts, confidence)

        return evaluate_in_parts

    batches = rows.batches("validation", tail=True)

    def outputs(genome: Genome) -> Outputs:
        with computed(genome):
            return outputs_of(model, rows, batches)

    if goal.name != DIVERGENCE:
        return lambda genome: {metric: rows.measure("validation", outputs(genome))[metric]}

    teacher = search.kd_teacher_model
    largest = supernet.space.max_genome
    reference = outputs(largest) if teacher is None else validation_outputs(rows, teacher, device)

    def evaluate(genome: Genome) -> dict[str, float]:
        found = outputs(genome)
        apart = divergence(rows.spec.kind.outputs, reference, found)
        return {metric: rows.measure("validation", found)[metric], DIVERGENCE: apart}

    return evaluate


def open_log(directory: Path, supernet: Supernet, settings: SearchSettings, problem: Problem) -> EvaluationLog:
    """Return the log of a search, with what an interrupted run of it evaluated."""
    described_search = {
        **asdict(settings),
        "objectives": [goal.name for goal in problem.objectives],
        "constraints": [asdict(each) for each in problem.constraints],
    }
    log = EvaluationLog(directory / EVALUATIONS, supernet.space.cardinalities, described_search)
    if len(log):
        notice(f"search: {len(log)} evaluations found")
    return log


def explore(
    algorithm: Algorithm,
    problem: Problem,
    supernet: Supernet,
    budget: int,
    evaluate: Evaluation,
    log: EvaluationLog,
    files: Progression,
) -> SearchResult:
    """Let the algorithm propose until its budget is spent; show how that goes on, here and in `files`."""
    metric, cost, known = problem.metric.name, problem.cost, len(log)
    with Ticker("search", budget) as ticker:

        def progress(done: int, candidate: Candidate) -> None:
            values = candidate.values
            measured = f"{metric} {values[metric]:.4f}" if metric in values else "out of bounds"
            stopped = "" if candidate.stopped is None else f"stopped after {candidate.stopped:.0%}, "
            ticker.update(done, f"{stopped}{measured} at {cost.shown(values[cost.name])}")

        def generation_done(candidates: Sequence[Candidate]) -> None:
            if len(log) > known:  # while a search that was killed is replayed, the files are there
                files.update(candidates)

        return run_search(
            algorithm,
            evaluate,
            problem.objectives,
            log,
            budget,
            progress,
            canonical_of(supernet),
            generation_done,
            problem.costs,
            problem.constraints,
        )


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


def write_front(
    directory: Path,
    result: SearchResult,
    best: Candidate,
    problem: Problem,
    supernet: Supernet,
    length: int,
    table: LatencyTable | None,
) -> None:
    """Write the front and the best subnet, with what their figures are of."""
    space, blueprint = supernet.space, supernet.blueprint
    write_pareto_json(
        directory / PARETO,
        result,
        best,
        describe=lambda genome: subnet_to_json(blueprint.complete(space.subnet(genome))),
        extra={
            "metric": problem.metric.name,
            "maximise": problem.metric.maximise,
            "cost": problem.cost.name,
            "full": problem.full,
            "length": length,
            "latency_table": None if table is None else table.summary(),
        },
    )
