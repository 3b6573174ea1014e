"""The closing table of a run: the full model against the chosen subnets, measured side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich

from bootstrapnas.artefacts import open_stage, read_json
from bootstrapnas.costs import Costs
from bootstrapnas.export import EXPORT_FILE, available_precisions, load_ir, measure_latency
from bootstrapnas.export.runtime import INT8
from bootstrapnas.extraction import SUBNET_FILE
from bootstrapnas.pipeline.card import write_card
from bootstrapnas.pipeline.data import Rows, inherited_task
from bootstrapnas.pipeline.latency_table import LATENCY
from bootstrapnas.pipeline.models import load_tokenizer, outputs_of_ir
from bootstrapnas.pipeline.search.command import EVALUATIONS, PARETO
from bootstrapnas.progress import notice, warn
from bootstrapnas.report import Report, Row, build_report, terminal_table, write_report
from bootstrapnas.tasks import TaskSpec, tfidf_baseline, why_no_rows

PRECISIONS = ("f32", "bf16")
SECONDS_A_PRECISION = 20.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table: what it is called, and the Hugging Face directory and the IR of its model.

    `quantised` entries are further IRs of a model that has an entry already.
    """

    name: str
    model: Path
    ir: Path
    quantised: bool = False


def write_run_report(
    entries: Sequence[Entry],
    directory: Path,
    *,
    search_dir: Path,
    split: str,
    batch: int,
    length: int | None,
    repeats: int,
) -> Report:
    """Measure every entry, write ``report.{json,md,html}`` and the subnets' model cards, and print the table.

    The first entry is the full model, quantised ones come last. Metrics are those of the IR at float32 on `split`, or
    on the validation rows, with a warning, where there are none of it; latencies are measured together, at float32 and,
    where the CPU has it, at bfloat16. Measured anew at every call.
    """
    spec = inherited_task(str(entries[0].model)).greedily()
    models = [entry for entry in entries if not entry.quantised]
    subnets = {entry.model: read_json(entry.model / SUBNET_FILE) for entry in models[1:]}
    full = Costs(**next(iter(subnets.values()))["full_costs"])
    costs = {entries[0].model: full, **{model: Costs(**found["costs"]) for model, found in subnets.items()}}
    rows_of_task = Rows(spec, load_tokenizer(str(entries[0].model)), 32)
    if split != "validation" and getattr(rows_of_task.data, split) is None:
        warn(f"report.split {split}: {why_no_rows(spec, split)}; the report is of the validation rows")
        split = "validation"
    prepared = rows_of_task.batches(split)
    metrics = {}
    for entry in entries:
        notice(f"report: evaluating {entry.name}")
        outputs = outputs_of_ir(load_ir(entry.ir, "f32"), rows_of_task, prepared)
        metrics[entry.name] = rows_of_task.measure(split, outputs)
    irs = {entry.name: entry.ir for entry in entries}
    latency = {
        precision: measure_latency(
            irs,
            batch=batch,
            length=length or full.length,
            precision=precision,
            repeats=repeats,
            max_seconds=SECONDS_A_PRECISION,
        )
        for precision in PRECISIONS
        if precision in available_precisions()
    }
    table = read_json(search_dir / PARETO).get("latency_table")
    predicted = {} if table is None else predicted_latencies(entries, subnets, search_dir, table)
    report = build_report(
        [
            Row(
                entry.name,
                costs[entry.model],
                {spec.metric: metrics[entry.name][spec.metric]},
                bytes_per_param=_bytes_per_param(entry, costs[entry.model]),
                latency={precision: found[entry.name] for precision, found in latency.items()},
                predicted_ms=predicted.get(entry.name),
            )
            for entry in entries
        ],
        title=f"{spec.task_name}: the full model and its subnets",
        percent=spec.maximise,
        notes=notes(spec, rows_of_task, split) + quantised_notes(entries) + prediction_notes(predicted, table),
    )
    stage = open_stage(directory, "report", {}, {}, overwrite=True)
    write_report(report, directory, picture=search_dir / "search_progression.png")
    stage.complete()
    for entry in models[1:]:
        write_card(entry.model, entry.name, report, ir=f"../../ir/{entry.ir.name}")
    rich.print(terminal_table(report))
    notice(f"report: {directory}")
    return report


def notes(spec: TaskSpec, rows: Rows, split: str) -> list[str]:
    """Return what a reader of the table should know of the task and the metric."""
    found = [f"{spec.metric} on the {len(rows.rows(split))} rows of the {split} split, by the IR computed in float32."]
    if spec.is_classification:
        found.append(f"TF-IDF with logistic regression reaches {tfidf_baseline(rows.data, split):.1%} there.")
    return found


def quantised_notes(entries: Sequence[Entry]) -> list[str]:
    """Return what a reader should know of the quantised entries."""
    names = [entry.name for entry in entries if entry.quantised]
    if not names:
        return []
    return [
        f"{', '.join(names)}: the same networks with int8 weights, and products in int8 where the export says so; the "
        "precision of a latency is that of all else."
    ]


def predicted_latencies(
    entries: Sequence[Entry], subnets: Mapping[Path, Mapping[str, Any]], search_dir: Path, table: Mapping[str, Any]
) -> dict[str, float]:
    """Return by entry the milliseconds that the search predicted by its latency table.

    They are of the largest subnet for the full model, and of the quantised entries if the table is of int8, else of the
    others. A subnet that was not chosen by the search has none.
    """
    lines = (search_dir / EVALUATIONS).read_text(encoding="utf-8").splitlines()[1:]
    largest: Mapping[str, float] = next(
        (entry["values"] for entry in map(json.loads, lines) if not any(entry["genome"])), {}
    )
    known = {entry.model: largest for entry in entries[:1]}
    known |= {model: found["search_values"] or {} for model, found in subnets.items()}
    quantised = table["precision"] in INT8
    return {
        entry.name: known[entry.model][LATENCY]
        for entry in entries
        if entry.quantised == quantised and LATENCY in known[entry.model]
    }


def prediction_notes(predicted: Mapping[str, float], table: Mapping[str, Any] | None) -> list[str]:
    """Return what a reader should know of predicted latencies."""
    if not predicted or table is None:
        return []
    return [
        f"Predicted latencies are the search's, by its latency table: {table['weight_format']} weights, "
        f"{table['precision']}, batch {table['batch']}, {table['length']} tokens, {table['threads']} threads of "
        f"{table['device']}; the full model's is that of the largest subnet."
    ]


def _bytes_per_param(entry: Entry, costs: Costs) -> float:
    """Return 4, or of what is quantised the bytes of the weights file by parameter, scales and float rests included."""
    if not entry.quantised:
        return 4
    return float(read_json(entry.ir / EXPORT_FILE)["size"] / costs.params)
