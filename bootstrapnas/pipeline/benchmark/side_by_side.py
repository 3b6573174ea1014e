"""Models measured side by side in several precisions on several shapes of input."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrapnas.artefacts import STAGE_FILE, read_json, writing
from bootstrapnas.errors import UserError, listed
from bootstrapnas.export import available_precisions, export_openvino
from bootstrapnas.export.conversion import random_batch
from bootstrapnas.export.latency import Latency, speed_up, time_generation, time_latency, time_throughput
from bootstrapnas.export.openvino import EXPORT_FILE
from bootstrapnas.export.quantisation import quantise_for_speed
from bootstrapnas.export.runtime import (
    INT8,
    MODEL_FILE,
    IRDescription,
    IRModel,
    check_device,
    check_measured,
    check_streams,
    compile_ir,
    describe_ir,
)
from bootstrapnas.extraction import load_config
from bootstrapnas.pipeline.models import load_as_saved, max_length
from bootstrapnas.progress import Ticker, notice
from bootstrapnas.tasks import TASK_FILE, TaskSpec

ENCODER, CAUSAL = "encoder", "language model"
DEFAULTS = ("f32", "bf16")
LENGTH = 128


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    Attributes
    ----------
    precisions
        What to measure each model in: of `PRECISIONS` and `INT8`. `None` for what suits it.
    batches, lengths
        The shapes of input are all pairs; without a length, 128 tokens or as many as all models take.
    new_tokens
        Language models: steps of decoding after the prompt.
    repeats, warmup, max_seconds
        See `bootstrapnas.export.latency.time_latency`; the time is for one shape, and for throughput again.
    throughput
        Whether to measure that of encoders too.
    threads, streams
        Default: OpenVINO's choice.
    device
        OpenVINO's name of it.
    """

    precisions: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = ()
    new_tokens: int = 16
    repeats: int = 30
    warmup: int = 3
    max_seconds: float = 60.0
    throughput: bool = True
    threads: int | None = None
    streams: int | None = None
    device: str = "CPU"


@dataclass(frozen=True, slots=True)
class Model:
    """One of the models that are compared.

    Attributes
    ----------
    name
        What to call it.
    directory
        Of its IR.
    source
        The directory that was named: another one if that is no IR.
    description
        What the IR is.
    metric
        Name and value (a fraction or whatever the task measures) of what is known of its quality.
    rows
        How many rows that is of; `None` if it does not say.
    """

    name: str
    directory: Path
    source: Path
    description: IRDescription
    metric: tuple[str, float] | None = None
    rows: int | None = None

    @property
    def kind(self) -> str:
        """``"encoder"`` or ``"language model"``."""
        return CAUSAL if self.description.stateful else ENCODER


