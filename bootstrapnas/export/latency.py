"""How fast IRs are, measured so that they can be compared: side by side, interleaved, at a stated precision."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bootstrapnas.artefacts import read_json
from bootstrapnas.errors import UserError, listed
from bootstrapnas.export.runtime import BEAMS, IDS, MASK, POSITIONS, IRModel, last_line, load_ir

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LatencySettings:
    """What a latency depends on besides the model.

    Attributes
    ----------
    batch, length
        Shape of the input.
    precision
        What the device really computed in, layers apart that are quantised to integers.
    threads
        Number of threads.
    warmup
        Runs of each model before the first that counts.
    cpu, openvino
        Full name of the device, and version.
    device
        OpenVINO's name of the device.
    streams
        How many runs are computed at once.
    requests
        How many runs are under way at once: with more than one, throughput was measured.
    """

    batch: int
    length: int
    precision: str
    threads: int
    warmup: int
    cpu: str
    openvino: str
    device: str = "CPU"
    streams: int = 1
    requests: int = 1


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one model takes.

    Attributes
    ----------
    samples_ms
        Milliseconds of each run, in order of time: run i of all models measured together happened side by side. With
        several requests at once, the time of all divided by their number.
    settings
        How it was measured.
    started
        When the measurement began, in seconds since 1970: the same for all models measured together.
    """

    samples_ms: tuple[float, ...]
    settings: LatencySettings
    started: float = 0.0

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

    @property
    def per_second(self) -> float:
        """Sequences a second (tokens a second where a run is a decoding step), by the median."""
        return 1000 * self.settings.batch / self.median_ms

    def to_json(self) -> dict[str, Any]:
        """Return the figures and the settings, without the samples."""
        figures = {"median_ms": self.median_ms, "p90_ms": self.p90_ms, "spread": self.spread}
        rest = {"per_second": self.per_second, "repeats": len(self.samples_ms), "settings": asdict(self.settings)}
        return {**figures, **rest}


@dataclass(frozen=True, slots=True)
class Generation:
    """How long a causal language model takes.

    Attributes
    ----------
    prefill
        Of reading a prompt, which is when the first token is known.
    token
        Of one step of decoding: one more token for every row.
    """

    prefill: Latency
    token: Latency


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
    """Load several IRs and measure them with `time_latency`; return their latencies by name.

    Parameters
    ----------
    ir_directories
        Directories of `export_openvino`, by name.
    precision, threads
        As for `load_ir`. Without a stated precision, CPUs with bfloat16 units would use those.
    batch, length, repeats, warmup
        As for `time_latency`.
    max_seconds
        As for `time_latency`, loading included.

    Raises
    ------
    UserError
        If there is no IR, one cannot be loaded or takes no sequence of `length`, or a number is not positive.
    """
    _check(ir_directories, batch=batch, length=length, repeats=repeats, max_seconds=max_seconds)
    began = time.monotonic()
    models = {name: load_ir(directory, precision, threads) for name, directory in ir_directories.items()}
    left = max(max_seconds - (time.monotonic() - began), 1e-9)
    return time_latency(models, batch=batch, length=length, repeats=repeats, warmup=warmup, max_seconds=left)


def time_latency(
    models: Mapping[K, IRModel],
    *,
    batch: int = 1,
    length: int,
    repeats: int = 50,
    warmup: int = 5,
    max_seconds: float = 120.0,
) -> dict[K, Latency]:
    """Measure loaded encoders together, one request at a time; return their latencies by name.

    The models take turns, in an order that rotates, so that whatever else the machine does meets all of them. Each turn
    is one run that does not count, as the model before has filled the caches, and one that does.

    Parameters
    ----------
    models
        From `load_ir`, by name.
    batch, length
        Shape of the input: random token ids, nothing padded.
    repeats
        Runs of each model that count.
    warmup
        Runs of each model before.
    max_seconds
        Measuring stops after the round in which this much has passed (warming up included), so that there are fewer
        than `repeats` samples; at least one.

    Raises
    ------
    UserError
        If there is no model, one does not take the input, or a number is not positive.
    """
    _check(models, batch=batch, length=length, repeats=repeats, max_seconds=max_seconds, warmup=warmup)

    def prepare(model: IRModel) -> Callable[[], float]:
        request = model.compiled.create_infer_request()
        _set(request, _inputs(model, batch, length))
        _warm_up(model, request.infer, warmup)

        def run() -> float:
            request.infer()
            return _milliseconds(lambda: request.infer(share_outputs=True))

        return run

    started, samples = _side_by_side(models, prepare, repeats, max_seconds)
    return {
        name: Latency(tuple(samples[name]), _settings(model, batch, length, warmup), started)
        for name, model in models.items()
    }


