"""A benchmark as tables for a terminal, Markdown, JSON and a picture."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bootstrapnas.artefacts import FORMAT, read_json, replacing, versions, write_json, write_text
from bootstrapnas.errors import UserError
from bootstrapnas.export.runtime import INT8
from bootstrapnas.pipeline.benchmark.side_by_side import Benchmark, Measurement
from bootstrapnas.report import MISSING, NOISY
from bootstrapnas.search.base import Objective
from bootstrapnas.search.pareto import pareto_front
from bootstrapnas.tasks.next_token import LESS_IS_BETTER

if TYPE_CHECKING:
    from bootstrapnas.export.latency import Latency

JSON, MARKDOWN, PICTURE = "benchmark.json", "benchmark.md", "benchmark.png"


@dataclass(frozen=True, slots=True)
class Shown:
    """How a figure is shown: headings of its milliseconds and of its rate, if they are, and its axis in pictures."""

    milliseconds: str = ""
    rate: str = ""
    axis: str = ""


SHOWN = {
    "latency": Shown("ms", axis="latency (ms)"),
    "throughput": Shown(rate="seq/s"),
    "prefill": Shown("prefill ms", axis="prefill (ms)"),
    "token": Shown("ms/token", "tokens/s", axis="time per token (ms)"),
}
MODEL = 16
"""Columns that a model's name has at least, if it is as long."""
PLOTTED = ("token", "latency")
"""The figure that the picture is about: the first that was measured."""


def show(benchmark: Benchmark, console: Console) -> None:
    """Print a table per shape, or where that is too wide one per figure, and the notes."""
    for shape, beside in benchmark.shapes.items():
        names = _figures(beside)
        whole = cells(benchmark, beside)
        tables = [whole] if _width(whole) <= console.width else [cells(benchmark, beside, [name]) for name in names]
        for table in tables:
            what = title(benchmark, *shape) if len(tables) == 1 else f"{title(benchmark, *shape)}: {names.pop(0)}"
            console.print(_table(what, table, console.width), crop=False)
    for note in notes(benchmark):
        console.print(Text(note), soft_wrap=True)


def _table(what: str, lines: Sequence[Sequence[str]], room: int) -> Table:
    """Return a table that takes more than `room` rather than cut a figure; where it must, it folds models' names."""
    header, *rows = lines
    longest = max(len(line[0]) for line in lines)
    needed = _width(lines) - longest + min(longest, MODEL)
    width = needed if needed > room else None
    table = Table(title=Text(what), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), width=width)
    for number, name in enumerate(header):
        least = min(longest, MODEL) if number == 0 else None
        side: Literal["left", "right"] = "left" if number < 2 else "right"
        table.add_column(Text(name), justify=side, overflow="fold", no_wrap=number > 0, min_width=least)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _width(lines: Sequence[Sequence[str]]) -> int:
    """Return how many columns of a terminal a table takes, its border included."""
    return 1 + sum(2 + max(map(len, column)) for column in zip(*lines, strict=True))


def _figures(beside: Sequence[Measurement]) -> list[str]:
    return [name for name in SHOWN if name in beside[0].figures]


def markdown(benchmark: Benchmark, *, picture: str | None = None) -> str:
    """Return tables and notes as Markdown; `picture` is a link."""
    parts = ["# Benchmark"]
    for shape, beside in benchmark.shapes.items():
        header, *rows = cells(benchmark, beside)
        rule = ["---"] * 2 + ["---:"] * (len(header) - 2)
        lines = [f"| {' | '.join(map(_escaped, line))} |" for line in (header, rule, *rows)]
        parts += [f"## {title(benchmark, *shape)}", "\n".join(lines)]
    if picture is not None:
        parts.append(f"![Benchmark]({picture})")
    parts.append("\n".join(f"- {note}" for note in notes(benchmark)))
    return "\n\n".join(parts) + "\n"