@dataclass(frozen=True, slots=True)
class Variant:
    """A model in a precision: what is compiled and measured.

    Attributes
    ----------
    model
        The model's name.
    precision
        As it was asked for.
    directory
        Of the IR: not the model's if that had to be quantised.
    weight_format, size
        Of that IR, see `IRDescription`.
    """

    model: str
    precision: str
    directory: Path
    weight_format: str
    size: int

    @property
    def hint(self) -> str:
        """What OpenVINO is told to compute in."""
        return INT8.get(self.precision, self.precision)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of a variant on one shape of input.

    Attributes
    ----------
    variant
        The model and precision.
    batch, length
        The shape.
    figures
        ``"latency"`` and, if asked for, ``"throughput"`` of an encoder; ``"prefill"`` and ``"token"`` of a language
        model.
    """

    variant: Variant
    batch: int
    length: int
    figures: Mapping[str, Latency]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All measurements, and what they were made on.

    Attributes
    ----------
    models
        In the order in which they were named.
    measurements
        By shape, and per shape by model and precision; those of a shape happened side by side.
    settings
        How.
    """

    models: tuple[Model, ...]
    measurements: tuple[Measurement, ...]
    settings: Settings

    @property
    def shapes(self) -> dict[tuple[int, int], list[Measurement]]:
        """The measurements by batch and length."""
        found: dict[tuple[int, int], list[Measurement]] = {}
        for each in self.measurements:
            found.setdefault((each.batch, each.length), []).append(each)
        return found

    def metric(self, measurement: Measurement) -> tuple[str, float] | None:
        """Return name and value of what is known of the quality of what was measured.

        Of a copy that was quantised for the occasion there is nothing: its outputs are not the model's.
        """
        return None if self.is_copy(measurement) else self._model(measurement).metric

    def is_copy(self, measurement: Measurement) -> bool:
        """Return whether a copy of the model was measured that was quantised for the occasion, on random tokens."""
        return measurement.variant.directory != self._model(measurement).directory

    def _model(self, measurement: Measurement) -> Model:
        return next(model for model in self.models if model.name == measurement.variant.model)

    def reference(self, measurement: Measurement, *, same_precision: bool) -> Measurement | None:
        """Return what a measurement is held against: the first model's, first of all or at the same precision."""
        beside = self.shapes[measurement.batch, measurement.length]
        first = [each for each in beside if each.variant.model == self.models[0].name]
        if same_precision:
            first = [each for each in first if each.variant.precision == measurement.variant.precision]
        return first[0] if first else None

    def faster(self, measurement: Measurement, figure: str, *, same_precision: bool) -> float | None:
        """Return how many times faster a measurement is than its `reference`, if it has one."""
        reference = self.reference(measurement, same_precision=same_precision)
        return None if reference is None else speed_up(reference.figures[figure], measurement.figures[figure])


def read_models(
    directories: Sequence[str | Path],
    names: Sequence[str] | None = None,
    temporary: Path | None = None,
    settings: Settings | None = None,
) -> tuple[Model, ...]:
    """Look at the models that a user named; convert those that are no IR.

    Parameters
    ----------
    directories
        Of IRs or Hugging Face models.
    names
        As many; default: names of the directories, with those of their parents where two would be alike.
    temporary
        Where to convert to; must outlive what is returned.
    settings
        How they are going to be measured: what of it cannot be is told before a model is converted.

    Raises
    ------
    UserError
        If one is no model, is damaged or cannot be converted, or they cannot be compared, or measured so.
    """
    paths = [Path(directory) for directory in directories]
    names = _default_names(paths) if names is None else list(names)
    if len(names) != len(paths):
        raise UserError(f"--names has {len(names)} names for {len(paths)} models: {', '.join(names)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two of --models have the name {twice[0]!r}; pass --names")
    for path in paths:  # before one is converted
        _check_model(path)
    if settings is not None:
        _check_settings(settings, _limits(dict(zip(names, paths, strict=True))))
    models = []
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        directory = path
        if not (path / MODEL_FILE).is_file():
            if temporary is None:
                raise UserError(f"{path} holds no OpenVINO IR: export it first")
            directory = temporary / f"converted{number}"
            _convert(path, directory)
        models.append(Model(name, directory, path, describe_ir(directory), *_metric(path)))
    kinds: dict[str, str] = {}
    for model in models:
        kinds.setdefault(model.kind, model.name)
    if len(kinds) > 1:
        told = " and ".join(f"{name} is of the kind {kind}" for kind, name in kinds.items())
        raise UserError(f"{told}: what is measured of them differs, so measure each kind in a call of its own")
    return tuple(models)


def _check_model(path: Path) -> None:
    """Raise `UserError` unless a directory looks as if it held a model."""
    if any((path / name).is_file() for name in (MODEL_FILE, "config.json")):
        return
    missing = "there is no such directory"
    if path.exists():
        missing = f"it has neither {MODEL_FILE} nor config.json" if path.is_dir() else "it is a file"
    raise UserError(f"{path} is no model directory: {missing}")


