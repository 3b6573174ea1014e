"""Latency tables: which parts the labels show, what is measured, how it adds up, and what is refused."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from causal_models import build_causal
from command_line import CONFIG, LENGTH
from conftest import build_tiny_bert
from families import FAMILY_ROWS, TOY, ToyConfig, ToyModel

from bootstrapnas.artefacts import OtherRunError, read_json, write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.cli import main
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.errors import UserError
from bootstrapnas.export import latency_build
from bootstrapnas.export.latency_build import (
    CHECKED,
    GROUP,
    circumstances_of,
    complete_latency_table,
    models_to_measure,
    open_latency_table,
    openvino_timer,
)
from bootstrapnas.export.latency_table import Accuracy, Circumstances, LatencyTable, parts_of
from bootstrapnas.export.runtime import describe_ir
from bootstrapnas.nncf_config import NodeNames, config_with_space, write_config
from bootstrapnas.pipeline.cli import to_arguments
from bootstrapnas.pipeline.latency_table import TABLE_FILE, LatencyArguments, searched_table
from bootstrapnas.space import Gene, SearchSpace

HERE = Circumstances("a CPU", "2026.4.1", 2, "f32", 1, 32, "pass", "0123456789abcdef")
BLUEPRINTS: dict[str, Callable[[], Blueprint]] = {
    row.name: (lambda row=row: Blueprint.of(row.build())) for row in FAMILY_ROWS
} | {"ToyModel": lambda: Blueprint.of(ToyModel(ToyConfig()), TOY)}


def build_full_space(blueprint: Blueprint) -> SearchSpace:
    """Return a space with three widths of everything elastic, other ones in every other layer, and every block free."""

    def sizes(key: Key) -> list[int]:
        full = blueprint.full[key]
        if blueprint.is_block(key):
            return [1, 0]
        return [full, max(1, full // 2), max(1, full // 3 if (key.layer or 0) % 2 else full // 4)]

    return SearchSpace.build(blueprint, [(key, sizes(key)) for key in blueprint.elastic])


def macs_as_ms(blueprint: Blueprint, drift: Random | None = None) -> Callable[[Sequence[Subnet]], list[list[float]]]:
    """Return a stopwatch that shows MACs, on a machine whose speed may change from turn to turn."""

    def measure(subnets: Sequence[Subnet]) -> list[list[float]]:
        speeds = [1.0 if drift is None else drift.uniform(0.5, 2) for _ in range(3)]
        return [[speed * count_macs(blueprint, subnet, length=HERE.length) for speed in speeds] for subnet in subnets]

    return measure


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_costs_that_add_up_are_predicted_exactly(name: str, tmp_path: Path) -> None:
    blueprint = BLUEPRINTS[name]()
    space = build_full_space(blueprint)
    path = tmp_path / "table.json"
    table = open_latency_table(path, blueprint, space, HERE)
    complete_latency_table(table, path, macs_as_ms(blueprint), space)
    assert table.accuracy is not None
    assert table.accuracy.mean_error < 1e-9
    random = Random(0)
    genomes = [space.max_genome, space.min_genome, *(space.sample(random) for _ in range(50))]
    again = LatencyTable.load(path, blueprint, HERE)
    for subnet in map(space.subnet, genomes):
        macs = count_macs(blueprint, subnet, length=HERE.length)
        assert table.predict(subnet) == pytest.approx(macs, rel=1e-9)
        assert again.predict(subnet) == table.predict(subnet)


def test_language_models_are_measured_with_attention(tmp_path: Path) -> None:
    blueprint = Blueprint.of(build_causal("llama"))
    here, path = replace(HERE, step="token"), tmp_path / "table.json"
    for dims in ({"layer_block"}, {"mha_block", "ffn_block", "ffn"}, {"kv", "layer_block", "mha_block"}):
        full = build_full_space(blueprint)
        space = SearchSpace(tuple(gene for gene in full.genes if gene.keys[0].dim in dims))
        measured: list[Subnet] = []

        def measure(subnets: Sequence[Subnet], measured: list[Subnet] = measured) -> list[list[float]]:
            measured += subnets
            return macs_as_ms(blueprint)(subnets)

        path.unlink(missing_ok=True)
        table = open_latency_table(path, blueprint, space, here)
        complete_latency_table(table, path, measure, space)
        assert all(map(blueprint.cache_places, measured))
        again, random = LatencyTable.load(path, blueprint, here), Random(0)
        for genome in (space.max_genome, space.min_genome, *(space.sample(random) for _ in range(20))):
            macs = count_macs(blueprint, space.subnet(genome), length=HERE.length)
            assert again.predict(space.subnet(genome)) == pytest.approx(macs, rel=1e-9)


def test_costs_that_do_not_add_up_are_corrected_by_the_ends_of_the_space(tmp_path: Path) -> None:
    blueprint = Blueprint.of(build_tiny_bert())
    full, path = build_full_space(blueprint), tmp_path / "table.json"
    blocks = [Gene((Key("ffn_block", 1),), (1, 0))]
    space = SearchSpace((*(gene for gene in full.genes if not blueprint.is_block(gene.keys[0])), *blocks))

    def measure(subnets: Sequence[Subnet]) -> list[list[float]]:  # large models take more than their MACs say
        return [[samples[0] ** 1.6] * 3 for samples in macs_as_ms(blueprint)(subnets)]

    table = open_latency_table(path, blueprint, space, HERE)
    complete_latency_table(table, path, measure, space)
    again, plain = (LatencyTable.load(path, blueprint, HERE) for _ in range(2))
    plain.ends.clear()
    random = Random(1)
    subnets = [space.subnet(space.sample(random)) for _ in range(100)]
    largest, smallest = space.subnet(space.max_genome), space.subnet(space.min_genome)
    narrowest = {key: largest[key] if blueprint.is_block(key) else size for key, size in smallest.items()}
    for end in (largest, narrowest, smallest):
        ((taken, *_),) = measure([end])
        assert again.predict(end) == pytest.approx(taken, rel=1e-9)
        assert plain.predict(end) != pytest.approx(taken, rel=0.05)
    for each in (again, plain):
        assert sorted(subnets, key=each.predict) == sorted(subnets, key=each.added_up)
    del (document := read_json(path))["ends"]  # as tables of before are
    write_json(path, document)
    table = open_latency_table(path, blueprint, space, HERE)
    assert models_to_measure(table, space) == 3 + CHECKED
    complete_latency_table(table, path, measure, space)
    assert table.ends == again.ends


def test_parts_are_what_the_labels_connect() -> None:
    blueprint = Blueprint.of(build_tiny_bert())
    assert [(part.layers, part.dims, part.whole_layer) for part in parts_of(blueprint)] == [
        ((0, 1), ("head", "mha_block"), False),
        ((0, 1), ("ffn", "ffn_block"), False),
        ((0, 1), ("layer_block",), True),
    ]


def test_only_what_a_space_names_is_measured_once(tmp_path: Path) -> None:
    blueprint = Blueprint.of(build_tiny_bert())
    narrow = SearchSpace.build(blueprint, [(Key("ffn", 0), [128, 96, 64]), (Key("ffn", 1), [128, 96, 32])])
    path, measured = tmp_path / "table.json", []
    stopwatch = macs_as_ms(blueprint)

    def measure(subnets: Sequence[Subnet]) -> list[list[float]]:
        measured.extend(subnets[1:])
        return stopwatch(subnets)

    table = open_latency_table(path, blueprint, narrow, HERE)
    assert table.reference[Key("ffn", 0)] == table.reference[Key("ffn", 1)] == 96
    complete_latency_table(table, path, measure, narrow)
    assert [subnet[Key("ffn", 0)] for subnet in measured[:3]] == [128, 64, 32]
    assert all(subnet[Key("head", layer)] == 4 for subnet in measured for layer in (0, 1))
    assert models_to_measure(table, narrow) == 0
    with pytest.raises(UserError, match="not measured at head 2, mha_block 1"):
        table.predict({Key("head", 0): 2})

    measured.clear()
    wider = SearchSpace.build(blueprint, [(Key("head", 1), [4, 2]), (Key("ffn", 0), [128, 96])])
    table = open_latency_table(path, blueprint, wider, HERE)
    complete_latency_table(table, path, measure, wider)
    assert measured[0][Key("head", 0)] == 2
    assert table.predict({Key("head", 0): 2}) == pytest.approx(
        count_macs(blueprint, {Key("head", 0): 2}, length=HERE.length)
    )


def test_a_killed_table_goes_on_and_drift_between_groups_does_not_matter(tmp_path: Path) -> None:
    blueprint = Blueprint.of(build_tiny_bert())
    space, path = build_full_space(blueprint), tmp_path / "table.json"
    stopwatch, calls = macs_as_ms(blueprint, Random(0)), 0

    def killed(subnets: Sequence[Subnet]) -> list[list[float]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return stopwatch(subnets)

    table = open_latency_table(path, blueprint, space, HERE)
    before = models_to_measure(table, space)
    with pytest.raises(KeyboardInterrupt):
        complete_latency_table(table, path, killed, space)
    table = open_latency_table(path, blueprint, space, HERE)
    assert models_to_measure(table, space) == before - GROUP
    seen = []
    complete_latency_table(table, path, stopwatch, space, lambda done, state: seen.append(done))
    assert seen[0] == 0
    assert seen[-1] == before - GROUP
    assert len(read_json(path)["accuracy"]["measured_ms"]) == CHECKED
    assert table.accuracy is not None
    assert table.accuracy.mean_error < 1e-9
    assert table.accuracy.rank_correlation == pytest.approx(1)


def test_accuracy() -> None:
    accuracy = Accuracy((1.1, 1.8, 4.0), (1.0, 2.0, 4.0))
    assert accuracy.mean_error == pytest.approx(0.2 / 3)
    assert accuracy.rank_correlation == pytest.approx(1)
    assert Accuracy((1.0, 2.0), (1.0, 2.0)).rank_correlation is None
    assert str(accuracy) == "mean error 6.7%, rank correlation 1.000 over 3 subnets"
    assert not accuracy.doubtful
    assert Accuracy((1.0, 1.01, 1.02, 1.03), (1.02, 1.0, 1.03, 1.01)).doubtful  # near, but in no order
    assert Accuracy((1.4,), (1.0,)).doubtful
    assert str(Accuracy((1.4,), (1.0,))) == "mean error 40.0% over 1 subnet"


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    blueprint = Blueprint.of(build_tiny_bert())
    space = SearchSpace.build(blueprint, [(Key("head", 0), [4, 2])])
    table = open_latency_table(tmp_path / "table.json", blueprint, space, HERE)
    complete_latency_table(table, tmp_path / "table.json", macs_as_ms(blueprint), space)
    return tmp_path / "table.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "another CPU"}, r"of another device \(device a CPU there, another CPU here\)"),
        ({"openvino": "2027.1"}, r"openvino 2026.4.1 there, 2027.1 here"),
        ({"threads": 8, "batch": 4}, r"another threads and batch \(threads 2 there, 8 here; batch 1 there, 4 here\)"),
        ({"precision": "bf16"}, "another precision"),
        ({"length": 64}, "another length"),
        ({"model": "f" * 16}, "another model"),
        ({"target": "GPU"}, r"another target \(target CPU there, GPU here\)"),
        ({"weight_format": "int4"}, "another weight_format"),
    ],
)
def test_tables_of_other_circumstances_are_refused(change: dict[str, Any], message: str, table_file: Path) -> None:
    with pytest.raises(UserError, match=message):
        LatencyTable.load(table_file, Blueprint.of(build_tiny_bert()), replace(HERE, **change))


def test_a_search_that_began_with_another_table_is_told_what_helps(table_file: Path) -> None:
    own = table_file.rename(table_file.parent / TABLE_FILE)
    model = build_tiny_bert()
    blueprint = Blueprint.of(model)
    deployed: Any = SimpleNamespace(model=model, blueprint=blueprint, space=build_full_space(blueprint))
    timing = LatencyArguments(latency_batch=2, latency_table=str(own.parent / "other.json"))
    told = r"\(latency_table: .*/latency_table\.json is of another .* 2 here.*\); choose another --output_dir or pass"
    with pytest.raises(OtherRunError, match=told):
        searched_table(timing, own.parent, deployed, 16)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda table: table.clear(), "is no latency table"),
        (lambda table: table.pop("states"), "is damaged"),
        (lambda table: table.update(circumstances={"device": "a CPU"}), "is damaged: it does not say what it is of"),
        (lambda table: table["states"][0].update(ratio="fast"), "is damaged"),
        (lambda table: table["states"][0].update(layers=[7]), "is damaged"),
        (lambda table: table.update(format=99), "update bootstrapnas"),
    ],
)
def test_damaged_tables_are_refused(damage: Callable[[dict[str, Any]], Any], message: str, table_file: Path) -> None:
    table = read_json(table_file)
    damage(table)
    write_json(table_file, table)
    with pytest.raises(UserError, match=message):
        LatencyTable.load(table_file, Blueprint.of(build_tiny_bert()), HERE)
    table_file.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        LatencyTable.load(table_file, Blueprint.of(build_tiny_bert()), HERE)


def test_impossible_circumstances_are_refused() -> None:
    model = build_tiny_bert()
    blueprint = Blueprint.of(model)
    for settings, message in (
        ({"step": "prefil"}, "BertForSequenceClassification has no step 'prefil', only pass"),
        ({"length": 65}, "length 65 exceeds the 64 tokens"),
        ({"batch": 0}, "batch must be at least 1, not 0"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"precision": "f23"}, "unknown precision 'f23', known: bf16, f16, f32, int8, int8.bf16; did you mean 'f32'"),
        ({"device": "GPU.7"}, "OpenVINO has no device 'GPU.7' here, only CPU"),
        ({"weight_format": "int4"}, "BertForSequenceClassification cannot be exported with weight_format int4: "),
        ({"precision": "int8", "weight_format": "int8"}, "quantisation makes integers of the weights too"),
    ):
        with pytest.raises(UserError, match=message):
            circumstances_of(model, blueprint, **{"precision": "f32", "batch": 1, "length": 32, **settings})


def test_language_models_are_timed_from_an_empty_cache() -> None:
    model = build_causal("llama")
    blueprint = Blueprint.of(model)
    for step, longest in ((None, 127), ("token", 120)):
        with pytest.raises(UserError, match=rf"length {longest + 1} exceeds the 128 tokens that the model takes, . "):
            circumstances_of(model, blueprint, precision="f32", batch=1, length=longest + 1, step=step)
        circumstances = circumstances_of(model, blueprint, precision="f32", batch=1, length=16, step=step)
        assert circumstances.step == (step or "prefill")
        with openvino_timer(model, blueprint, circumstances, repeats=3) as measure:
            found = measure([{}, {Key("mha_block", 1): 0}])
        assert [len(samples) for samples in found] == [3, 3]
        assert all(ms > 0 for samples in found for ms in samples)
    with pytest.raises(UserError, match="has no step 'pass', only prefill, token"):
        circumstances_of(model, blueprint, precision="f32", batch=1, length=16, step="pass")
    with pytest.raises(UserError, match="cannot be exported with quant_mode int8: it waits for its weights"):
        circumstances_of(model, blueprint, precision="int8", batch=1, length=16)


@pytest.mark.parametrize(
    ("build", "settings", "expected"),
    [
        (build_tiny_bert, {"precision": "int8"}, ("int8", True)),
        (build_tiny_bert, {"precision": "f32", "weight_format": "int8"}, ("int8", False)),
        (
            lambda: build_causal("llama", hidden_size=64, intermediate_size=64),
            {"precision": "f32", "weight_format": "int4"},
            ("int4", False),
        ),
    ],
    ids=["quantised", "int8 weights", "int4 weights"],
)
def test_what_is_timed_is_exported_as_it_is_deployed(
    build: Callable[[], Any], settings: dict[str, str], expected: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Any] = []
    time_side_by_side = latency_build._time

    def time(irs: Sequence[Path], *arguments: Any) -> Any:
        timed.extend(map(describe_ir, irs))
        return time_side_by_side(irs, *arguments)

    monkeypatch.setattr(latency_build, "_time", time)
    model = build()
    blueprint = Blueprint.of(model)
    circumstances = circumstances_of(model, blueprint, batch=1, length=16, **settings)
    with openvino_timer(model, blueprint, circumstances, repeats=3) as measure:
        found = measure([{}, {Key("ffn", 0): 32}])
    assert [(each.weight_format, each.quantised) for each in timed] == [expected] * 2
    assert all(ms > 0 for samples in found for ms in samples)


def command(**flags: Any) -> tuple[int, str]:
    with redirect_stderr(StringIO()) as err:
        status = main(["latency-table", *to_arguments(flags)])
    return status, err.getvalue()


def test_the_command_measures_a_table_and_refuses_what_it_cannot_use(tmp_path: Path, tiny_bert_dir: Path) -> None:
    model = build_tiny_bert()
    blueprint = Blueprint.of(model)
    space = SearchSpace.build(blueprint, [(Key("head", 0), [4, 2])])
    config = tmp_path / "config.json"
    write_config(config, config_with_space(CONFIG, blueprint, NodeNames.of(model), space))
    flags = {"model_name_or_path": tiny_bert_dir, "nncf_config": config, "output_file": tmp_path / "table.json"}
    status, err = command(**flags)
    assert status == 0, err
    assert "mean error" in err
    written = (tmp_path / "table.json").read_text()
    table = json.loads(written)
    assert [state["sizes"] for state in table["states"]] == [{"head": 2, "mha_block": 1}]
    assert table["circumstances"]["length"] == LENGTH
    assert all(entry["ratio"] > 0 for entry in table["states"])
    assert command(**flags)[0] == 0
    assert (tmp_path / "table.json").read_text() == written

    busy = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(busy, fcntl.LOCK_EX)  # as another process that measures a table in the same place
    assert command(**flags)[0] == 0  # nothing is missing
    status, err = command(**{**flags, "output_file": tmp_path / "other.json"})
    os.close(busy)
    assert (status, f"another run works in {tmp_path}: wait until it has ended" in err) == (2, True), err
    assert not (tmp_path / "other.json").exists()

    empty = tmp_path / "empty"
    empty.mkdir()
    for change, message in (
        ({"batch": 2}, "of another batch (batch 1 there, 2 here)"),
        ({"precision": "int7"}, "'int7'"),
        ({"precision": "int8"}, "of another precision (precision f32 there, int8 here)"),
        ({"weight_format": "fp16"}, "of another weight_format (weight_format fp32 there, fp16 here)"),
        ({"device": "NPU"}, "OpenVINO has no device 'NPU' here, only CPU"),
        ({"length": 100}, "exceeds the 64 tokens"),
        ({"nncf_config": None}, "--model_name_or_path needs --nncf_config"),
        ({"model_name_or_path": None}, "pass either --supernet_dir"),
        ({"model_name_or_path": empty}, "is no model directory: it has no config.json"),
        ({"output_file": config}, "is no latency table"),
        ({"output_file": config / "table.json"}, "cannot write"),
    ):
        status, err = command(**{**flags, **change})
        assert (status, message in err) == (2, True), err
    assert (tmp_path / "table.json").read_text() == written
