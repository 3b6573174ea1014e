"""What the finalists of a search really take: exported to OpenVINO and measured side by side on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import rich

from bootstrapnas.artefacts import FORMAT, Stage, read_json, write_json
from bootstrapnas.costs import count_costs
from bootstrapnas.dims import Subnet
from bootstrapnas.errors import UserError
from bootstrapnas.export import Latency, Quantisation, export_openvino, load_ir, speed_up
from bootstrapnas.export.causal import CausalConversion
from bootstrapnas.export.conversion import EncoderConversion
from bootstrapnas.export.latency import time_generation, time_latency
from bootstrapnas.export.latency_build import NEW_TOKENS
from bootstrapnas.export.latency_table import STEPS, Accuracy
from bootstrapnas.export.openvino import check_suitable
from bootstrapnas.export.runtime import INT8, MODEL_FILE, check_device, check_measured, compile_ir
from bootstrapnas.extraction import load_config
from bootstrapnas.pipeline.arguments import flag
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.deployed import Deployed
from bootstrapnas.pipeline.export_data import CALIBRATION_ROWS, VERIFICATION_ROWS, calibration_of
from bootstrapnas.pipeline.latency_table import LatencyArguments
from bootstrapnas.pipeline.models import load_tokenizer, max_length, outputs_of_ir
from bootstrapnas.pipeline.supernets import SUPER_ADAPTER_FILE, load_supernet, read_super_adapter
from bootstrapnas.progress import notice, warn
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
REPEATS = 30
"""Of a language model's prompt and the tokens after it."""
ENCODER_STEPS, CAUSAL_STEPS = STEPS[:1], STEPS[1:]


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
        The task's metric on the validation rows, of its IR, where that has no integers computed in float32.
    latency
        What the search goes by, measured beside the others.
    figures
        All that was measured, by what a report calls it: of a language model, reading a prompt and a token after it.
    """

    name: str
    candidate: Candidate
    metric: float
    latency: Latency
    figures: Mapping[str, Latency] = field(default_factory=dict)


def check_finalists(
    arguments: FinalistArguments, timing: LatencyArguments, supernet_dir: str, spec: TaskSpec, base: str | None
) -> None:
    """Raise `UserError` unless finalists of this supernet can be measured, where that is asked for.

    `base` is where the base of a super-adapter is now; None for where it was in training.
    """
    if arguments.measure_finalists < 0:
        raise UserError(f"--measure_finalists must not be negative, is {arguments.measure_finalists}")
    if arguments.measure_finalists == 0:
        if arguments.keep_finalists:
            raise UserError("--keep_finalists needs --measure_finalists: none are exported without")
        return
    for name in ("latency_batch", "latency_length"):
        value = getattr(timing, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    check_device(timing.latency_device)
    check_measured(timing.latency_precision, timing.latency_device)
    kind = CausalConversion if spec.kind.causal else EncoderConversion
    quantised = timing.latency_precision in INT8
    check_suitable(kind, f"a subnet of {supernet_dir}", timing.latency_weight_format, quantised=quantised)
    known = CAUSAL_STEPS if spec.kind.causal else ENCODER_STEPS
    if timing.latency_step not in (None, *known):
        raise UserError(f"--latency_step must be {' or '.join(known)}, not {timing.latency_step!r}")
    longest = _longest_prompt(supernet_dir, spec, base)
    if timing.latency_length is not None and timing.latency_length > longest:
        room = f", and {NEW_TOKENS} more after them" if spec.kind.causal else ""
        raise UserError(
            f"--latency_length {timing.latency_length} exceeds the {int(longest)} tokens that the model takes{room}"
        )


def choose_finalists(
    front: Sequence[Candidate], best: Candidate, count: int, left_out: Container[Genome] = ()
) -> dict[str, Candidate]:
    """Return up to `count` candidates by name: the best one, and what else lies evenly along the front, its ends first.

    Parameters
    ----------
    front
        In ascending order of the first cost.
    best
        Chosen by the search; it may not be on the front.
    count
        At least 1.
    left_out
        Genomes that are not to be chosen.
    """
    names = {candidate.genome: str(index) for index, candidate in enumerate(front)}
    admitted = [candidate for candidate in front if candidate.genome not in left_out]
    wanted = {round(step * (len(admitted) - 1) / max(1, count - 1)) for step in range(count)} if admitted else set()
    chosen = [best] if best.genome not in left_out else []
    chosen += [admitted[index] for index in sorted(wanted, key=lambda i: (i != 0, -i))]
    distinct = list({candidate.genome: candidate for candidate in chosen}.values())[:count]
    ordered = sorted(distinct, key=lambda each: int(names.get(each.genome, -1)))
    return {names.get(each.genome, "best"): each for each in ordered}


def without_attention(candidates: Sequence[Candidate], supernet: Supernet) -> set[Genome]:
    """Return the genomes of language models that skip all attention, with a warning if there are any.

    Their IRs would have no keys and values to keep, without which nothing generates texts.
    """
    places, space = supernet.blueprint.cache_places, supernet.space
    found = {each.genome for each in candidates if not places(space.subnet(each.genome))}
    if found:
        warn(f"finalists: not measured, as no IR is made of what skips all attention: {len(found)} of the front")
    return found


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
    base: str | None = None,
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
    base
        Where the base of a super-adapter is now; None for where it was in training.
    """
    supernet, _ = load_supernet(supernet_dir, spec, None, base=base)
    deployed = Deployed(supernet_dir, spec, supernet, base=base)
    candidates = dict(chosen)
    largest = supernet.space.max_genome
    if all(each.genome != largest for each in candidates.values()):
        candidates[LARGEST] = Candidate(largest, costs(largest), 0)
    rows = Rows(spec.greedily(), load_tokenizer(supernet_dir), VERIFICATION_ROWS)
    directory = stage.directory / FINALISTS
    metrics, irs = {}, {}
    for name, candidate in candidates.items():
        irs[name] = directory / "ir" / name
        subnet = supernet.space.subnet(candidate.genome)
        metrics[name] = _exported(irs[name], subnet, candidate, deployed, rows, timing)
        notice(f"finalists: {name} has {spec.metric} {metrics[name]:.4f}, exported")
    tokens = timing.latency_length or int(min(length, _longest_prompt(supernet_dir, spec, base)))
    figures = _measured(irs, timing, tokens, causal=spec.kind.causal)
    step = timing.latency_step or (CAUSAL_STEPS if spec.kind.causal else ENCODER_STEPS)[0]
    finalists = [
        Finalist(name, each, metrics[name], figures[name][step], _named(figures[name], timing))
        for name, each in candidates.items()
    ]
    sizes = {name: directory.joinpath(MODEL_FILE).with_suffix(".bin").stat().st_size for name, directory in irs.items()}
    _write(stage, finalists, supernet, deployed, spec, length, timing, sizes)
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


