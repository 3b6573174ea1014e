"""OpenVINO latency of full models and half-MAC subnets in float32, bfloat16 and integers, side by side.

python benchmarks/deployment.py [--only bert-6x384,bert-base,widths,parts,short,llama] [--repeats 21] [--work_dir DIR]

Weights are random: speed and size do not depend on them, and nothing is said of accuracy. Subnets are extracted and
exported as a user's would be. Sections that --only leaves out keep the figures of the file that is there; --only ""
writes the table anew.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import machine, write_table
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from bootstrapnas.artefacts import read_json, write_json
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key
from bootstrapnas.export import available_precisions, export_openvino, speed_up
from bootstrapnas.export.runtime import INT8
from bootstrapnas.pipeline.benchmark.side_by_side import Benchmark, Settings, measure, read_models
from bootstrapnas.pipeline.benchmark.text import benchmark_json
from bootstrapnas.supernet import Supernet

LENGTH = 128
ALTERNATING = (11, 3, 8, 2, 6, 6)
"""Heads of twelve that layers keep in the heterogeneous subnets, in turn: half in all."""
Subnet = Mapping[Key, int]


@dataclass(frozen=True)
class Section:
    """One comparison.

    Attributes
    ----------
    build
        Makes the full model.
    subnets
        What to cut out of it, by name; the first is the full model.
    formats
        How weights are stored, per subnet.
    precisions
        What to measure encoders in.
    batches
        Rows of an input.
    length
        Tokens of a row.
    repeats
        Runs that count, a factor to --repeats: large models take fewer.
    """

    build: Callable[[], Any]
    subnets: Mapping[str, Subnet]
    formats: tuple[str, ...] = ("fp32",)
    precisions: tuple[str, ...] = ("f32", "bf16", "int8", "int8+bf16")
    batches: tuple[int, ...] = (1, 8)
    length: int = LENGTH
    repeats: float = 1.0


def bert(layers: int, hidden: int, ffn: int) -> Callable[[], Any]:
    """Return what builds a BERT with 12 heads."""

    def build() -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": ffn}
        return BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=12)).eval()

    return build


def llama() -> Any:
    """Return a LLaMA of 8 layers x 1024 (16 heads, 8 of keys and values, FFN 2816, vocabulary 8192)."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8192, "hidden_size": 1024, "num_hidden_layers": 8, "intermediate_size": 2816}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=16, num_key_value_heads=8)).eval()


def width(layers: int, heads: int, ffn: int, dim: str = "head") -> Subnet:
    """Return the subnet whose layers are all alike."""
    return {key: size for layer in range(layers) for key, size in ((Key(dim, layer), heads), (Key("ffn", layer), ffn))}


