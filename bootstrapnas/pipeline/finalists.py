"""What the finalists of a search really take: exported to OpenVINO and measured side by side on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rich

from bootstrapnas.artefacts import FORMAT, Stage, read_json, write_json
from bootstrapnas.costs import count_costs
from bootstrapnas.errors import UserError
from bootstrapnas.export import Latency, export_openvino, load_ir, measure_latency, predict_ir, speed_up
from bootstrapnas.export.latency_table import Accuracy
from bootstrapnas.pipeline.arguments import flag
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.export_data import VERIFICATION_ROWS
from bootstrapnas.pipeline.latency_table import LatencyArguments
from bootstrapnas.pipeline.models import load_tokenizer
from bootstrapnas.pipeline.supernets import SUPER_ADAPTER_FILE, load_supernet
from bootstrapnas.progress import notice
from bootstrapnas.report import Row, build_report, terminal_table, write_report
from bootstrapnas.search import Candidate, Genome
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TaskSpec

FINALISTS = "finalists"
FINALISTS_FILE = "finalists.json"
LARGEST = "largest"
"""Name of the largest subnet, which is measured beside the finalists."""
MAX_SECONDS = 60.0
"""Of all measurements together."""


@dataclass
class FinalistArguments:
    """What is done with the best of the front once the search has ended."""

    _argument_group_name = "finalists"

    measure_finalists: int = flag(0, "So many subnets of the front are exported to OpenVINO and measured here.")
    keep_finalists: bool = flag(False, "Keep their IRs below output_dir.")


@dataclass(frozen=True, slots=True)
class Finalist:
    """A subnet and what was measured of it.

    Attributes
    ----------
    name
        Its index on the front, or `LARGEST`.
    candidate
        What the search knew.
    metric
        The task's metric of its IR on the validation rows, in float32.
    latency
        Measured beside the others.
    """

    name: str
    candidate: Candidate
    metric: float
    latency: Latency


def check_finalists(arguments: FinalistArguments, supernet_dir: str, spec: TaskSpec) -> None:
    """Raise `UserError` unless finalists of this supernet can be measured, where that is asked for."""
    if arguments.measure_finalists < 0:
        raise UserError(f"--measure_finalists must not be negative, is {arguments.measure_finalists}")
    if arguments.measure_finalists == 0:
        if arguments.keep_finalists:
            raise UserError("--keep_finalists needs --measure_finalists: none are exported without")
        return
    if spec.kind.causal:
        raise UserError("--measure_finalists measures encoders; export language models one by one")
    if (Path(supernet_dir) / SUPER_ADAPTER_FILE).is_file():
        raise UserError(
            f"--measure_finalists: {supernet_dir} is a super-adapter; extract and export its subnets one by one"
        )


def choose_finalists(front: Sequence[Candidate], best: Candidate, count: int) -> dict[str, Candidate]:
    """Return up to `count` candidates by name: the best one, and what else lies evenly along the front, its ends first.

    Parameters
    ----------
    front
        In ascending order of the first cost.
    best
        Chosen by the search; it may not be on the front.
    count
        At least 1.
    """
    names = {candidate.genome: str(index) for index, candidate in enumerate(front)}
    wanted = [round(step * (len(front) - 1) / max(1, count - 1)) for step in range(count)]
    chosen = [best, *(front[index] for index in dict.fromkeys(sorted(wanted, key=lambda i: (i != 0, -i))))]
    distinct = list({candidate.genome: candidate for candidate in chosen}.values())[:count]
    ordered = sorted(distinct, key=lambda each: int(names.get(each.genome, -1)))
    return {names.get(each.genome, "best"): each for each in ordered}


def measure_finalists(
    stage: Stage,
    chosen: Mapping[str, Candidate],
    supernet_dir: str,
    spec: TaskSpec,
    timing: LatencyArguments,
    length: int,
    costs: Callable[[Genome], Mapping[str, float]],
    *,
    keep: bool,
) -> list[Finalist]:
    """Extract, export and measure candidates, the largest subnet beside them; write `FINALISTS_FILE` and a report.

    What was exported and evaluated before a kill is found again; latencies are measured together, and so anew.

    Parameters
    ----------
    stage
        The search, not complete yet.
    chosen
        By name.
    supernet_dir
        Where the weights are: those of the search may be in another precision.
    spec, timing
        The task, and how to measure.
    length
        Tokens of a row, where `timing` says nothing.
    costs
        What the search knows of a genome.
    keep
        Whether the IRs stay.
    """
    supernet, _ = load_supernet(supernet_dir, spec)
    candidates = dict(chosen)
    largest = supernet.space.max_genome
    if all(each.genome != largest for each in candidates.values()):
        candidates[LARGEST] = Candidate(largest, costs(largest), 0)
    rows = Rows(spec, load_tokenizer(supernet_dir), VERIFICATION_ROWS)
    directory = stage.directory / FINALISTS
    metrics, irs = {}, {}
    for name, candidate in candidates.items():
        irs[name] = directory / "ir" / name
        metrics[name] = _exported(irs[name], candidate, supernet, rows)
        notice(f"finalists: {name} has {spec.metric} {metrics[name]:.4f} as an IR")
    found = measure_latency(
        irs,
        batch=timing.latency_batch,
        length=timing.latency_length or length,
        precision=timing.latency_precision,
        max_seconds=MAX_SECONDS,
    )
    finalists = [Finalist(name, each, metrics[name], found[name]) for name, each in candidates.items()]
    _write(stage, finalists, supernet, spec, length)
    if not keep:
        shutil.rmtree(directory / "ir")
    return finalists


def measured(finalists: Sequence[Finalist], metric: str) -> list[Candidate]:
    """Return the finalists as candidates whose metric and latency are those measured."""
    return [
        replace(
            each.candidate, values={**each.candidate.values, metric: each.metric, "latency": each.latency.median_ms}
        )
        for each in finalists
    ]


def _exported(directory: Path, candidate: Candidate, supernet: Supernet, rows: Rows) -> float:
    """Export a candidate and return the metric of its IR; both are found again if they were there."""
    spec, note = rows.spec, directory.with_suffix(".json")
    genome = list(candidate.genome)
    if note.is_file():
        noted = read_json(note)
        if noted["genome"] == genome and directory.is_dir():
            return float(noted[spec.metric])
    batches = rows.batches("validation")
    model = supernet.extract(supernet.space.subnet(candidate.genome))
    directory.parent.mkdir(parents=True, exist_ok=True)
    export_openvino(model, rows.tokenizer, directory, example_batches=[batches[0], batches[-1]])
    metric = rows.measure("validation", predict_ir(load_ir(directory, "f32"), batches, spec.kind.outputs))[spec.metric]
    write_json(note, {"genome": genome, spec.metric: metric})
    return metric


def _write(stage: Stage, finalists: Sequence[Finalist], supernet: Supernet, spec: TaskSpec, length: int) -> None:
    """Write what was measured as JSON and as a table, and print that."""
    reference = next(each for each in finalists if not any(each.candidate.genome))
    entries: list[dict[str, Any]] = [
        {
            "name": each.name,
            "genome": list(each.candidate.genome),
            "values": dict(each.candidate.values),
            "measured": {spec.metric: each.metric, "latency": each.latency.median_ms},
            "latency": each.latency.to_json(),
            "speed_up": speed_up(reference.latency, each.latency),
        }
        for each in finalists
    ]
    notes = [f"{spec.metric} on the validation rows, by the float32 IR; names are indices on the front."]
    accuracy = None
    if all("latency" in each.candidate.values for each in finalists):
        accuracy = Accuracy(
            tuple(each.candidate.values["latency"] for each in finalists),
            tuple(each.latency.median_ms for each in finalists),
        )
        notes.append(f"The latencies that the search predicted: {accuracy}.")
    write_json(
        stage.directory / FINALISTS_FILE,
        {
            "format": FORMAT,
            "metric": spec.metric,
            "predicted_latency": None if accuracy is None else accuracy.to_json(),
            "finalists": entries,
        },
    )
    ordered = [reference, *(each for each in finalists if each is not reference)]
    title = f"{spec.task_name}: the finalists of the search"
    report = build_report(
        [
            Row(
                each.name if each is not reference else LARGEST,
                count_costs(supernet.blueprint, supernet.space.subnet(each.candidate.genome), length=length),
                {spec.metric: each.metric},
                latency={each.latency.settings.precision: each.latency},
            )
            for each in ordered
        ],
        title=title,
        percent=spec.maximise,
        notes=notes,
    )
    write_report(report, stage.directory / FINALISTS, picture=stage.directory / "search_progression.png")
    rich.print(terminal_table(report))
