"""What is deployed of a super-adapter: latency that ranks do not change, and finalists that are merged and measured."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
import torch
from command_line import call, refused
from tiny_llama import TARGETS, lonas, write_model, write_rows

from bootstrapnas.artefacts import read_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs
from bootstrapnas.export import load_ir
from bootstrapnas.export.latency_build import Measure
from bootstrapnas.families.adapted import is_rank
from bootstrapnas.pipeline import latency_table as latency_module
from bootstrapnas.pipeline.data import Rows, inherited_task
from bootstrapnas.pipeline.deployed import Deployed
from bootstrapnas.pipeline.models import evaluate_model, load_tokenizer, outputs_of_ir
from bootstrapnas.pipeline.search import finalists as finalists_module
from bootstrapnas.pipeline.supernets import load_supernet
from bootstrapnas.search import Candidate

DATA = "--task_name commonsense --dataset_path train.json --validation_file val.json --max_seq_length 128"
TRAIN = f"train --model_name_or_path base {DATA} --evaluate_by score --lora_r 8 {TARGETS} --max_steps 4"
SPACE = f"search-space --model_name_or_path base --lora_r 8 --ranks 8,4 {TARGETS} --max_seq_length 128"
SEARCH = "search --supernet_dir super --num_evals 6 --population 3 --precision float32"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with two super-adapters, also the working directory. Read-only."""
    root = tmp_path_factory.mktemp("world")
    with chdir(root):
        write_model("base")
        write_rows("train.json", 8)
        write_rows("val.json", 6)
        lonas(f"{SPACE} --ffn_shares 1,0.5 --target_config space.json")
        lonas(f"{SPACE} --ffn_shares 1 --target_config ranks.json")
        lonas(f"{TRAIN} --nncf_config space.json --learning_rate 0.1 --reorder l1 --output_dir super")
        lonas(f"{TRAIN} --nncf_config ranks.json --output_dir ranks")
        yield root


@contextmanager
def macs_timer(model: object, blueprint: Blueprint, circumstances: object) -> Iterator[Measure]:
    """A stopwatch that shows MACs."""
    yield lambda subnets: [[count_macs(blueprint, subnet, length=16) / 1e6] * 3 for subnet in subnets]