def _longest_prompt(supernet_dir: str, spec: TaskSpec, base: str | None) -> float:
    """Return how many tokens the model takes, less those that a language model writes while it is measured."""
    adapted = (Path(supernet_dir) / SUPER_ADAPTER_FILE).is_file()
    config = load_config(read_super_adapter(supernet_dir, base).base if adapted else supernet_dir)
    return max_length(config) - (NEW_TOKENS if spec.kind.causal else 0)


def _measured(
    irs: Mapping[str, Path], timing: LatencyArguments, length: int, *, causal: bool
) -> dict[str, dict[str, Latency]]:
    """Measure IRs side by side; return, by name, what each step takes."""
    shape = {"batch": timing.latency_batch, "length": length}
    precision = INT8.get(timing.latency_precision, timing.latency_precision)
    models = {
        name: compile_ir(directory, precision, None, {}, timing.latency_device) for name, directory in irs.items()
    }
    if not causal:
        passes = time_latency(models, **shape, max_seconds=MAX_SECONDS)
        return {name: {ENCODER_STEPS[0]: latency} for name, latency in passes.items()}
    found = time_generation(models, **shape, new_tokens=NEW_TOKENS, repeats=REPEATS, max_seconds=MAX_SECONDS)
    return {name: {"prefill": each.prefill, "token": each.token} for name, each in found.items()}


def _named(figures: Mapping[str, Latency], timing: LatencyArguments) -> dict[str, Latency]:
    """Return figures by what a report calls them."""
    precision = timing.latency_precision
    if timing.latency_weight_format != "fp32":
        precision = f"{timing.latency_weight_format} weights, {precision}"
    if len(figures) == 1:
        return {precision: next(iter(figures.values()))}
    return {f"{precision} {step}": latency for step, latency in figures.items()}