def title(benchmark: Benchmark, batch: int, length: int) -> str:
    """Return what a table is about."""
    what = "prompt of " if "token" in benchmark.measurements[0].figures else ""
    return f"batch {batch}, {what}{length} tokens"


def cells(benchmark: Benchmark, beside: Sequence[Measurement], names: Sequence[str] | None = None) -> list[list[str]]:
    """Return a table of some figures, or of all, as text, the header first."""
    kinds = {model.metric[0] for model in benchmark.models if model.metric is not None}
    with_weights, with_same = _with_weights(benchmark), _with_same(benchmark)
    names = _figures(beside) if names is None else names
    header = ["model", "precision"]
    header += [next(iter(kinds)) if len(kinds) == 1 else "metric"] if kinds else []
    header += ["weights"] if with_weights else []
    header.append("MB")
    for name in names:
        shown = SHOWN[name]
        header += [shown.milliseconds, "p90", "spread"] if shown.milliseconds else []
        header += [shown.rate] if shown.rate else []
        header += ["×", "×="] if with_same else ["×"]
    table = [header]
    for each in beside:
        variant = each.variant
        row = [variant.model, variant.precision]
        if kinds:
            metric = benchmark.metric(each)
            kind = f"{metric[0]} " if metric is not None and len(kinds) > 1 else ""
            row.append(MISSING if metric is None else f"{kind}{metric[1]:.4g}")
        row += [variant.weight_format] if with_weights else []
        row.append(_figure(variant.size / 1e6))
        for name in names:
            latency, shown = each.figures[name], SHOWN[name]
            if shown.milliseconds:
                row += [_figure(latency.median_ms), _figure(latency.p90_ms), f"{latency.spread:.0%}"]
            row += [_figure(latency.per_second)] if shown.rate else []
            row.append(_ratio(benchmark, each, name, False))
            row += [_ratio(benchmark, each, name, True)] if with_same else []
        table.append(row)
    return table


def _with_same(benchmark: Benchmark) -> bool:
    """Return whether speed-ups at the same precision say more than the others."""
    return len({each.variant.precision for each in benchmark.measurements}) > 1 and len(benchmark.models) > 1


def _with_weights(benchmark: Benchmark) -> bool:
    """Return whether the precisions do not say already how weights are stored."""
    return any(
        each.variant.weight_format != ("int8" if each.variant.precision in INT8 else "fp32")
        for each in benchmark.measurements
    )


def notes(benchmark: Benchmark) -> Iterator[str]:
    """Say how everything was measured, and what is uncertain."""
    first = benchmark.measurements[0]
    same = "" if not _with_same(benchmark) else f"; ×=: over {first.variant.model} at the same precision"
    yield (
        f"×: speed-up over {first.variant.model} in {first.variant.precision}{same}; medians over pairs of runs that "
        "happened side by side."
    )
    for name in SHOWN:
        if name == "token":  # measured with prefill
            continue
        found = [each.figures[name] for each in benchmark.measurements if name in each.figures]
        runs = [len(each.samples_ms) for each in found]
        for threads, streams, requests in dict.fromkeys(
            (each.settings.threads, each.settings.streams, each.settings.requests) for each in found
        ):
            one = found[0].settings
            hint = "THROUGHPUT" if name == "throughput" else "LATENCY"
            yield (
                f"{name}: median of {_range(runs)} interleaved {'run' if max(runs) == 1 else 'runs'}, "
                f"OpenVINO {one.openvino} on {one.device} ({one.cpu}), {hint} hint, {_count(threads, 'thread')}, "
                f"{_count(streams, 'stream')}, {_count(requests, 'request')} at once."
            )
    hints = dict.fromkeys(each.variant.precision for each in benchmark.measurements)
    told = ", ".join(f"{precision}: {INT8.get(precision, precision)}" for precision in hints)
    int8 = " (int8: of what is not quantised)" if any(precision in INT8 for precision in hints) else ""
    yield f"INFERENCE_PRECISION_HINT of each precision: {told}{int8}."
    rows = {model.name: model.rows for model in benchmark.models if model.rows is not None}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in rows.items())
        yield f"The metrics are of different numbers of rows ({told}), so they do not compare: export with the same."
    for model in benchmark.models:
        if model.directory != model.source:
            yield f"{model.name} was converted to a float32 IR for the occasion."
    copies = [each.variant.model for each in benchmark.measurements if benchmark.is_copy(each)]
    if copies:
        yield (
            f"Quantised for the occasion on random tokens: {', '.join(dict.fromkeys(copies))}; the speed in int8 is "
            "that of a calibrated model, outputs would mean nothing."
        )
    if "token" in first.figures:
        yield (
            f"Prefill is the time to the first token; the time per token is the mean over the "
            f"{benchmark.settings.new_tokens} after it."
        )
    yield from _busy(benchmark)