def test_an_extracted_subnet_computes_what_the_supernet_computes(world: Path) -> None:
    spec = inherited_task("super")
    supernet, _ = load_supernet("super", spec)
    deployed = Deployed("super", spec, supernet)
    assert {key.dim for gene in deployed.space.genes for key in gene.keys} == {"ffn"}
    supernet.model.eval()
    ids = torch.arange(2, 22).view(2, 10)
    for genome in (supernet.space.max_genome, supernet.space.min_genome):
        subnet = supernet.space.subnet(genome)
        assert not any(is_rank(key.dim) for key in deployed.part(subnet))
        with torch.no_grad(), supernet.activate(subnet):
            expected = supernet.model(input_ids=ids).logits
            torch.testing.assert_close(deployed.extract(subnet)(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("by", ["score", "generate"])
def test_finalists_of_a_super_adapter_are_merged_and_measured(
    world: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finalists_module, "MAX_SECONDS", 1.0)
    directory = Path(f"search_{by}")
    way = f"--evaluate_by {by}{' --max_new_tokens 3' * (by == 'generate')} --measure_finalists 2 --keep_finalists True"
    lonas(f"{SEARCH} {way} --latency_length 16 --output_dir {directory}")
    found = read_json(directory / "finalists.json")
    spec = inherited_task(str(directory))
    supernet, _ = load_supernet("super", spec)
    rows = Rows(spec, load_tokenizer("super"))
    batches = rows.batches("validation")
    assert len(found["finalists"]) in (2, 3)
    for entry in found["finalists"]:
        assert set(entry["figures"]) == {"f32 prefill", "f32 token"}
        assert entry["measured"]["latency"] == entry["figures"]["f32 prefill"]["median_ms"] > 0
        ir = load_ir(directory / "finalists" / "ir" / entry["name"])
        with supernet.activate(supernet.space.subnet(entry["genome"])):
            expected = evaluate_model(supernet.model, rows, "validation")
        assert entry["measured"][spec.metric] == pytest.approx(expected[spec.metric])
        outputs = outputs_of_ir(ir, rows, batches)
        assert rows.measure("validation", outputs)[spec.metric] == pytest.approx(expected[spec.metric])
    report = (directory / "finalists" / "report.md").read_text()
    assert "f32 prefill latency (ms)" in report
    assert "f32 token latency (ms)" in report
    assert ("by the float32 IR, which writes greedily" in report) == (by == "generate")
    shutil.rmtree(directory)


def test_what_skips_all_attention_is_no_finalist(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest subnet of a space of layers has none of them; a search that finds it ends as any other."""
    monkeypatch.setattr(finalists_module, "MAX_SECONDS", 1.0)
    lonas(f"{SPACE} --ffn_shares 1 --depth layers --target_config {tmp_path}/space.json")
    lonas(f"{TRAIN} --nncf_config {tmp_path}/space.json --output_dir {tmp_path}/super")
    flags = "--num_evals 3 --population 3 --precision float32 --measure_finalists 3 --latency_length 16"
    command = f"search --supernet_dir {tmp_path}/super {flags} --output_dir {tmp_path}/search"
    outcome = call(shlex.split(command), "lonas")
    assert outcome.status == 0, outcome.err
    assert "finalists: not measured, as no IR is made of what skips all attention: 1 of the front" in outcome.err
    supernet, _ = load_supernet(f"{tmp_path}/super", inherited_task("super"))
    blocks = [gene.name.startswith("layer_block") for gene in supernet.space.genes]
    found = [read_json(tmp_path / "search" / name) for name in ("pareto.json", "finalists.json")]
    front, measured = (
        [entry["genome"] for entry in each[name]] for each, name in zip(found, ("front", "finalists"), strict=True)
    )
    smallest = [int(block) for block in blocks]
    assert smallest in front
    assert list(supernet.space.max_genome) in measured
    assert smallest not in measured
    table = (
        f"latency-table --supernet_dir {tmp_path}/super --length 16 --step token --output_file {tmp_path}/table.json"
    )
    outcome = call(shlex.split(table), "bootstrapnas")
    assert outcome.status == 0, outcome.err
    written = read_json(tmp_path / "table.json")
    ((state,), base) = written["states"], written["base"][0]["ms"][0]
    assert state["sizes"] == {"layer_block": 0}
    assert state["ms_per_layer"] == pytest.approx(base * (state["ratio"] - 1))  # of the two layers one was skipped


def test_finalists_that_are_left_out_make_room_for_others() -> None:
    front = [Candidate((gene,), {}, 1) for gene in range(10)]
    assert list(finalists_module.choose_finalists(front, front[9], 3, {(8,), (9,)})) == ["0", "4", "7"]
    assert finalists_module.choose_finalists(front[:1], front[9], 2, {(0,), (9,)}) == {}


def test_ranks_change_no_predicted_latency(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_module, "openvino_timer", macs_timer)
    flags = "--objectives metric,latency --latency_step token --latency_length 16 --latency_table table.json"
    outcome = call(shlex.split("latency-table --supernet_dir super --length 16 --step token --output_file table.json"),
                   "bootstrapnas")  # fmt: skip
    assert outcome.status == 0, outcome.err
    made = Path("table.json").read_text()
    lonas(f"{SEARCH} {flags} --num_evals 24 --population 6 --output_dir by_latency")
    assert Path("table.json").read_text() == made
    lines = Path("by_latency/evaluations.jsonl").read_text().splitlines()[1:]
    space = load_supernet("super", inherited_task("super"))[0].space
    places = [place for place, gene in enumerate(space.genes) if not is_rank(gene.keys[0].dim)]
    latencies: dict[tuple[int, ...], set[float]] = {}
    for line in map(json.loads, lines):
        widths = tuple(line["genome"][place] for place in places)
        latencies.setdefault(widths, set()).add(line["values"]["latency"])
    assert len(lines) > len(latencies) > 1
    assert all(len(values) == 1 for values in latencies.values())
    assert len(set.union(*latencies.values())) > 1


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("search --supernet_dir ranks --objectives metric,latency --output_dir new", "lonas"),
        ("latency-table --supernet_dir ranks --output_file new", "bootstrapnas"),
    ],
    ids=["search", "table"],
)
def test_latency_is_no_objective_where_ranks_alone_vary(world: Path, command: str, program: str) -> None:
    whose = "the supernet" if program == "lonas" else "ranks"
    refused(
        command,
        f"the subnets of {whose} differ in ranks alone: with their adapters merged, as they are deployed, all have the "
        "same latency",
        world,
        program,
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--latency_precision int8",
            "a subnet of super cannot be exported with quant_mode int8: it waits for its weights, not for its "
            "products; use weight_format int8 or int4",
        ),
        ("--latency_step pass", "--latency_step must be prefill or token, not 'pass'"),
        (
            "--latency_length 250",
            "--latency_length 250 exceeds the 248 tokens that the model takes, and 8 more after them",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_search(world: Path, flags: str, message: str) -> None:
    refused(f"{SEARCH} --measure_finalists 1 {flags} --output_dir new", message, world, "lonas")
