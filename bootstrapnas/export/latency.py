"""How fast IRs are, measured so that they can be compared: side by side, interleaved, at a stated precision."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bootstrapnas.artefacts import read_json
from bootstrapnas.errors import UserError
from bootstrapnas.export.runtime import IRModel, load_ir


@dataclass(frozen=True, slots=True)
class LatencySettings:
    """What a latency depends on besides the model.

    Attributes
    ----------
    batch, length
        Shape of the input.
    precision
        What the CPU really computed in.
    threads
        Number of threads.
    warmup
        Runs of each model before the first that counts.
    cpu, openvino
        Name and version.
    """

    batch: int
    length: int
    precision: str
    threads: int
    warmup: int
    cpu: str
    openvino: str


@dataclass(frozen=True, slots=True)
class Latency:
    """One model's latency.

    Attributes
    ----------
    samples_ms
        Milliseconds of each run, in order of time: run i of all models measured together happened side by side.
    settings
        How it was measured.
    """

    samples_ms: tuple[float, ...]
    settings: LatencySettings

    @property
    def median_ms(self) -> float:
        """The median."""
        return float(np.median(self.samples_ms))

    @property
    def p90_ms(self) -> float:
        """The 90th percentile."""
        return float(np.percentile(self.samples_ms, 90))

    @property
    def spread(self) -> float:
        """The interquartile range as a fraction of the median: near 0 on a quiet machine."""
        low, high = np.percentile(self.samples_ms, (25, 75))
        return float((high - low) / self.median_ms)

    def to_json(self) -> dict[str, Any]:
        """Return the figures and the settings, without the samples."""
        figures = {"median_ms": self.median_ms, "p90_ms": self.p90_ms, "spread": self.spread}
        return {**figures, "repeats": len(self.samples_ms), "settings": asdict(self.settings)}


def measure_latency(
    ir_directories: Mapping[str, str | os.PathLike[str]],
    *,
    batch: int = 1,
    length: int,
    precision: str = "f32",
    repeats: int = 50,
    warmup: int = 5,
    threads: int | None = None,
    max_seconds: float = 120.0,
) -> dict[str, Latency]:
    """Measure several IRs together; return their latencies by name.

    The models take turns, in an order that rotates, so that whatever else the machine does meets all of them. Each turn
    is one run that does not count, as the model before has filled the caches, and one that does.

    Parameters
    ----------
    ir_directories
        Directories of `export_openvino`, by name.
    batch, length
        Shape of the input: random token ids, nothing padded.
    precision
        What to compute in, see `load_ir`. Without saying so, CPUs with bfloat16 units would use those.
    repeats
        Runs of each model that count.
    warmup
        Runs of each model before.
    threads
        Default: OpenVINO's choice.
    max_seconds
        Measuring stops after the round in which this much has passed (loading and warming up included), so that
        there are fewer than `repeats` samples; at least one.

    Raises
    ------
    UserError
        If there is no IR, one cannot be loaded or takes no sequence of `length`, or a number is not positive.
    """
    for name, value in (("batch", batch), ("length", length), ("repeats", repeats), ("max_seconds", max_seconds)):
        if value <= 0:
            raise UserError(f"{name} must be positive, not {value}")
    if not ir_directories:
        raise UserError("there is no IR to measure")
    if warmup < 0:
        raise UserError(f"warmup must not be negative, is {warmup}")
    deadline = time.monotonic() + max_seconds
    models = {name: load_ir(directory, precision, threads) for name, directory in ir_directories.items()}
    requests = {name: _request(model, batch, length) for name, model in models.items()}
    for request in requests.values():
        for _ in range(warmup):
            request.infer()
    samples: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    for turn in range(repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            requests[name].infer()
            samples[name].append(_milliseconds(requests[name]))
        if time.monotonic() > deadline:
            break
    return {
        name: Latency(tuple(samples[name]), _settings(model, batch, length, warmup)) for name, model in models.items()
    }


def speed_up(reference: Latency, other: Latency) -> float:
    """Return how many times faster `other` is: the median over pairs of runs that happened side by side.

    Raises
    ------
    UserError
        If the two were measured differently, or not together.
    """
    if reference.settings != other.settings or len(reference.samples_ms) != len(other.samples_ms):
        raise UserError(
            "latencies measured with other settings or at other times cannot be compared: measure them together "
            f"({reference.settings}, {len(reference.samples_ms)} runs; {other.settings}, {len(other.samples_ms)} runs)"
        )
    return float(np.median(np.divide(reference.samples_ms, other.samples_ms)))


def _request(model: IRModel, batch: int, length: int) -> Any:
    """Return an inference request of a model with its inputs set."""
    import openvino as ov

    config = read_json(Path(model.directory) / "config.json")
    limit = config.get("max_position_embeddings", length)
    if length > limit:
        raise UserError(f"the model in {model.directory} has {limit} positions: length must not be {length}")
    rng = np.random.default_rng(0)  # the ids decide which rows of the embeddings are read, nothing else
    inputs = {
        "input_ids": rng.integers(config["vocab_size"], size=(batch, length)),
        "attention_mask": np.ones((batch, length), dtype=np.int64),
        "token_type_ids": np.zeros((batch, length), dtype=np.int64),
    }
    request = model.compiled.create_infer_request()
    for name in model.inputs:
        request.set_tensor(name, ov.Tensor(inputs[name]))
    return request


def _milliseconds(request: Any) -> float:
    started = time.perf_counter_ns()
    request.infer(share_outputs=True)
    return (time.perf_counter_ns() - started) / 1e6


def _settings(model: IRModel, batch: int, length: int, warmup: int) -> LatencySettings:
    import openvino as ov

    return LatencySettings(
        batch=batch,
        length=length,
        precision=model.precision,
        threads=model.compiled.get_property("INFERENCE_NUM_THREADS"),
        warmup=warmup,
        cpu=ov.Core().get_property("CPU", "FULL_DEVICE_NAME").strip(),
        openvino=ov.__version__.partition("-")[0],
    )