def _limits(named: Mapping[str, Path]) -> dict[str, float]:
    """Return how many tokens each model takes."""
    return {name: max_length(load_config(str(directory))) for name, directory in named.items()}


def _check_settings(settings: Settings, limits: Mapping[str, float], room: int = 0) -> None:
    """Raise `UserError` if a device, a precision or a length does not suit models that take `limits` tokens.

    `room` are the tokens that have to find a place after the prompt.
    """
    check_device(settings.device)
    if settings.streams is not None:
        check_streams(settings.streams, settings.device)
    for precision in settings.precisions or ():
        check_measured(precision, settings.device)
    for (name, limit), length in itertools.product(limits.items(), settings.lengths):
        if length + room > limit:
            more = f", {room} new ones after it included" if room else ""
            raise UserError(f"--length {length} exceeds the {int(limit)} tokens that {name} takes{more}")


def measure(models: Sequence[Model], settings: Settings, temporary: Path) -> Benchmark:
    """Measure every model in every precision on every shape, those of a shape side by side.

    Parameters
    ----------
    models
        From `read_models`.
    settings
        How to measure.
    temporary
        Where to put models that are quantised for the occasion.

    Raises
    ------
    UserError
        If the device, a precision or a shape does not suit a model.
    """
    causal = models[0].kind == CAUSAL
    room = settings.new_tokens if causal else 0
    limits = _limits({model.name: model.directory for model in models})
    _check_settings(settings, limits, room)
    lengths = settings.lengths or (max(1, int(min(LENGTH, *(limit - room for limit in limits.values())))),)
    shapes = list(itertools.product(settings.batches, lengths))
    planned = _planned(models, settings)
    made = [
        _variant(model, precision, temporary / f"quantised{number}")
        for number, model in enumerate(models)
        for precision in planned[model.name]
    ]
    found: dict[tuple[int, int], dict[Variant, dict[str, Latency]]] = {
        shape: {variant: {} for variant in made} for shape in shapes
    }
    for figures in (_generation,) if causal else (_latency, *([_throughput] if settings.throughput else [])):
        for shape, variant, name, latency in figures(made, shapes, settings):
            found[shape][variant][name] = latency
    measurements = tuple(
        Measurement(variant, batch, length, figures)
        for (batch, length), beside in found.items()
        for variant, figures in beside.items()
    )
    return Benchmark(tuple(models), measurements, settings)


Found = Iterator[tuple[tuple[int, int], Variant, str, Latency]]
"""Shape, variant, name of a figure, and the figure."""


def _latency(variants: Sequence[Variant], shapes: Sequence[tuple[int, int]], settings: Settings) -> Found:
    models = {variant: _compiled(variant, settings, {}) for variant in variants}
    for batch, length in _ticking("latency", shapes):
        found = time_latency(models, batch=batch, length=length, **_patience(settings))
        for variant, latency in found.items():
            yield (batch, length), variant, "latency", latency


def _throughput(variants: Sequence[Variant], shapes: Sequence[tuple[int, int]], settings: Settings) -> Found:
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT"}
    if settings.streams is not None:
        hints["NUM_STREAMS"] = settings.streams
    models = {variant: _compiled(variant, settings, hints) for variant in variants}
    for batch, length in _ticking("throughput", shapes):
        found = time_throughput(models, batch=batch, length=length, **_patience(settings))
        for variant, latency in found.items():
            yield (batch, length), variant, "throughput", latency


def _generation(variants: Sequence[Variant], shapes: Sequence[tuple[int, int]], settings: Settings) -> Found:
    models = {variant: _compiled(variant, settings, {}) for variant in variants}
    for batch, length in _ticking("generation", shapes):
        new = settings.new_tokens
        generations = time_generation(models, batch=batch, length=length, new_tokens=new, **_patience(settings))
        for variant, found in generations.items():
            yield (batch, length), variant, "prefill", found.prefill
            yield (batch, length), variant, "token", found.token


def _patience(settings: Settings) -> dict[str, Any]:
    return {"repeats": settings.repeats, "warmup": settings.warmup, "max_seconds": settings.max_seconds}