def time_throughput(
    models: Mapping[K, IRModel],
    *,
    batch: int = 1,
    length: int,
    repeats: int = 10,
    warmup: int = 1,
    runs: int = 4,
    max_seconds: float = 120.0,
) -> dict[K, Latency]:
    """Measure loaded encoders with several requests at once; return the time per run, by name.

    A turn fills all requests of a model once, which does not count, and then keeps them busy.

    Parameters
    ----------
    models
        From `compile_ir` with the hint THROUGHPUT, by name. OpenVINO says how many requests keep a model busy.
    batch, length, max_seconds
        As for `time_latency`.
    repeats, warmup
        Turns that count, and before.
    runs
        Runs of each request in a turn.

    Raises
    ------
    UserError
        As for `time_latency`.
    """
    import openvino as ov

    _check(models, batch=batch, length=length, repeats=repeats, runs=runs, max_seconds=max_seconds, warmup=warmup)

    def prepare(model: IRModel) -> Callable[[], float]:
        queue = ov.AsyncInferQueue(model.compiled, _requests(model))
        inputs = _inputs(model, batch, length)
        for request in queue:
            _set(request, inputs)

        def keep_busy(times: int) -> None:
            for _ in range(times * len(queue)):
                queue.start_async()
            queue.wait_all()

        _warm_up(model, lambda: keep_busy(1), warmup)

        def run() -> float:
            keep_busy(1)
            return _milliseconds(lambda: keep_busy(runs)) / (runs * len(queue))

        return run

    started, samples = _side_by_side(models, prepare, repeats, max_seconds)
    return {
        name: Latency(tuple(samples[name]), _settings(model, batch, length, warmup, _requests(model)), started)
        for name, model in models.items()
    }


def time_generation(
    models: Mapping[K, IRModel],
    *,
    batch: int = 1,
    length: int,
    new_tokens: int = 16,
    repeats: int = 10,
    warmup: int = 1,
    max_seconds: float = 120.0,
) -> dict[K, Generation]:
    """Measure loaded causal language models together, one request at a time; return their latencies by name.

    A turn is a prompt that does not count, then the prompt again from an empty cache, and steps of decoding that feed
    one token a row (random ones, the same for every model); the mean of the steps is one sample.

    Parameters
    ----------
    models
        Stateful IRs from `load_ir`, by name.
    batch, length
        Shape of the prompt: random token ids, nothing padded.
    new_tokens
        Steps of decoding after the prompt.
    repeats, warmup, max_seconds
        As for `time_latency`, a run being a prompt and its steps.

    Raises
    ------
    UserError
        As for `time_latency`, or if a model keeps no cache.
    """
    numbers = {"batch": batch, "length": length, "new_tokens": new_tokens, "repeats": repeats}
    _check(models, **numbers, max_seconds=max_seconds, warmup=warmup)

    def prepare(model: IRModel) -> Callable[[], tuple[float, float]]:
        if BEAMS not in model.inputs:
            raise UserError(f"the IR in {model.directory} keeps no cache: it is no causal language model")
        request = model.compiled.create_infer_request()
        prompt = _inputs(model, batch, length, room=new_tokens)
        steps = [_inputs(model, batch, 1, past=length + step) for step in range(new_tokens)]

        def prefill() -> None:
            request.reset_state()
            request.infer(prompt, share_inputs=True, share_outputs=True)

        def decode() -> None:
            for step in steps:
                request.infer(step, share_inputs=True, share_outputs=True)

        def run() -> tuple[float, float]:
            prefill()
            return _milliseconds(prefill), _milliseconds(decode) / new_tokens

        _warm_up(model, run, warmup)
        return run

    started, samples = _side_by_side(models, prepare, repeats, max_seconds)
    found = {}
    for name, model in models.items():
        settings = _settings(model, batch, length, warmup)
        prefills, tokens = zip(*samples[name], strict=True)
        found[name] = Generation(Latency(prefills, settings, started), Latency(tokens, settings, started))
    return found


def speed_up(reference: Latency, other: Latency) -> float:
    """Return how many times faster `other` is: the median over pairs of runs that happened side by side.

    Raises
    ------
    UserError
        If the two were measured on other inputs or machines, or not together.
    """
    if _circumstances(reference) != _circumstances(other):
        raise UserError(
            "latencies measured with other settings or at other times cannot be compared: measure them together "
            f"({reference.settings}, {len(reference.samples_ms)} runs; {other.settings}, {len(other.samples_ms)} runs)"
        )
    return float(np.median(np.divide(reference.samples_ms, other.samples_ms)))