def _busy(benchmark: Benchmark) -> Iterator[str]:
    """Say how much of the figures the machine was too busy to be sure of."""
    latencies = dict(_named(benchmark))
    noisy = {name: latency.spread for name, latency in latencies.items() if latency.spread > NOISY}
    if noisy:
        worst = max(noisy, key=lambda name: noisy[name])
        yield (
            f"The machine was busy: the middle half of the runs is spread over more than {NOISY:.0%} of the median in "
            f"{len(noisy)} of {len(latencies)} figures, at most {noisy[worst]:.0%} ({worst}); measure again when it "
            "is quiet."
        )


def benchmark_json(benchmark: Benchmark) -> dict[str, Any]:
    """Return everything as JSON-able values."""
    return {
        "format": FORMAT,
        "kind": benchmark.models[0].kind,
        "reference": benchmark.models[0].name,
        "settings": asdict(benchmark.settings),
        "models": [
            {
                "name": model.name,
                "directory": str(model.source),
                "converted": model.directory != model.source,
                "weight_format": model.description.weight_format,
                "quantised": model.description.quantised,
                "size": model.description.size,
                "metric": None if model.metric is None else dict(zip(("name", "value"), model.metric, strict=True)),
                "metric_rows": model.rows,
            }
            for model in benchmark.models
        ],
        "measurements": [
            {
                "model": each.variant.model,
                "precision": each.variant.precision,
                "weight_format": each.variant.weight_format,
                "size": each.variant.size,
                "batch": each.batch,
                "length": each.length,
                **{
                    name: {
                        **latency.to_json(),
                        "speed_up": benchmark.faster(each, name, same_precision=False),
                        "speed_up_at_same_precision": benchmark.faster(each, name, same_precision=True),
                    }
                    for name, latency in each.figures.items()
                },
            }
            for each in benchmark.measurements
        ],
        "notes": list(notes(benchmark)),
        "versions": versions(),
    }