def _compiled(variant: Variant, settings: Settings, hints: Mapping[str, Any]) -> IRModel:
    return compile_ir(variant.directory, variant.hint, settings.threads, hints, settings.device)


def _ticking(what: str, shapes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    with Ticker(f"benchmark: {what}", len(shapes)) as ticker:
        for done, (batch, length) in enumerate(shapes):
            ticker.update(done, f"batch {batch}, {length} tokens")
            yield batch, length


def _planned(models: Sequence[Model], settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return in which precisions each model is measured."""
    asked = settings.precisions
    for precision in asked or ():
        if precision in INT8 and models[0].kind == CAUSAL:
            raise UserError(
                f"--precision {precision} is for encoders; of a language model the weights are int8 or int4: export it "
                "with --weight_format int8 and name that directory"
            )
    usual = tuple(precision for precision in DEFAULTS if precision in available_precisions(settings.device))
    planned = {}
    for model in models:
        quantised = model.description.quantised
        if asked is None:
            integers = tuple(precision for precision, rest in INT8.items() if rest in usual)
            planned[model.name] = integers if quantised else usual
            continue
        planned[model.name] = tuple(each for each in asked if not quantised or each in INT8)
        left_out = [each for each in asked if each not in planned[model.name]]
        if left_out:
            reason = f"{model.name} is quantised, so it is not measured in {listed(left_out)}"
            if not planned[model.name]:
                raise UserError(f"{reason}: add int8 to --precision")
            notice(reason)
    return planned


def _variant(model: Model, precision: str, temporary: Path) -> Variant:
    if precision not in INT8 or model.description.quantised:
        return Variant(model.name, precision, model.directory, model.description.weight_format, model.description.size)
    if not temporary.exists():  # for another precision of the same model
        notice(f"{model.name}: quantising a copy to int8 on random tokens, for its speed alone")
        _quantise(model.directory, temporary)
    description = describe_ir(temporary)
    return Variant(model.name, precision, temporary, description.weight_format, description.size)


def _quantise(source: Path, target: Path) -> None:
    """Write a fully quantised copy of an encoder's IR. Its ranges are those of random tokens."""
    import openvino as ov

    vocabulary = read_json(source / "config.json")["vocab_size"]
    quantised = quantise_for_speed(ov.Core().read_model(source / MODEL_FILE), source.name, vocabulary)
    with writing(target):
        target.mkdir()
        ov.save_model(quantised, target / MODEL_FILE, compress_to_fp16=False)
        shutil.copy(source / "config.json", target)


def _convert(source: Path, target: Path) -> None:
    """Write a float32 IR of a Hugging Face directory."""
    model = load_as_saved(str(source))
    notice(f"{source} holds no OpenVINO IR: converting it to one in float32, for the occasion")
    export_openvino(model, None, target, example_batches=[random_batch(model.config.vocab_size, 2)])


def _metric(directory: Path) -> tuple[tuple[str, float] | None, int | None]:
    """Return the metric of a directory's task and of how many rows: the export's, else that of the stage before."""
    exported = read_json(directory / EXPORT_FILE) if (directory / EXPORT_FILE).is_file() else {}
    if exported.get("metric"):
        found = exported["metric"]
        return (found["name"], float(found["ir"])), found.get("rows")
    if not (directory / STAGE_FILE).is_file() or not (directory / TASK_FILE).is_file():
        return None, None
    name = TaskSpec.load(directory / TASK_FILE).metric
    value = read_json(directory / STAGE_FILE)["result"].get(f"eval_{name}")
    return (None if value is None else (name, float(value))), None


def _default_names(paths: Sequence[Path]) -> list[str]:
    """Return the directories' names, with as many of their parents as it takes to tell them apart."""
    parts = [path.resolve().parts[1:] for path in paths]
    for depth in range(1, max(map(len, parts), default=1)):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