def uneven(layers: int, ffn: int) -> Subnet:
    """Return a subnet whose layers differ, with half the heads and half the FFN channels; widths are of any size."""
    found: dict[Key, int] = {}
    for layer in range(layers):
        heads = ALTERNATING[layer % len(ALTERNATING)]
        found |= {Key("head", layer): heads, Key("ffn", layer): ffn * heads // 12 + 1}
    return found


def shallow(layers: int, kept: int) -> Subnet:
    """Return the subnet of the first layers."""
    blocks = ("layer_block", "mha_block", "ffn_block")
    return {Key(block, layer): 0 for layer in range(kept, layers) for block in blocks}


PARTS: Mapping[str, Subnet] = {
    "full": {},
    "heads halved": width(6, 6, 1536),
    "FFN halved": width(6, 12, 768),
    "both": width(6, 6, 768),
    "3 layers": shallow(6, 3),
}

SECTIONS = {
    "bert-6x384": Section(
        bert(6, 384, 1536),
        {"full": {}, "half width": width(6, 6, 768), "uneven": uneven(6, 1536), "3 layers": shallow(6, 3)},
    ),
    "bert-base": Section(
        bert(12, 768, 3072),
        {"full": {}, "half width": width(12, 6, 1536), "uneven": uneven(12, 3072), "6 layers": shallow(12, 6)},
        repeats=1 / 3,
    ),
    "widths": Section(
        bert(6, 384, 1536),
        {
            "full": {},
            "6 heads, FFN 768": width(6, 6, 768),
            "6 heads, FFN 760": width(6, 6, 760),
            "6 heads, FFN 777": width(6, 6, 777),
            "5 heads, FFN 768": width(6, 5, 768),
        },
        batches=(1,),
    ),
    "parts": Section(bert(6, 384, 1536), PARTS, batches=(1,), length=384),
    "short": Section(bert(6, 384, 1536), PARTS, batches=(1,), length=32),
    "llama": Section(
        llama,
        {"full": {}, "half": width(8, 4, 1408, "kv")},
        formats=("fp32", "int8", "int4"),
        precisions=("f32", "bf16"),
        batches=(1,),
        repeats=1 / 3,
    ),
}


def measure_section(name: str, repeats: int, directory: Path) -> dict[str, Any]:
    """Export every model of a section, measure them side by side, and return everything as JSON-able values."""
    section, began = SECTIONS[name], time.monotonic()
    supernet = Supernet(section.build())
    full = count_macs(supernet.blueprint, {}, length=section.length)
    macs, paths = {}, {}
    ids = torch.randint(1000, 8000, (2, 16), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    for label, subnet in section.subnets.items():
        small = supernet.extract(subnet)
        for weights in section.formats:
            model = label if len(section.formats) == 1 else f"{label} {weights}"
            paths[model] = directory / model.replace(" ", "_").replace(",", "")
            export_openvino(small, None, paths[model], weight_format=weights, example_batches=[batch])
            macs[model] = count_macs(supernet.blueprint, subnet, length=section.length) / full
    settings = Settings(
        tuple(p for p in section.precisions if INT8.get(p, p) in available_precisions()),
        section.batches,
        (section.length,),
        repeats=max(5, math.ceil(repeats * section.repeats)),
        warmup=2,
        max_seconds=600,
        throughput=False,
    )
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        models = read_models(list(paths.values()), list(paths), Path(temporary))
        found = measure(models, settings, Path(temporary))
        figures = benchmark_json(found)
        for model in figures["models"]:
            del model["directory"]  # temporary
        return {
            "machine": machine(),
            "seconds": round(time.monotonic() - began),
            "macs_share": macs,
            "rows": rows(name, found, macs),
            **figures,
        }


def rows(name: str, found: Benchmark, macs: Mapping[str, float]) -> list[list[str]]:
    """Return the section's lines of the table."""
    lines = []
    for each in found.measurements:
        reference = found.reference(each, same_precision=False)
        assert reference is not None
        for figure, latency in each.figures.items():
            same = found.reference(each, same_precision=True)
            # Of language models the one in the same weight format is the full model's counterpart.
            if "token" in each.figures:
                counterpart = f"full {each.variant.model.split()[-1]}"
                same = next(
                    other
                    for other in found.shapes[each.batch, each.length]
                    if (other.variant.model, other.variant.precision) == (counterpart, each.variant.precision)
                )
            assert same is not None
            lines.append(
                [
                    name,
                    each.variant.model,
                    each.variant.precision,
                    str(each.batch),
                    figure,
                    f"{macs[each.variant.model]:.0%}",
                    f"{each.variant.size / 1e6:.1f} ({each.variant.size / reference.variant.size:.0%})",
                    f"{latency.median_ms:.2f}",
                    f"{latency.spread:.0%}",
                    f"{1 / speed_up(same.figures[figure], latency):.2f}",
                    f"{speed_up(reference.figures[figure], latency):.2f}",
                    str(len(latency.samples_ms)),
                ]
            )
    return lines


HEADER = [
    "shapes",
    "model",
    "precision",
    "batch",
    "figure",
    "MACs",
    "size (MB)",
    "median (ms)",
    "spread",
    "of full, same precision",
    "× full f32",
    "runs",
]

NOTES = (
    f"Random weights, {LENGTH} tokens ({SECTIONS['parts'].length} of *parts*, {SECTIONS['short'].length} of *short*), "
    "OpenVINO with the LATENCY hint. All models and precisions of a section take turns; *of full* is the time as a "
    "share of the full model's at the same precision (and weight format), × the speed-up over the full model in f32: "
    "medians of ratios of runs side by side. Spread is the range of the middle half of the runs over the median. Sizes "
    "are shares of the full f32 model's. int8 encoders are quantised on random tokens; what is not quantised in them "
    "computes in f32, of int8+bf16 in bf16. Of the language model, prefill is a prompt, token a step of decoding. "
    "Every setting is in deployment.json."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="Sections, comma-separated.")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--work_dir", type=Path, help="Where the models go for the while; default: a temporary place.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    chosen = [name for name in arguments.only.split(",") if name]
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}, known: {', '.join(SECTIONS)}")
    path = arguments.output / "deployment.json"
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    if arguments.work_dir is not None:
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        with tempfile.TemporaryDirectory(dir=arguments.work_dir) as directory:
            found[name] = measure_section(name, arguments.repeats, Path(directory))
        print(f"{name}: {found[name]['seconds']} s", flush=True)
        write_json(path, found)
    there = {name: found[name] for name in SECTIONS if name in found}
    machines = dict.fromkeys(section["machine"] for section in there.values())
    notes = dict.fromkeys(note for section in there.values() for note in section["notes"] if "busy" in note)
    write_table(
        arguments.output / "deployment.md",
        "Deployment: half-MAC subnets, full models and integers",
        HEADER,
        [row for section in there.values() for row in section["rows"]],
        " ".join((NOTES, *notes)),
        where=" / ".join(machines),
    )


if __name__ == "__main__":
    main()
