"""What came out, for people: the full model beside the chosen subnets, in several formats, and model cards."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrapnas.artefacts import FORMAT, versions, write_json, write_text
from bootstrapnas.costs import Costs
from bootstrapnas.errors import UserError
from bootstrapnas.export.latency import Latency, speed_up

if TYPE_CHECKING:
    from rich.table import Table

NOISY = 0.25
"""Spread of a latency from which the report says that the machine was busy."""
MISSING = "–"
OUTPUTS = {
    "AutoModel": ("last_hidden_state", "[batch, length, hidden]"),
    "AutoModelForCausalLM": ("tokens", "[batch, length]"),
    "AutoModelForMaskedLM": ("logits", "[batch, length, vocabulary]"),
    "AutoModelForQuestionAnswering": ("start_logits", "[batch, length]"),
    "AutoModelForSequenceClassification": ("logits", "[batch, labels]"),
    "AutoModelForTokenClassification": ("logits", "[batch, length, labels]"),
}
"""Per auto class, the output that a model card shows, and its shape; of a causal language model, what it generates."""


@dataclass(frozen=True, slots=True)
class Row:
    """One model of a report.

    Attributes
    ----------
    name
        What to call it.
    costs
        Its closed-form costs.
    metrics
        Task metrics by name.
    bytes_per_param
        4 for float32, 2 for float16.
    latency
        By precision.
    predicted_ms
        The latency that a search predicted; None where none did.
    """

    name: str
    costs: Costs
    metrics: Mapping[str, float] = field(default_factory=dict)
    bytes_per_param: float = 4
    latency: Mapping[str, Latency] = field(default_factory=dict)
    predicted_ms: float | None = None

    @property
    def size_mb(self) -> float:
        """Megabytes (10^6) of all weights."""
        return self.costs.params * self.bytes_per_param / 1e6

    @property
    def size_without_embeddings_mb(self) -> float:
        """Megabytes (10^6) of the weights that are not embeddings."""
        return self.costs.params_without_embeddings * self.bytes_per_param / 1e6


@dataclass(frozen=True, slots=True)
class Report:
    """Rows to compare; make one with `build_report`.

    Attributes
    ----------
    title
        Heading.
    rows
        The first is what the others are compared with.
    percent
        Whether metrics are fractions to be shown as percentages.
    notes
        Lines below the table.
    """

    title: str
    rows: tuple[Row, ...]
    percent: bool
    notes: tuple[str, ...]


def build_report(rows: Sequence[Row], *, title: str, percent: bool = True, notes: Sequence[str] = ()) -> Report:
    """Check that rows can be compared, and make a report of them.

    Parameters
    ----------
    rows
        Usually the full model and then the subnets; latencies of one precision must have been measured together.
    title
        Heading.
    percent
        Whether metrics are fractions to be shown as percentages.
    notes
        What a reader should know, a sentence each; how latency was measured is added.

    Raises
    ------
    UserError
        If there are no rows, two have one name, or MACs or latencies were taken in different ways.
    """
    if not rows:
        raise UserError("a report needs at least one row")
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two rows of the report have the name {twice[0]!r}")
    lengths = sorted({row.costs.length for row in rows})
    if len(lengths) > 1:
        raise UserError(f"MACs at different lengths cannot be compared: {', '.join(map(str, lengths))} tokens")
    report = Report(title, tuple(rows), percent, tuple(notes))
    for row in rows:
        _speed_ups(report, row)
    return Report(title, tuple(rows), percent, (*notes, *_latency_notes(rows)))


def write_report(report: Report, directory: str | os.PathLike[str], *, picture: Path | None = None) -> tuple[Path, ...]:
    """Write ``report.json``, ``report.md`` and ``report.html``; return their paths.

    Parameters
    ----------
    report
        What to write.
    directory
        Where to.
    picture
        A PNG to show below the table: the HTML holds it, the Markdown links to it.
    """
    directory = Path(directory)
    paths = tuple(directory / f"report.{ending}" for ending in ("json", "md", "html"))
    write_json(paths[0], report_json(report))
    write_text(paths[1], markdown(report, picture=os.path.relpath(picture, directory) if picture else None))
    write_text(paths[2], html_page(report, picture=picture.read_bytes() if picture else None))
    return paths


def report_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON-able values: figures in full, metrics as they are, sizes in units of one or in MB."""
    rows = [
        {
            "name": row.name,
            "metrics": dict(row.metrics),
            **asdict(row.costs),
            "bytes_per_param": row.bytes_per_param,
            "size_mb": row.size_mb,
            "size_without_embeddings_mb": row.size_without_embeddings_mb,
            "latency": {precision: latency.to_json() for precision, latency in row.latency.items()},
            "speed_up": _speed_ups(report, row),
            "predicted_latency_ms": row.predicted_ms,
        }
        for row in report.rows
    ]
    return {
        "format": FORMAT,
        "title": report.title,
        "reference": report.rows[0].name,
        "rows": rows,
        "notes": list(report.notes),
        "versions": versions(),
    }