def _exported(
    directory: Path, subnet: Subnet, candidate: Candidate, deployed: Deployed, rows: Rows, timing: LatencyArguments
) -> float:
    """Export a candidate as it is deployed and return its metric; both are found again if they were there."""
    spec, note = rows.spec, directory.with_suffix(".json")
    quantised = timing.latency_precision in INT8
    what = {
        "genome": list(candidate.genome),
        "weight_format": timing.latency_weight_format,
        "quantised": quantised,
    }
    if note.is_file():
        noted = read_json(note)
        if noted.items() >= what.items() and directory.is_dir():
            return float(noted[spec.metric])
    batches = rows.batches("validation")
    model = deployed.extract(subnet)
    directory.parent.mkdir(parents=True, exist_ok=True)
    export_openvino(
        model,
        rows.tokenizer,
        directory,
        weight_format=timing.latency_weight_format,
        quantisation=Quantisation() if quantised else None,
        calibration=calibration_of(rows, CALIBRATION_ROWS) if quantised else (),
        example_batches=[batches[0], batches[-1]],
    )
    metric = rows.measure("validation", outputs_of_ir(load_ir(directory, "f32"), rows, batches))[spec.metric]
    write_json(note, {**what, spec.metric: metric})
    return metric


def _relative(finalists: Sequence[Finalist], reference: Finalist) -> Accuracy | None:
    """Hold what was predicted, as shares of the largest subnet's time, against what was measured side by side.

    The shares are in the milliseconds that were predicted of the largest subnet. There is nothing to tell of it alone.
    """
    others = [each for each in finalists if each is not reference]
    if not others:
        return None
    full = reference.candidate.values["latency"]
    return Accuracy(
        tuple(each.candidate.values["latency"] for each in others),
        tuple(full / speed_up(reference.latency, each.latency) for each in others),
    )


def _format_of(timing: LatencyArguments) -> str:
    """Return what IRs are called by how they were exported."""
    if timing.latency_precision in INT8:
        return "int8"
    return "float32" if timing.latency_weight_format == "fp32" else timing.latency_weight_format


def _write(
    stage: Stage,
    finalists: Sequence[Finalist],
    supernet: Supernet,
    deployed: Deployed,
    spec: TaskSpec,
    length: int,
    timing: LatencyArguments,
    sizes: Mapping[str, int],
) -> None:
    """Write what was measured as JSON and as a table, and print that. `sizes` are those of the files of weights."""
    reference = next(each for each in finalists if not any(each.candidate.genome))
    entries: list[dict[str, Any]] = [
        {
            "name": each.name,
            "genome": list(each.candidate.genome),
            "values": dict(each.candidate.values),
            "measured": {spec.metric: each.metric, "latency": each.latency.median_ms},
            "latency": each.latency.to_json(),
            "figures": {name: latency.to_json() for name, latency in each.figures.items()},
            "speed_up": speed_up(reference.latency, each.latency),
        }
        for each in finalists
    ]
    exported = _format_of(timing)
    by = f"the {exported} IR" + (", which writes greedily" if spec.generation is not None else "")
    notes = [f"{spec.metric} on the validation rows, by {by}; names are indices on the front."]
    accuracy = relative = None
    if all("latency" in each.candidate.values for each in finalists):
        accuracy = Accuracy(
            tuple(each.candidate.values["latency"] for each in finalists),
            tuple(each.latency.median_ms for each in finalists),
        )
        notes.append(f"The latencies that the search predicted: {accuracy}.")
        relative = _relative(finalists, reference)
        if relative is not None:
            notes.append(f"As shares of the largest subnet's, whatever the machine did since the table: {relative}.")
    write_json(
        stage.directory / FINALISTS_FILE,
        {
            "format": FORMAT,
            "metric": spec.metric,
            "predicted_latency": None if accuracy is None else accuracy.to_json(),
            "predicted_share": None if relative is None else relative.to_json(),
            "finalists": entries,
        },
    )
    costs = {
        each.name: count_costs(
            deployed.blueprint, deployed.part(supernet.space.subnet(each.candidate.genome)), length=length
        )
        for each in finalists
    }
    ordered = [reference, *(each for each in finalists if each is not reference)]
    title = f"{spec.task_name}: the finalists of the search"
    report = build_report(
        [
            Row(
                each.name if each is not reference else LARGEST,
                costs[each.name],
                {spec.metric: each.metric},
                bytes_per_param=4 if exported == "float32" else sizes[each.name] / costs[each.name].params,
                latency=each.figures,
            )
            for each in ordered
        ],
        title=title,
        percent=spec.maximise,
        notes=notes,
    )
    write_report(report, stage.directory / FINALISTS, picture=stage.directory / "search_progression.png")
    rich.print(terminal_table(report))
