"""Models measured side by side: what is measured in which order, what the tables say, what is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tiny_bert
from rich.console import Console
from test_export import HETEROGENEOUS, build_batch

from bootstrapnas.artefacts import write_json
from bootstrapnas.cli import main
from bootstrapnas.errors import UserError
from bootstrapnas.export import available_precisions, export_openvino
from bootstrapnas.export.latency import (
    Latency,
    LatencySettings,
    _side_by_side,
    speed_up,
    time_generation,
    time_latency,
    time_throughput,
)
from bootstrapnas.export.runtime import IRDescription, compile_ir, describe_ir, load_ir
from bootstrapnas.extraction import save_subnet
from bootstrapnas.pipeline.benchmark import side_by_side
from bootstrapnas.pipeline.benchmark import text as benchmark_text
from bootstrapnas.pipeline.benchmark.side_by_side import (
    Benchmark,
    Measurement,
    Model,
    Settings,
    Variant,
    measure,
    read_models,
)
from bootstrapnas.pipeline.benchmark.text import benchmark_json, cells, markdown, notes, show, write_benchmark
from bootstrapnas.search import pareto_front
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TaskSpec


@pytest.fixture(scope="module")
def irs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IRs of the tiny BERT, ``full``, and of a subnet, ``half``, which is there as ``half_hf`` too. Read-only."""
    root = tmp_path_factory.mktemp("irs")
    half = Supernet(build_tiny_bert()).extract(HETEROGENEOUS)
    for name, model in (("full", build_tiny_bert()), ("half", half)):
        export_openvino(model, None, root / name, example_batches=[build_batch(2, 9)])
    save_subnet(half, root / "half_hf")
    return root


def quantise_nothing(source: Path, target: Path) -> None:
    """Stand in for NNCF, whose import takes longer than all the rest."""
    shutil.copytree(source, target)


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_models_take_turns_in_an_order_that_rotates() -> None:
    order: list[str] = []
    models: Any = {name: name for name in "abc"}

    def prepare(name: Any) -> Any:
        order.append(f"warm {name}")
        return lambda: order.append(name) or len(order)

    _, samples = _side_by_side(models, prepare, 4, 60.0)
    assert order == ["warm a", "warm b", "warm c", *"abc", *"bca", *"cab", *"abc"]
    assert {name: len(found) for name, found in samples.items()} == {"a": 4, "b": 4, "c": 4}
    order.clear()
    _, samples = _side_by_side(models, prepare, 1000, 1e-9)
    assert order[3:] == [*"abc"]


def test_what_is_compared_was_measured_together_whatever_the_precision(irs: Path) -> None:
    models = {(p, name): load_ir(irs / name, p) for name in ("full", "half") for p in available_precisions()}
    found = time_latency(models, length=8, repeats=3, warmup=0)
    assert list(found) == list(models)
    assert {name: latency.settings.precision for name, latency in found.items()} == {name: name[0] for name in models}
    for latency in found.values():
        assert speed_up(found["f32", "full"], latency) > 0
    again = time_latency(models, length=8, repeats=3, warmup=0)
    with pytest.raises(UserError, match="measure them together"):
        speed_up(found["f32", "full"], again["f32", "half"])