def check_output(directory: Path) -> None:
    """Raise `UserError` unless `directory` can take a benchmark without loss, before anything is measured."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output_dir {directory} is a file")
    for name in (JSON, MARKDOWN, PICTURE):
        if (directory / name).exists() and not _is_benchmark(directory / JSON):
            raise UserError(f"--output_dir {directory} holds a {name} of something else; choose another")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --output_dir {directory}: {error.strerror or error}") from error
    if not os.access(directory, os.W_OK):
        raise UserError(f"cannot write --output_dir {directory}: Permission denied")


def write_benchmark(benchmark: Benchmark, directory: Path) -> None:
    """Write ``benchmark.json``, ``benchmark.md`` and ``benchmark.png``; other files there stay.

    The first holds all that was measured, and tells a later run whose the others are.
    """
    write_json(directory / JSON, benchmark_json(benchmark))
    write_text(directory / MARKDOWN, markdown(benchmark, picture=PICTURE))
    draw(benchmark, directory / PICTURE)


def draw(benchmark: Benchmark, path: Path) -> None:
    """Draw a panel per shape: the metric of each model against its time, or its size where a metric is unknown.

    The line is the Pareto front. What is known of the metric of a copy that was quantised for the occasion is the
    model's alone: it is drawn there, hollow, and is not part of the front.
    """
    from matplotlib.figure import Figure

    shapes = benchmark.shapes
    metrics = {model.name: model.metric for model in benchmark.models}
    names = {metric[0] for metric in metrics.values() if metric is not None}
    metric = next(iter(names)) if len(names) == 1 and all(metrics.values()) else None
    maximise = metric is not None and metric not in LESS_IS_BETTER
    figure_name = next(name for name in PLOTTED if name in benchmark.measurements[0].figures)
    precisions = list(dict.fromkeys(each.variant.precision for each in benchmark.measurements))
    figure = Figure(figsize=(5.5 * len(shapes) + 1, 4.5), dpi=150, layout="constrained")
    for number, (shape, beside) in enumerate(shapes.items()):
        axes = figure.add_subplot(1, len(shapes), number + 1)
        points = [
            {
                "x": each.figures[figure_name].median_ms,
                "y": each.variant.size / 1e6 if metric is None else metrics[each.variant.model][1],  # type: ignore[index]
            }
            for each in beside
        ]
        hollow = [metric is not None and benchmark.is_copy(each) for each in beside]
        known = [point for point, copied in zip(points, hollow, strict=True) if not copied]
        front = pareto_front(known, [Objective("x"), Objective("y", maximise)])
        line = sorted((known[index]["x"], known[index]["y"]) for index in front)
        if len(line) > 1:
            axes.step(
                *zip(*line, strict=True), where="post", color="0.35", linewidth=1.2, label="Pareto front", zorder=2
            )
        drawn = [(each.variant.precision, is_hollow) for each, is_hollow in zip(beside, hollow, strict=True)]
        for precision, is_hollow in dict.fromkeys(drawn):
            found = [point for point, how in zip(points, drawn, strict=True) if how == (precision, is_hollow)]
            colour = f"C{precisions.index(precision)}"
            axes.scatter(
                [point["x"] for point in found],
                [point["y"] for point in found],
                s=40,
                facecolors="none" if is_hollow else colour,
                edgecolors=colour,
                label=f"{precision} ({metric} of the model in float)" if is_hollow else precision,
                zorder=3,
            )
        fastest: dict[tuple[str, float], float] = {}  # a model's points lie on a line, and one name does for them
        for point, each in zip(points, beside, strict=True):
            key = each.variant.model, point["y"]
            fastest[key] = min(point["x"], fastest.get(key, point["x"]))
        for (model, y), x in fastest.items():
            axes.annotate(
                model,
                (x, y),
                xytext=(5, 5),
                textcoords="offset points",
                fontsize=8,
                zorder=4,
            )
        axes.margins(x=0.15, y=0.12)
        axes.set_xlim(left=0)
        axes.set_title(title(benchmark, *shape))
        axes.set_xlabel(SHOWN[figure_name].axis)
        axes.set_ylabel("size (MB)" if metric is None else metric)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if number == 0:
            axes.legend(frameon=False, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _named(benchmark: Benchmark) -> Iterator[tuple[str, Latency]]:
    for each in benchmark.measurements:
        for name, latency in each.figures.items():
            where = f"{each.variant.model} in {each.variant.precision} at {each.batch} x {each.length}"
            yield f"{name} of {where}", latency


def _is_benchmark(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        found = read_json(path)
    except UserError:
        return False
    return isinstance(found, dict) and "measurements" in found and "format" in found


def _ratio(benchmark: Benchmark, measurement: Measurement, figure: str, same_precision: bool) -> str:
    ratio = benchmark.faster(measurement, figure, same_precision=same_precision)
    return MISSING if ratio is None else f"{ratio:.2f}"


def _figure(value: float) -> str:
    """Return a number with three digits where it has them, never with an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{2 if value < 10 else 1}f}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