def markdown(report: Report, *, picture: str | None = None) -> str:
    """Return the report as Markdown; `picture` is a link."""
    parts = [f"# {report.title}", markdown_table(report)]
    if picture is not None:
        parts.append(f"![{report.title}]({picture})")
    parts.append("\n".join(f"- {note}" for note in report.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(report: Report) -> str:
    """Return the rows as a Markdown table."""
    header, *rows = _cells(report)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(_escape(cell) for cell in cells)} |" for cells in (header, rule, *rows))


def html_page(report: Report, *, picture: bytes | None = None) -> str:
    """Return the report as one HTML file that refers to nothing outside itself; `picture` is a PNG."""
    header, *rows = _cells(report)

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = [
        f"<h1>{html.escape(report.title)}</h1>",
        '<div class="wide"><table>',
        f"<thead>{line(header, 'th')}</thead>",
    ]
    body += ["<tbody>", *(line(cells, "td") for cells in rows), "</tbody></table></div>"]
    if picture is not None:
        data = base64.b64encode(picture).decode("ascii")
        body.append(f'<img alt="{html.escape(report.title)}" src="data:image/png;base64,{data}">')
    if report.notes:
        body += ["<ul>", *(f"<li>{html.escape(note)}</li>" for note in report.notes), "</ul>"]
    return PAGE.format(title=html.escape(report.title), body="\n".join(body))


def terminal_table(report: Report) -> Table:
    """Return the report as a table for `rich.print`: a column a model, as terminals are narrow."""
    from rich.table import Table
    from rich.text import Text

    (corner, *names), *lines = zip(*_cells(report), strict=True)
    table = Table(title=Text(report.title), caption=Text("\n".join(report.notes)), caption_justify="left")
    table.add_column(Text(corner))
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    for cells in lines:
        table.add_row(*(Text(cell) for cell in cells))
    return table


def model_card(
    title: str,
    *,
    base_model: str,
    auto_class: str,
    remote_code: bool,
    steps: Sequence[str],
    ordered: bool = True,
    sizes: Mapping[str, Any] | None = None,
    report: Report | None = None,
    ir: str | None = None,
) -> str:
    """Return the README.md of a directory that holds an extracted subnet.

    Parameters
    ----------
    title
        Heading.
    base_model
        Hub id or path of the model that it was made from.
    auto_class
        The Hugging Face class that loads it, for example ``"AutoModelForSequenceClassification"``.
    remote_code
        Whether loading needs ``trust_remote_code=True``.
    steps
        How it was made, a sentence a step.
    ordered
        Whether the units of that model were put in order of importance.
    sizes
        Units per layer by dimension, as `bootstrapnas.dims.subnet_to_json` gives them.
    report
        Measurements.
    ir
        Path of the OpenVINO IR, relative to the directory of the card.

    Raises
    ------
    UserError
        If `auto_class` is none of `OUTPUTS`.
    """
    if auto_class not in OUTPUTS:
        raise UserError(f"no model card for {auto_class}, only for {', '.join(OUTPUTS)}")
    # Only ids of the hub belong into the metadata, which the hub turns into links.
    metadata = ["library_name: transformers", "tags: [bootstrapnas, subnet]"]
    if not Path(base_model).exists():
        metadata.insert(0, f"base_model: {json.dumps(base_model)}")
    parts = [
        "\n".join(["---", *metadata, "---"]),
        f"# {title}",
        f"A smaller network cut out of `{base_model}`: its layers keep the {'most important' if ordered else 'first'} "
        "attention heads and feed-forward channels, and the weights that were dropped are not stored.",
        "## How it was made",
        "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1)),
    ]
    if report is not None:
        parts += ["## Measurements", markdown_table(report), "\n".join(f"- {note}" for note in report.notes)]
    if sizes:
        parts += ["## Sizes", _sizes_table(sizes)]
    parts += ["## Use", _torch_usage(auto_class, remote_code)]
    if ir is not None:
        parts += ["With OpenVINO, without PyTorch:", _ir_usage(auto_class, ir)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cells(report: Report) -> list[list[str]]:
    """Return the table as text, the header first."""
    metrics = list(dict.fromkeys(name for row in report.rows for name in row.metrics))
    precisions = list(dict.fromkeys(precision for row in report.rows for precision in row.latency))
    reference, predicted = report.rows[0], any(row.predicted_ms is not None for row in report.rows)
    header = [
        "model",
        *(f"{name} (%)" if report.percent else name for name in metrics),
        f"MACs (M), {reference.costs.length} tokens",
        "params (M)",
        "params (M) without embeddings",
        "size (MB)",
        "size (MB) without embeddings",
        *(f"{precision} latency (ms)" for precision in precisions),
        *(["predicted latency (ms)"] if predicted else []),
    ]
    cells = [header]
    for row in report.rows:
        faster = _speed_ups(report, row)
        cells.append(
            [
                row.name,
                *(_metric(report, row, name) for name in metrics),
                f"{_figure(row.costs.macs / 1e6)} ({row.costs.macs / reference.costs.macs:.0%})",
                _figure(row.costs.params / 1e6),
                _figure(row.costs.params_without_embeddings / 1e6),
                _figure(row.size_mb),
                _figure(row.size_without_embeddings_mb),
                *(_milliseconds(row, faster, precision) for precision in precisions),
                *([_predicted(row, reference)] if predicted else []),
            ]
        )
    return cells


def _metric(report: Report, row: Row, name: str) -> str:
    if name not in row.metrics:
        return MISSING
    return f"{100 * row.metrics[name]:.2f}" if report.percent else _figure(row.metrics[name])


def _milliseconds(row: Row, faster: Mapping[str, float], precision: str) -> str:
    if precision not in row.latency:
        return MISSING
    ratio = f" ({faster[precision]:.2f}×)" if precision in faster else ""
    return f"{_figure(row.latency[precision].median_ms, 3)}{ratio}"


def _predicted(row: Row, reference: Row) -> str:
    if row.predicted_ms is None:
        return MISSING
    ratio = "" if reference.predicted_ms is None else f" ({reference.predicted_ms / row.predicted_ms:.2f}×)"
    return f"{_figure(row.predicted_ms, 3)}{ratio}"


def _figure(value: float, digits: int = 4) -> str:
    """Return a number with about so many digits, never with an exponent if it is large."""
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _speed_ups(report: Report, row: Row) -> dict[str, float]:
    """Return by precision how many times faster a row is than the first."""
    reference = report.rows[0].latency
    return {
        precision: speed_up(reference[precision], latency)
        for precision, latency in row.latency.items()
        if precision in reference
    }


def _latency_notes(rows: Sequence[Row]) -> list[str]:
    """Say how latency was measured, and of which figures the machine was too busy to be sure."""
    notes = []
    measured = dict.fromkeys(
        (name, each.settings, len(each.samples_ms)) for row in rows for name, each in row.latency.items()
    )
    for name, settings, runs in measured:
        notes.append(
            f"{name} latency: median of {runs} interleaved {'run' if runs == 1 else 'runs'}, "
            f"OpenVINO {settings.openvino}, {settings.threads} threads of {settings.cpu}, batch {settings.batch}, "
            f"{settings.length} tokens; the speed-up is over {rows[0].name} in {name}."
        )
    spreads = {f"{r.name} in {p}": each.spread for r in rows for p, each in r.latency.items() if each.spread > NOISY}
    if spreads:
        notes.append(
            "The machine was busy, these latencies are uncertain (range of the middle half of the runs): "
            f"{', '.join(f'{which} {spread:.0%}' for which, spread in spreads.items())}."
        )
    return notes


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")


def _sizes_table(sizes: Mapping[str, Any]) -> str:
    per_layer = {
        dim: values
        for dim, values in sizes.items()
        if isinstance(values, list) and not (dim.endswith("_block") and all(size == 1 for size in values))
    }
    lines = [f"- {dim}: {value}" for dim, value in sizes.items() if not isinstance(value, list)]
    if per_layer:
        layers = range(max(map(len, per_layer.values())))
        lines += [
            "Units that each layer keeps. A block of size 0 is skipped, with all units inside it.",
            "",
            f"| layer | {' | '.join(per_layer)} |",
            "|" + " ---: |" * (len(per_layer) + 1),
        ]
        for layer in layers:
            cells = [_kept(values, layer) for values in per_layer.values()]
            lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _kept(values: Sequence[int | None], layer: int) -> str:
    size = values[layer] if layer < len(values) else None
    return "all" if size is None else str(size)


def _torch_usage(auto_class: str, remote_code: bool) -> str:
    output, shape = OUTPUTS[auto_class]
    trust = ", trust_remote_code=True" if remote_code else ""
    explanation = (
        "The layers have different widths, which the base model's class cannot build: `modeling_subnet.py` beside the "
        "weights does, hence `trust_remote_code=True`. Read that file first; it needs nothing but transformers."
        if remote_code
        else "The config describes the network: no code beside transformers is needed."
    )
    call = f"""model(**tokenizer(["An example."], padding=True, return_tensors="pt")).{output}  # {shape}"""
    if auto_class == "AutoModelForCausalLM":
        call = f"""model.generate(**tokenizer(["An example"], return_tensors="pt"), max_new_tokens=20)  # {shape}"""
    return f"""{explanation}

```python
import torch
from transformers import {auto_class}, AutoTokenizer

directory = "."  # where this file is
tokenizer = AutoTokenizer.from_pretrained(directory)
model = {auto_class}.from_pretrained(directory{trust}).eval()
with torch.inference_mode():
    {output} = {call}
```"""


def _ir_usage(auto_class: str, ir: str) -> str:
    output, shape = OUTPUTS[auto_class]
    if auto_class == "AutoModelForCausalLM":
        return f"""```python
import openvino_genai

# Without the hint a CPU with bfloat16 units uses them: faster, less exact.
pipeline = openvino_genai.LLMPipeline("{ir}", "CPU", INFERENCE_PRECISION_HINT="f32")
text = pipeline.generate("An example", max_new_tokens=20)
```"""
    return f"""```python
import openvino as ov
from transformers import AutoTokenizer

directory = "{ir}"
tokenizer = AutoTokenizer.from_pretrained(directory)
# Without the hint a CPU with bfloat16 units uses them: faster, less exact.
model = ov.compile_model(f"{{directory}}/openvino_model.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
batch = tokenizer(["An example."], padding=True, return_tensors="np")
{output} = model(dict(batch))["{output}"]  # {shape}
```"""


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }}
th, td {{ padding: .4rem .7rem; text-align: right; border-bottom: 1px solid #8884; }}
th {{ vertical-align: bottom; border-bottom: 2px solid #888; }}
td {{ white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
tbody tr:first-child {{ background: #8881; }}
img {{ max-width: 100%; background: white; margin-top: 1rem; }}
ul {{ color: #888; padding-left: 1.2rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
