"""Measure models side by side: latency and throughput of encoders, prefill and decoding of language models.

A model is a directory with an OpenVINO IR, or a Hugging Face directory that is converted for the occasion.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from rich.console import Console

from bootstrapnas.errors import UserError
from bootstrapnas.pipeline.arguments import flag, numbers
from bootstrapnas.pipeline.benchmark.side_by_side import (
    CAUSAL,
    ENCODER,
    Benchmark,
    Model,
    Settings,
    measure,
    read_models,
)
from bootstrapnas.pipeline.benchmark.text import benchmark_json, check_output, show, write_benchmark
from bootstrapnas.progress import notice

# HfArgumentParser reads these annotations at run time and knows Optional[...], not the union operator of newer Pythons.
# ruff: noqa: UP045


@dataclass
class BenchmarkArguments:
    """What to measure, and how."""

    _argument_group_name = "benchmark"

    models: list[str] = field(
        metadata={"help": "Directories of IRs or Hugging Face models; the first is what others are held against."}
    )
    names: Optional[list[str]] = field(
        default=None, metadata={"help": "What to call them; default: the directories' names."}
    )
    precision: Optional[str] = flag(
        None,
        "Comma-separated: f32, bf16, f16, int8, int8+bf16. Default: f32 and, where the device has it, bf16; of a "
        "quantised model int8 and, likewise, int8+bf16. For these, models that are not quantised are, for the "
        "occasion, on random tokens.",
    )
    batch: str = flag("1", "Rows of an input, comma-separated.")
    length: Optional[str] = flag(
        None, "Tokens of a row (of a prompt), comma-separated; default: 128, or what all take."
    )
    new_tokens: int = flag(16, "Language models: steps of decoding after the prompt.")
    repeats: int = flag(30, "Runs of each model and precision that count.")
    warmup: int = flag(3, "Runs of each before.")
    max_seconds: float = flag(60.0, "Each table stops after the round in which this much has passed.")
    throughput: bool = flag(True, "Encoders: measure throughput too.")
    threads: Optional[int] = flag(None, "Threads; default: OpenVINO's choice.")
    streams: Optional[int] = flag(
        None, "Encoders: runs that are computed at once for throughput; default: OpenVINO's choice."
    )
    device: str = flag("CPU", "OpenVINO's name of the device.")
    output_dir: Optional[str] = flag(None, "Write benchmark.json, benchmark.md and benchmark.png there.")
    json: bool = flag(False, "Print one JSON document instead of tables.")


GROUPS = (BenchmarkArguments,)
OF_KIND = {"streams": ENCODER, "new_tokens": CAUSAL}
"""Flags that say nothing of models of another kind."""


def run(arguments: BenchmarkArguments, *, typed: Mapping[str, Any]) -> Benchmark:
    """Measure; print the tables, or one JSON document, and write what was asked for."""
    settings = _settings(arguments)
    if arguments.output_dir is not None:
        check_output(Path(arguments.output_dir))
    with tempfile.TemporaryDirectory(prefix="bootstrapnas.") as temporary:
        models = read_models(arguments.models, arguments.names, Path(temporary), settings)
        check_kind(models[0], typed)
        found = measure(models, settings, Path(temporary))
    if arguments.json:
        print(json.dumps(benchmark_json(found), indent=2, ensure_ascii=False))
    else:
        show(found, Console(highlight=False))
    if arguments.output_dir is not None:
        write_benchmark(found, Path(arguments.output_dir))
        notice(f"benchmark: {arguments.output_dir}")
    return found


def check_kind(model: Model, typed: Mapping[str, Any]) -> None:
    """Raise `UserError` if flags are typed that are for models of another kind."""
    for name, kind in OF_KIND.items():
        if name in typed and model.kind != kind:
            raise UserError(f"--{name} is for {kind}s, and {model.name} is of the kind {model.kind}")


def _settings(arguments: BenchmarkArguments) -> Settings:
    for name in ("new_tokens", "repeats", "threads", "streams"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    if arguments.warmup < 0:
        raise UserError(f"--warmup must not be negative, not {arguments.warmup}")
    if arguments.max_seconds <= 0:
        raise UserError(f"--max_seconds must be above 0, not {arguments.max_seconds:g}")
    if arguments.streams is not None and not arguments.throughput:
        raise UserError("--streams is of throughput, which --throughput False leaves out")
    precision = arguments.precision
    return Settings(
        precisions=None if precision is None else tuple(dict.fromkeys(precision.replace(" ", "").split(","))),
        batches=_whole("batch", arguments.batch),
        lengths=() if arguments.length is None else _whole("length", arguments.length),
        new_tokens=arguments.new_tokens,
        repeats=arguments.repeats,
        warmup=arguments.warmup,
        max_seconds=arguments.max_seconds,
        throughput=arguments.throughput,
        threads=arguments.threads,
        streams=arguments.streams,
        device=arguments.device,
    )


def _whole(name: str, text: str) -> tuple[int, ...]:
    found = numbers(name, text)
    if not all(number.is_integer() and number >= 1 for number in found):
        raise UserError(f"--{name} must be whole numbers of at least 1, separated by commas, not {text}")
    return tuple(dict.fromkeys(map(int, found)))