def _circumstances(latency: Latency) -> tuple[Any, ...]:
    """Return what two latencies must share; precisions, and what OpenVINO makes of the machine for each, may differ."""
    settings = latency.settings
    shape = settings.batch, settings.length, settings.requests > 1
    return *shape, settings.cpu, settings.openvino, latency.started, len(latency.samples_ms)


def _side_by_side(
    models: Mapping[K, IRModel], prepare: Callable[[IRModel], Callable[[], T]], repeats: int, max_seconds: float
) -> tuple[float, dict[K, list[T]]]:
    """Let models take turns; return when that began and what each turn of each model returned.

    `prepare` warms a model up and returns what is to be done in a turn.
    """
    started, deadline = time.time(), time.monotonic() + max_seconds
    runs = {name: prepare(model) for name, model in models.items()}
    samples: dict[K, list[T]] = {name: [] for name in models}
    names = list(models)
    for turn in range(repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(runs[name]())
        if time.monotonic() > deadline:
            break
    return started, samples


def _check(models: Mapping[Any, Any], *, warmup: int = 0, **positive: float) -> None:
    for name, value in positive.items():
        if value <= 0:
            raise UserError(f"{name} must be positive, not {value}")
    if not models:
        raise UserError("there is no IR to measure")
    if warmup < 0:
        raise UserError(f"warmup must not be negative, is {warmup}")


def _inputs(model: IRModel, batch: int, length: int, *, past: int = 0, room: int = 0) -> dict[str, Any]:
    """Return tensors by name for `length` tokens after `past` others, with `room` for more after them.

    Raises
    ------
    UserError
        If the model takes no such input.
    """
    import openvino as ov

    config = read_json(Path(model.directory) / "config.json")
    limit = config.get("max_position_embeddings", past + length + room)
    if past + length + room > limit:
        more = f" (and {room} new tokens after it)" if room else ""
        raise UserError(f"the model in {model.directory} has {limit} positions: length must not be {length}{more}")
    rng = np.random.default_rng(past)  # the ids decide which rows of the embeddings are read, nothing else
    shape = batch, length
    arrays: dict[str, np.ndarray] = {
        IDS: rng.integers(config["vocab_size"], size=shape),
        MASK: np.ones((batch, past + length), dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
        POSITIONS: np.tile(np.arange(past, past + length), (batch, 1)),
        BEAMS: np.arange(batch, dtype=np.int32),
    }
    unknown = [name for name in model.inputs if name not in arrays]
    if unknown:
        raise UserError(f"the IR in {model.directory} has inputs other than tokens: {listed(unknown)}")
    for port in model.compiled.inputs:
        taken, given = port.partial_shape, arrays[port.get_any_name()].shape
        if not taken.compatible(ov.PartialShape(given)):
            raise UserError(
                f"the IR in {model.directory} takes {port.get_any_name()} of shape {taken.to_string()}, not batch "
                f"{batch} of {length} tokens"
            )
    return {name: ov.Tensor(arrays[name]) for name in model.inputs}


def _set(request: Any, inputs: Mapping[str, Any]) -> None:
    for name, tensor in inputs.items():
        request.set_tensor(name, tensor)


def _warm_up(model: IRModel, run: Callable[[], object], times: int) -> None:
    try:
        for _ in range(times):
            run()
    except RuntimeError as error:
        raise UserError(f"the IR in {model.directory} does not run: {last_line(error)}") from error


def _milliseconds(run: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - started) / 1e6


def _requests(model: IRModel) -> int:
    return int(model.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


def _settings(model: IRModel, batch: int, length: int, warmup: int, requests: int = 1) -> LatencySettings:
    import openvino as ov

    device = model.compiled.get_property("EXECUTION_DEVICES")[0]
    threads = model.compiled.get_property("INFERENCE_NUM_THREADS") if device == "CPU" else 0
    return LatencySettings(
        batch=batch,
        length=length,
        precision=model.precision,
        threads=threads,
        warmup=warmup,
        cpu=ov.Core().get_property(device, "FULL_DEVICE_NAME").strip(),
        openvino=ov.__version__.partition("-")[0],
        device=device,
        streams=int(model.compiled.get_property("NUM_STREAMS")),
        requests=requests,
    )