def test_throughput_counts_every_run_of_every_request(irs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov

    started: list[object] = []

    class Counting(ov.AsyncInferQueue):
        def start_async(self, *arguments: Any) -> None:
            started.append(self)
            super().start_async(*arguments)

    monkeypatch.setattr(ov, "AsyncInferQueue", Counting)
    models = {"full": compile_ir(irs / "full", "f32", None, {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 2})}
    found = time_throughput(models, batch=4, length=8, repeats=5, warmup=2, runs=3)["full"]
    requests = found.settings.requests
    assert requests == len(started[0])  # type: ignore[arg-type]
    assert len(started) == requests * (2 + 5 * (1 + 3))
    assert len(found.samples_ms) == 5
    assert found.per_second == pytest.approx(4 * 1000 / found.median_ms)
    assert found.settings.batch == 4


def test_an_encoder_keeps_no_cache(irs: Path) -> None:
    with pytest.raises(UserError, match="keeps no cache"):
        time_generation({"full": load_ir(irs / "full")}, length=8)


def test_an_ir_of_fixed_shape_takes_that_only(irs: Path, tmp_path: Path) -> None:
    import openvino as ov

    ir = ov.Core().read_model(irs / "full/openvino_model.xml")
    ir.reshape({port.get_any_name(): [1, 8] for port in ir.inputs})
    shutil.copytree(irs / "full", tmp_path / "fixed")
    ov.save_model(ir, tmp_path / "fixed/openvino_model.xml", compress_to_fp16=False)
    fixed = {"fixed": load_ir(tmp_path / "fixed")}
    assert len(time_latency(fixed, length=8, repeats=1)["fixed"].samples_ms) == 1
    with pytest.raises(UserError, match=r"takes input_ids of shape \[1,8\], not batch 2 of 8 tokens"):
        time_latency(fixed, batch=2, length=8)


def test_a_description_says_how_weights_are_stored(irs: Path, tmp_path: Path) -> None:
    export_openvino(build_tiny_bert(), None, tmp_path / "h", weight_format="fp16", example_batches=[build_batch(2, 9)])
    assert describe_ir(tmp_path / "h").weight_format == "fp16"
    found = describe_ir(irs / "full")
    assert found.size == (irs / "full/openvino_model.bin").stat().st_size
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert found == IRDescription(names, "fp32", quantised=False, stateful=False, size=found.size)


# -- tables ------------------------------------------------------------------------------------------------------------

SMALL = {"precision": "f32", "threads": 2, "warmup": 1, "cpu": "A CPU", "openvino": "2026.4"}


def made(metrics: Mapping[str, tuple[str, float] | None]) -> Benchmark:
    """Return a benchmark of ``full`` and ``half`` in f32 and int8, batch 2 of 16 tokens."""
    description = IRDescription((), "fp32", quantised=False, stateful=False, size=4_000_000)
    models = tuple(Model(name, Path(name), Path(name), description, metric) for name, metric in metrics.items())
    times = {("full", "f32"): 8.0, ("full", "int8"): 4.0, ("half", "f32"): 5.0, ("half", "int8"): 2.0}
    measurements = []
    for (name, precision), time in times.items():
        directory = Path(name) if precision == "f32" else Path("temporary")
        size, weights = (4_000_000, "fp32") if precision == "f32" else (1_000_000, "int8")
        latency = Latency((time, time, time * 1.2), LatencySettings(2, 16, **SMALL))
        throughput = Latency((time / 4,) * 3, LatencySettings(2, 16, **SMALL, streams=2, requests=2))
        variant = Variant(name, precision, directory, weights, size)
        measurements.append(Measurement(variant, 2, 16, {"latency": latency, "throughput": throughput}))
    return Benchmark(models, tuple(measurements), Settings(batches=(2,), lengths=(16,)))


def test_tables_hold_every_figure_and_both_speed_ups() -> None:
    benchmark = made({"full": ("accuracy", 0.9123), "half": None})
    (beside,) = benchmark.shapes.values()
    assert cells(benchmark, beside) == [
        ["model", "precision", "accuracy", "MB", "ms", "p90", "spread", "×", "×=", "seq/s", "×", "×="],
        ["full", "f32", "0.9123", "4.00", "8.00", "9.28", "10%", "1.00", "1.00", "1,000", "1.00", "1.00"],
        ["full", "int8", "–", "1.00", "4.00", "4.64", "10%", "2.00", "1.00", "2,000", "2.00", "1.00"],
        ["half", "f32", "–", "4.00", "5.00", "5.80", "10%", "1.60", "1.60", "1,600", "1.60", "1.60"],
        ["half", "int8", "–", "1.00", "2.00", "2.32", "10%", "4.00", "2.00", "4,000", "4.00", "2.00"],
    ]
    text = markdown(benchmark, picture="benchmark.png")
    assert "## batch 2, 16 tokens\n\n| model | precision |" in text
    assert "| half | int8 | – | 1.00 | 2.00 |" in text
    told = list(notes(benchmark))
    assert told[0].startswith("×: speed-up over full in f32; ×=: over full at the same precision;")
    assert "latency: median of 3 interleaved runs, OpenVINO 2026.4 on CPU (A CPU), LATENCY hint, 2 threads, " in told[1]
    assert told[2].endswith("THROUGHPUT hint, 2 threads, 2 streams, 2 requests at once.")
    assert (
        told[3] == "INFERENCE_PRECISION_HINT of each precision: f32: f32, int8: f32 (int8: of what is not quantised)."
    )
    assert told[4].startswith("Quantised for the occasion on random tokens: full, half;")
    assert len(told) == 5


def test_the_terminal_shows_whole_numbers_in_80_columns() -> None:
    output = io.StringIO()
    show(made({"full": None, "half": None}), Console(file=output, width=80, color_system=None))
    lines = output.getvalue().splitlines()
    assert "half   int8       1.00  2.00  2.32     10%  4.00  2.00  4,000  4.00  2.00" in "\n".join(lines)


@pytest.mark.parametrize("width", [72, 40])  # no table has room in the latter
def test_a_narrow_terminal_gets_a_table_per_figure_and_loses_no_column(width: int) -> None:
    output = io.StringIO()
    benchmark = made({"full": ("accuracy", 0.9123), "half": ("f1", 0.9)})
    show(benchmark, Console(file=output, width=width, color_system=None))
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    (beside,) = benchmark.shapes.values()
    for name in ("latency", "throughput"):
        start = lines.index(f"batch 2, 16 tokens: {name}")
        header, *rows = cells(benchmark, beside, [name])
        assert [line.split() for line in lines[start + 2 : start + 3]] == [header]
        found = [line.split() for line in lines[start + 4 : start + 4 + len(rows)]]
        assert found == [" ".join(row).split() for row in rows]
    assert cells(benchmark, beside)[1][2] == "accuracy 0.9123"  # of another kind than the other's


def test_a_busy_machine_is_told() -> None:
    benchmark = made({"full": None, "half": None})
    noisy = Latency((1.0, 2.0, 3.0), LatencySettings(2, 16, **SMALL))
    first, *rest = benchmark.measurements
    busy = Measurement(first.variant, 2, 16, {**first.figures, "latency": noisy})
    *_, told = notes(Benchmark(benchmark.models, (busy, *rest), benchmark.settings))
    assert "more than 25% of the median in 1 of 8 figures, at most 50% (latency of full in f32 at 2 x 16)" in told


def test_metrics_of_other_rows_are_told() -> None:
    benchmark = made({"full": ("accuracy", 0.9), "half": ("accuracy", 0.8)})
    for rows, told in (((200, 64), True), ((200, 200), False), ((200, None), False)):
        models = tuple(replace(model, rows=count) for model, count in zip(benchmark.models, rows, strict=True))
        found = [note for note in notes(replace(benchmark, models=models)) if "different numbers of rows" in note]
        assert bool(found) == told
        assert all("(full 200, half 64)" in note for note in found)


def test_json_holds_settings_and_figures_and_pictures_are_drawn(tmp_path: Path) -> None:
    for metric in (("accuracy", 0.9), None):
        benchmark = made({"full": metric, "half": metric})
        write_benchmark(benchmark, tmp_path / str(metric))
        found = json.loads((tmp_path / str(metric) / "benchmark.json").read_text())
        assert found == json.loads(json.dumps(benchmark_json(benchmark)))
        assert (tmp_path / str(metric) / "benchmark.png").read_bytes().startswith(b"\x89PNG")
        last = found["measurements"][-1]
        assert (last["model"], last["precision"], last["batch"], last["length"]) == ("half", "int8", 2, 16)
        assert last["latency"]["speed_up"] == 4
        assert last["latency"]["speed_up_at_same_precision"] == 2
        assert last["throughput"]["per_second"] == 4000
        assert last["throughput"]["settings"]["requests"] == 2
        assert found["models"][0]["metric"] == (None if metric is None else {"name": "accuracy", "value": 0.9})
        assert "openvino" in found["versions"]


@pytest.mark.parametrize(
    ("metric", "front"),
    [("accuracy", {"half f32", "full f32"}), ("perplexity", {"half f32"}), (None, {"half int8"})],
)
def test_the_line_of_the_picture_is_the_front(
    metric: str | None, front: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more accuracy, or less perplexity or size: ``half`` has less of everything.

    The metric of copies that were quantised on random tokens is unknown, their size is not.
    """
    fronts: list[list[int]] = []

    def watch(values: Any, objectives: Any) -> list[int]:
        fronts.append(pareto_front(values, objectives))
        return fronts[-1]

    monkeypatch.setattr(benchmark_text, "pareto_front", watch)
    known = {"full": None, "half": None} if metric is None else {"full": (metric, 0.9), "half": (metric, 0.8)}
    benchmark = made(known)
    benchmark_text.draw(benchmark, tmp_path / "picture.png")
    variants = [each.variant for each in benchmark.measurements if metric is None or not benchmark.is_copy(each)]
    assert {f"{variants[index].model} {variants[index].precision}" for index in fronts[0]} == front


# -- language models ---------------------------------------------------------------------------------------------------


def build_tiny_llama(ffn: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "intermediate_size": ffn, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, **more)).eval()


def test_language_models_are_measured_by_prefill_and_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino as ov

    ids = torch.arange(16).reshape(2, 8)
    export_openvino(build_tiny_llama(64), None, tmp_path / "full", example_batches=[{"input_ids": ids}])
    build_tiny_llama(32).save_pretrained(tmp_path / "half")
    flags = ["--precision", "f32", "--length", "8,16", "--new_tokens", "3", "--repeats", "2", "--warmup", "0"]
    status, out, err = call(capsys, tmp_path / "full", tmp_path / "half", *flags, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["kind"] == "language model"
    assert [(each["model"], each["length"]) for each in found["measurements"]] == [
        ("full", 8), ("half", 8), ("full", 16), ("half", 16)
    ]  # fmt: skip
    for each in found["measurements"]:
        assert each["token"]["per_second"] == pytest.approx(1000 / each["token"]["median_ms"])
        assert each["prefill"]["repeats"] == each["token"]["repeats"] == 2
        assert each["size"] < 300_000
    status, out, _ = call(capsys, tmp_path / "full", *flags)
    assert status == 0
    assert "ms/token" in out
    assert "prompt of 16 tokens" in out
    assert "the time per token is the mean over the 3 after it" in out

    seen: list[tuple[int, int]] = []
    infer = ov.InferRequest.infer

    def watch(self: Any, inputs: Any = None, **settings: Any) -> Any:
        seen.append((inputs["input_ids"].shape[1], inputs["attention_mask"].shape[1]))
        return infer(self, inputs, **settings)

    monkeypatch.setattr(ov.InferRequest, "infer", watch)
    measured = time_generation(
        {"full": load_ir(tmp_path / "full")}, batch=2, length=5, new_tokens=3, repeats=2, warmup=0
    )
    # A prompt that does not count, and one that does with its steps.
    assert seen == 2 * [(5, 5), (5, 5), (1, 6), (1, 7), (1, 8)]
    assert measured["full"].token.per_second == pytest.approx(2000 / measured["full"].token.median_ms)
    with pytest.raises(UserError, match=r"has 64 positions: length must not be 60 \(and 8 new tokens after it\)"):
        time_generation({"full": load_ir(tmp_path / "full")}, length=60, new_tokens=8)


def test_a_head_of_another_name_makes_a_language_model_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    exported: list[Any] = []
    monkeypatch.setattr(side_by_side, "export_openvino", lambda model, *_, **__: exported.append(model))
    config = GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    side_by_side._convert(tmp_path / "gpt2", tmp_path / "ir")
    assert [type(model) for model in exported] == [GPT2LMHeadModel]


# -- the command -------------------------------------------------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run ``bootstrapnas benchmark``; return the exit status and what it printed."""
    status = main(["benchmark", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command_measures_prints_and_writes(
    irs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "_quantise", quantise_nothing)
    monkeypatch.setenv("COLUMNS", "120")
    models = ["--models", irs / "full", irs / "half_hf", "--names", "dense", "small"]
    quick = ["--repeats", "2", "--warmup", "0", "--threads", "1"]
    shapes = ["--precision", "f32,int8", "--batch", "1,2", "--length", "8,16"]
    status, out, err = call(capsys, *models, *quick, *shapes, "--output_dir", tmp_path / "out")
    assert status == 0
    assert out.count("dense") >= 8
    assert "small was converted to a float32 IR" in out
    assert "dense: quantising a copy to int8" in err
    found = json.loads((tmp_path / "out/benchmark.json").read_text())
    key = ("model", "precision", "batch", "length")
    assert [tuple(each[name] for name in key) for each in found["measurements"]] == [
        (model, precision, batch, length)
        for batch in (1, 2)
        for length in (8, 16)
        for model in ("dense", "small")
        for precision in ("f32", "int8")
    ]
    for each in found["measurements"]:
        assert each["latency"]["repeats"] == each["throughput"]["repeats"] == 2
        assert each["latency"]["settings"]["threads"] == 1
    (tmp_path / "out/notes.txt").write_text("mine")
    status, out, _ = call(
        capsys, irs / "full", *quick, "--json", "--throughput", "False", "--output_dir", tmp_path / "out"
    )
    assert status == 0
    found = json.loads(out)
    assert {each["length"] for each in found["measurements"]} == {64}  # as many as the model takes
    assert [each["precision"] for each in found["measurements"]] == [*available_precisions()]
    assert "throughput" not in found["measurements"][0]
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "out/benchmark.json").read_text()) == found


MISTAKES = {  # what is wrong without `cut` being read is told before it is
    "--models nowhere": "nowhere is no model directory: there is no such directory",
    "--models cut nowhere": "nowhere is no model directory: there is no such directory",
    "--models nowhere --output_dir new": "nowhere is no model directory: there is no such directory",
    "--models empty": "empty is no model directory: it has neither openvino_model.xml nor config.json",
    "--models full/config.json": "full/config.json is no model directory: it is a file",
    "--models cut": "cannot load cut/openvino_model.xml, it is damaged or no IR: …",
    "--models cut --device GPU": "OpenVINO has no device 'GPU' here, only CPU; did you mean 'CPU'?",
    "--models cut --precision fp32": "unknown precision 'fp32', known: bf16, f16, f32, int8, int8+bf16; "
    "did you mean 'f32'?",
    "--models full --precision f32,bf16": "this CPU does not compute in bf16, only in f32",
    "--models full cut --length 8,65": "--length 65 exceeds the 64 tokens that full takes",
    "--models language --length 49": "--length 49 exceeds the 64 tokens that language takes, 16 new ones after it "
    "included",
    "--models full --length 8.5": "--length must be whole numbers of at least 1, separated by commas, not 8.5",
    "--models full --batch 0": "--batch must be whole numbers of at least 1, separated by commas, not 0",
    "--models full --batch inf": "--batch must be whole numbers of at least 1, separated by commas, not inf",
    "--models full --batch one": "--batch must be numbers separated by commas, not 'one'",
    "--models full --repeats 0": "--repeats must be at least 1, not 0",
    "--models full --warmup -1": "--warmup must not be negative, not -1",
    "--models full --max_seconds 0": "--max_seconds must be above 0, not 0",
    "--models cut --streams 99": "streams must lie between 1 and … on this CPU, not 99",
    "--models full --streams 2 --throughput False": "--streams is of throughput, which --throughput False leaves out",
    "--models language --streams 1": "--streams is for encoders, and language is of the kind language model",
    "--models full --new_tokens 16": "--new_tokens is for language models, and full is of the kind encoder",
    "--models full half --names one": "--names has 1 names for 2 models: one",
    "--models full half --names a a": "two of --models have the name 'a'; pass --names",
    "--models full language": "full is of the kind encoder and language is of the kind language model: what is "
    "measured of them differs, so measure each kind in a call of its own",
    "--models quantised --precision f32": "quantised is quantised, so it is not measured in f32: "
    "add int8 to --precision",
    "--models language --precision int8": "--precision int8 is for encoders; of a language model the weights are "
    "int8 or int4: export it with --weight_format int8 and name that directory",
    "--models full --output_dir full/config.json": "--output_dir full/config.json is a file",
    "--models full --output_dir other": "--output_dir other holds a benchmark.json of something else; choose another",
}


def test_mistakes_are_told_in_a_line_and_nothing_is_written(
    irs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("full", "half"):
        shutil.copytree(irs / name, name)
    for name in ("cut", "quantised", "language"):
        shutil.copytree(irs / "full", name)
    content = Path("cut/openvino_model.xml").read_bytes()
    Path("cut/openvino_model.xml").write_bytes(content[: len(content) // 2])
    Path("empty").mkdir()
    Path("other").mkdir()
    write_json("other/benchmark.json", {"horses": 3})
    monkeypatch.setattr("bootstrapnas.export.runtime.available_precisions", lambda device: ("f32",))

    def describe(directory: Path) -> IRDescription:
        name = Path(directory).name
        found = describe_ir(directory)
        return IRDescription((), "int8", quantised=name == "quantised", stateful=name == "language", size=found.size)

    monkeypatch.setattr(side_by_side, "describe_ir", describe)
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    for mistake, told in MISTAKES.items():
        status, out, err = call(capsys, *mistake.split())
        assert status == 2, mistake
        assert out == ""
        start, ellipsis, end = f"bootstrapnas: error: {told}\n".partition("…")
        assert err == start if not ellipsis else (err.startswith(start) and err.endswith(end)), mistake
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before


def test_a_full_disk_is_told(irs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Cannot write: No space left on device")

    monkeypatch.setattr(ov, "save_model", full)
    with pytest.raises(UserError, match=r"cannot write .*: Cannot write: No space left on device"):
        read_models([irs / "half_hf"], temporary=tmp_path)
    with pytest.raises(UserError, match="holds no OpenVINO IR: export it first"):
        read_models([irs / "half_hf"])


def test_default_names_tell_directories_apart(irs: Path, tmp_path: Path) -> None:
    for run in ("a", "b"):
        shutil.copytree(irs / "full", tmp_path / run / "ir")
    assert [model.name for model in read_models([tmp_path / "a/ir", tmp_path / "b/ir"])] == ["a/ir", "b/ir"]
    assert [model.name for model in read_models([irs / "full", tmp_path / "a/ir"])] == ["full", "ir"]


def test_what_a_stage_measured_is_the_metric(irs: Path, tmp_path: Path) -> None:
    shutil.copytree(irs / "full", tmp_path / "ir")
    write_json(tmp_path / "ir/stage.json", {"result": {"eval_accuracy": 0.75, "eval_loss": 1.0}})
    assert read_models([tmp_path / "ir"])[0].metric is None  # of which task?
    TaskSpec("files", ("text",), ("go", "stop"), "single_label_classification", "accuracy", 8).save(
        tmp_path / "ir/task.json"
    )
    assert read_models([tmp_path / "ir"])[0].metric == ("accuracy", 0.75)
    write_json(tmp_path / "ir/export.json", {"metric": {"name": "accuracy", "torch": 0.75, "ir": 0.5}})
    assert read_models([tmp_path / "ir"])[0].metric == ("accuracy", 0.5)


def test_int8_quantises_a_copy_that_computes_in_int8(irs: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    settings = Settings(("int8",), lengths=(8,), repeats=1, warmup=0, throughput=False)
    (found,) = measure(read_models([irs / "full"]), settings, tmp_path).measurements
    assert describe_ir(found.variant.directory).quantised
    assert found.variant.weight_format == "int8"
    assert 0.2 < found.variant.size / describe_ir(irs / "full").size < 0.35


def test_quantised_models_are_measured_in_whatever_the_rest_can_compute(
    irs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default, as models in floating point are."""
    pytest.importorskip("nncf")
    settings = Settings(lengths=(8,), repeats=1, warmup=0, throughput=False)
    made = measure(read_models([irs / "full"]), replace(settings, precisions=("int8",)), tmp_path).measurements
    shutil.copytree(irs / "full", tmp_path / "ir")
    shutil.copytree(made[0].variant.directory, tmp_path / "ir", dirs_exist_ok=True)
    for available, wanted in {("f32",): ["int8"], ("f32", "bf16", "f16"): ["int8", "int8+bf16"]}.items():
        monkeypatch.setattr(side_by_side, "available_precisions", lambda _, found=available: found)
        found = measure(read_models([tmp_path / "ir"]), settings, tmp_path)
        assert [each.variant.precision for each in found.measurements] == wanted
