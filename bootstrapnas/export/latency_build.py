"""Measure a latency table: export the states of a model's parts, group by group, and time them side by side."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from bootstrapnas.artefacts import writing
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.export.compression import COMPRESSED, WeightCompression, compress
from bootstrapnas.export.conversion import random_batch
from bootstrapnas.export.latency import Latency, time_generation, time_latency
from bootstrapnas.export.latency_table import (
    STEPS,
    Accuracy,
    Circumstances,
    LatencyTable,
    middle_subnet,
    shape_digest,
)
from bootstrapnas.export.openvino import check_formats, conversion_class
from bootstrapnas.export.quantisation import quantise_for_speed
from bootstrapnas.export.runtime import INT8, MODEL_FILE, check_device, check_measured, compile_ir
from bootstrapnas.extraction import extract
from bootstrapnas.space import SearchSpace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

K = TypeVar("K")
Measure: TypeAlias = Callable[[Sequence[Subnet]], Sequence[Sequence[float]]]
"""Measures subnets side by side: for each, its milliseconds in each turn."""

GROUP = 5
"""States that are exported and measured together, beside the reference; a kill loses one group at most."""
REPEATS = 40
MAX_SECONDS = 30.0
"""Of one group: large models get fewer repeats, each of which says more."""
NEW_TOKENS = 8
"""Steps of decoding that make up one sample of the time per token."""
CHECKED = 8
"""Random subnets that a new table is checked on."""


def circumstances_of(
    model: PreTrainedModel,
    blueprint: Blueprint,
    *,
    precision: str,
    batch: int,
    length: int,
    step: str | None = None,
    threads: int | None = None,
    weight_format: str = "fp32",
    device: str = "CPU",
) -> Circumstances:
    """Return what a table measured here and now is of; by default the pass of an encoder, the prefill of an LM.

    Raises
    ------
    UserError
        If there is no such device, it does not compute in `precision`, the model takes no such input, or it is not
        exported so.
    """
    import openvino as ov

    for name, value in (("batch", batch), ("length", length), ("threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    step = _step(model, step)
    limit, room = blueprint.family.max_length, _new_tokens(step)
    if limit is not None and length + room > limit(blueprint.config):
        more = f", {room} new ones after them included" if room else ""
        raise UserError(f"length {length} exceeds the {limit(blueprint.config)} tokens that the model takes{more}")
    check_device(device)
    check_measured(precision, device)
    check_formats(model, weight_format, quantised=precision in INT8)
    return Circumstances(
        device=ov.Core().get_property(device, "FULL_DEVICE_NAME").strip(),
        openvino=ov.__version__.partition("-")[0],
        threads=_threads(threads, device),
        precision=precision,
        batch=batch,
        length=length,
        step=step,
        model=shape_digest(blueprint),
        weight_format=weight_format,
        target=device,
    )


def open_latency_table(
    path: str | os.PathLike[str], blueprint: Blueprint, space: SearchSpace, circumstances: Circumstances
) -> LatencyTable:
    """Return the table in a file, or an empty one for a space if there is no file.

    Raises
    ------
    UserError
        If the file holds something else than a table of these circumstances.
    """
    if Path(path).exists():
        return LatencyTable.load(path, blueprint, circumstances)
    return LatencyTable(blueprint, circumstances, middle_subnet(blueprint, space))


def complete_latency_table(
    table: LatencyTable,
    path: str | os.PathLike[str],
    measure: Measure,
    space: SearchSpace,
    progress: Callable[[int, str], None] = lambda done, state: None,
) -> None:
    """Measure what a table lacks to predict every subnet of a space, and check it on random ones.

    The file is written after every group of states, so that a call after a kill goes on where it ended.

    Parameters
    ----------
    table, path
        From `open_latency_table`.
    measure
        How, for example what `openvino_timer` returns.
    space
        The sizes to measure.
    progress
        Called with the number of models measured, of `models_to_measure`, and a few words.
    """
    missing = table.missing(space)
    if not missing and not table.missing_ends(space) and table.accuracy is not None:
        return
    done = 0
    for wide, places in missing.items():
        for start in range(0, len(places) or 1, GROUP):
            group = {place: table.subnet(place) for place in places[start : start + GROUP]}
            progress(done, "; ".join(place.part.describe(place.state) for place in group))
            base, ratios = _beside(measure, table.middle(wide), group)
            table.add(wide, base, ratios)
            table.save(path)
            done += len(group)
    for wide, ends in table.missing_ends(space).items():
        progress(done, "the largest and the smallest subnet")
        _, times = _beside(measure, table.middle(wide), {end: dict(end) for end in ends})
        table.add_ends(times)
        table.save(path)
        done += len(ends)
    progress(done, "checking it on random subnets")
    checked = checked_subnets(table, space)
    table.accuracy = check_accuracy(table, measure, checked)
    table.save(path)
    progress(done + len(checked), "")


def models_to_measure(table: LatencyTable, space: SearchSpace) -> int:
    """Return how many models `complete_latency_table` will measure, apart from the reference."""
    states, ends = table.missing(space), table.missing_ends(space)
    if not states and not ends and table.accuracy is not None:
        return 0
    needed = sum(map(len, states.values())) + sum(map(len, ends.values()))
    return needed + len(checked_subnets(table, space))


def checked_subnets(table: LatencyTable, space: SearchSpace, count: int = CHECKED, seed: int = 0) -> Sequence[Subnet]:
    """Return distinct random subnets of a space that can be measured; fewer if it has no more."""
    random = Random(seed)
    drawn = (table.blueprint.complete(space.subnet(space.sample(random))) for _ in range(4 * count))
    distinct = {tuple(sorted(subnet.items())): subnet for subnet in drawn if table.is_measurable(subnet)}
    return list(distinct.values())[:count]


def check_accuracy(table: LatencyTable, measure: Measure, subnets: Sequence[Subnet]) -> Accuracy:
    """Measure subnets beside the table's reference and hold them against their predictions.

    As what a machine does at other times is none of the table's business, what was measured is the ratio to the
    reference, times the reference's time in the table.
    """
    predicted, measured = [], []
    for start in range(0, len(subnets), GROUP):
        group = dict(enumerate(subnets[start : start + GROUP]))
        wide = table.wide(group[0])
        _, ratios = _beside(measure, table.middle(wide), group)
        predicted += [table.predict(subnet) for subnet in group.values()]
        measured += [statistics.median(table.base_ms[wide]) * ratio for ratio in ratios.values()]
    return Accuracy(tuple(predicted), tuple(measured))


@contextlib.contextmanager
def openvino_timer(
    model: PreTrainedModel,
    blueprint: Blueprint,
    circumstances: Circumstances,
    *,
    repeats: int = REPEATS,
    max_seconds: float = MAX_SECONDS,
) -> Iterator[Measure]:
    """Yield what extracts subnets of a model, exports them and times the IRs in turns.

    The first subnet of a call, the reference, is exported once for all calls in which it is the same.

    Parameters
    ----------
    model
        The full-size model, elastic or not. Its weights do not matter.
    blueprint
        Its blueprint.
    circumstances
        What to compute in, on which input.
    repeats
        Turns, fewer where `max_seconds` have passed.
    """
    references: dict[tuple[tuple[Key, int], ...], Path] = {}
    with tempfile.TemporaryDirectory(prefix="latency_table.") as directory:

        def export(subnet: Subnet, target: Path) -> Path:
            small = extract(model, blueprint, subnet).float()
            export_quickly(small, target, circumstances.weight_format, quantised=circumstances.precision in INT8)
            return target

        def measure(subnets: Sequence[Subnet]) -> list[Sequence[float]]:
            reference, *others = subnets
            key = tuple(sorted(reference.items()))
            if key not in references:
                references[key] = export(reference, Path(directory) / f"reference{len(references)}")
            with tempfile.TemporaryDirectory(dir=directory) as temporary:
                irs = [references[key]]
                irs += [export(subnet, Path(temporary) / str(number)) for number, subnet in enumerate(others)]
                found = _time(irs, circumstances, repeats, max_seconds)
            return [latency.samples_ms for latency in found]

        yield measure


def _time(irs: Sequence[Path], circumstances: Circumstances, repeats: int, max_seconds: float) -> list[Latency]:
    """Load IRs and time them side by side."""
    precision = INT8.get(circumstances.precision, circumstances.precision)
    threads = circumstances.threads or None
    models = {ir: compile_ir(ir, precision, threads, {}, circumstances.target) for ir in irs}
    batch, length = circumstances.batch, circumstances.length
    if circumstances.step == "pass":
        found = time_latency(models, batch=batch, length=length, repeats=repeats, max_seconds=max_seconds)
        return list(found.values())
    new_tokens = _new_tokens(circumstances.step)
    generations = time_generation(
        models, batch=batch, length=length, new_tokens=new_tokens, repeats=repeats, max_seconds=max_seconds
    ).values()
    return [each.token if circumstances.step == "token" else each.prefill for each in generations]


def export_quickly(
    model: PreTrainedModel, directory: Path, weight_format: str = "fp32", *, quantised: bool = False
) -> None:
    """Write an IR that is measured and forgotten: as `export_openvino` does, but without verification.

    Activations, if they are `quantised`, are by random tokens.
    """
    import openvino as ov

    name, vocabulary = type(model).__name__, model.config.vocab_size
    ir = conversion_class(model)(model, None, [random_batch(vocabulary, 2)]).convert()
    if quantised:
        ir = quantise_for_speed(ir, name, vocabulary)
    elif weight_format in COMPRESSED:
        ir = compress(ir, name, weight_format, WeightCompression(), ())
    directory.mkdir(parents=True)
    with writing(directory):
        ov.save_model(ir, directory / MODEL_FILE, compress_to_fp16=weight_format == "fp16")
        model.config.save_pretrained(directory)


def _beside(measure: Measure, reference: Subnet, subnets: Mapping[K, Subnet]) -> tuple[float, dict[K, float]]:
    """Measure subnets beside a reference; return its milliseconds and their ratios to it, the medians over turns."""
    base, *others = measure([reference, *subnets.values()])
    ratios = [float(np.median(np.divide(samples, base))) for samples in others]
    return float(np.median(base)), dict(zip(subnets, ratios, strict=True))


def _step(model: PreTrainedModel, step: str | None) -> str:
    """Return what to time of a model; `UserError` if it has no such step."""
    known = STEPS[1:] if model.can_generate() else STEPS[:1]
    if step is not None and step not in known:
        raise UserError(f"{type(model).__name__} has no step {step!r}, only {listed(known)}{near_miss(step, known)}")
    return step or known[0]


def _new_tokens(step: str) -> int:
    """Return how many tokens are decoded after the prompt where a step is timed."""
    return {"pass": 0, "prefill": 1, "token": NEW_TOKENS}[step]


def _threads(threads: int | None, device: str) -> int:
    """Return how many threads OpenVINO will use, which it says of a compiled model only; 0 if not on the CPU."""
    import openvino as ov

    if device != "CPU":
        if threads is not None:
            raise UserError(f"threads are the CPU's; {device} takes none")
        return 0
    hints = {"PERFORMANCE_HINT": "LATENCY"} | ({} if threads is None else {"INFERENCE_NUM_THREADS": threads})
    parameter = ov.opset13.parameter([1])
    model = ov.Model([ov.opset13.relu(parameter)], [parameter])
    return int(ov.Core().compile_model(model, device, hints).get_property("INFERENCE_NUM_THREADS"))
