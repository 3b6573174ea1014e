"""What the search and depth sections of an NNCF config do: files written on the way, other metrics, fixed blocks."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from command_line import LENGTH, eftnas, metrics_of, succeed, write_config
from conftest import TaskFiles, build_tiny_bert
from transformers import AutoModelForSequenceClassification

import bootstrapnas.pipeline.search as search_stage
from bootstrapnas.artefacts import read_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key, Subnet, subnet_from_json
from bootstrapnas.extraction import load_model
from bootstrapnas.nncf_config import NodeNames, config_with_space
from bootstrapnas.space import Gene, SearchSpace
from bootstrapnas.supernet import Supernet

SPACE = SearchSpace(
    (
        *(Gene((Key("head", layer),), (4, 2, 1)) for layer in range(2)),
        *(Gene((Key("ffn", layer),), (128, 64, 32)) for layer in range(2)),
        Gene((Key("mha_block", 1),), (1, 0)),
        Gene((Key("ffn_block", 1),), (1, 0)),
        Gene((Key("ffn_block", 0),), (0,)),
    )
)
POPULATION, EVALS = 5, 20


class Trained(NamedTuple):
    root: Path
    active: list[Subnet]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> Trained:
    """A supernet of which one FFN is always skipped, and the subnets that its training computed. Read-only."""
    root = tmp_path_factory.mktemp("nncf_search")
    model = build_tiny_bert()
    raw = config_with_space(
        json.loads(write_config(root / "template.json").read_text()), Blueprint.of(model), NodeNames.of(model), SPACE
    )
    raw["bootstrapNAS"]["search"] |= {
        "algorithm": "RNSGA2",
        "num_evals": EVALS + 3,
        "population": POPULATION,
        "aspiration_points": [[0.5, -90]],
        "epsilon": 0.01,
        "eval_metric_name": "eval_macro_f1",
        "ref_acc": 99.9,
    }
    (root / "config.json").write_text(json.dumps(raw))
    active: list[Subnet] = []
    activate = Supernet.activate

    @contextmanager
    def recorded(self: Supernet, subnet: Subnet) -> Iterator[Any]:
        active.append(dict(subnet))
        with activate(self, subnet) as activated:
            yield activated

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supernet, "activate", recorded)
        succeed(
            "train",
            model_name_or_path=tiny_bert_dir,
            train_file=tiny_task_files.train,
            validation_file=tiny_task_files.validation,
            max_seq_length=LENGTH,
            nncf_config=root / "config.json",
            output_dir=root / "supernet",
            num_train_epochs=1,
            per_device_train_batch_size=8,
        )
    return Trained(root, active)


def search(trained: Trained, directory: Path, **flags: Any) -> str:
    return succeed(
        "search", supernet_dir=trained.root / "supernet", output_dir=directory, precision="float32", **flags
    ).err


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


def test_blocks_are_skipped_in_training_as_the_config_says(trained: Trained) -> None:
    for key, sizes in {("ffn_block", 0): {0}, ("mha_block", 1): {0, 1}, ("ffn_block", 1): {0, 1}}.items():
        assert {subnet[Key(*key)] for subnet in trained.active} == sizes
    assert all(Key("mha_block", 0) not in subnet for subnet in trained.active)


def test_files_are_written_during_the_search_and_after_a_kill_are_as_if_it_had_not_been(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = search(trained, tmp_path / "whole")
    found = read_json(tmp_path / "whole" / "pareto.json")
    assert found["metric"] == "macro_f1"
    assert all("accuracy" not in entry["values"] for entry in found["front"])
    # No subnet reaches the floor: the run is kept, and the nearest to it is taken, not the largest.
    assert "no subnet found has macro_f1 >= 0.9890 (ref_acc 0.9990 less acc_delta 1 points)" in told
    assert "taking the nearest to the floor, which has" in told
    rows = [json.loads(line) for line in (tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines()[1:]]
    best = max(rows, key=lambda row: (row["values"]["macro_f1"], -row["values"]["macs"]))
    assert found["best"]["values"] == best["values"]

    evaluate, done = search_stage.evaluate_model, []

    def killed(*arguments: Any, **options: Any) -> dict[str, float]:
        if len(done) == POPULATION + 1:
            raise KeyboardInterrupt
        done.append(1)
        return evaluate(*arguments, **options)

    directory = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(search_stage, "evaluate_model", killed)
        eftnas("search", supernet_dir=trained.root / "supernet", output_dir=directory, precision="float32")
    assert read_json(directory / "stage.json")["status"] == "running"
    written = read_csv(directory / "search_progression.csv")
    assert len(written) >= POPULATION
    assert len(written) % POPULATION == 0  # whole generations
    assert (directory / "search_progression.png").read_bytes().startswith(b"\x89PNG")
    search(trained, directory)
    whole = read_csv(tmp_path / "whole" / "search_progression.csv")
    assert read_csv(directory / "search_progression.csv") == whole
    assert whole[: len(written)] == written
    assert len(whole) == EVALS  # rounded down to whole generations
    assert (directory / "pareto.json").read_bytes() == (tmp_path / "whole" / "pareto.json").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"eval_metric_name": "eval_accurracy"},
            "--eval_metric_name: task files has no metric 'eval_accurracy'; did you mean 'accuracy'?; it has: ",
        ),
    ],
)
def test_a_metric_that_the_task_does_not_produce_is_refused(
    trained: Trained, tmp_path: Path, flags: dict[str, str], message: str
) -> None:
    outcome = eftnas("search", supernet_dir=trained.root / "supernet", output_dir=tmp_path / "new", **flags)
    assert outcome.status == 2
    assert message in outcome.err
    assert "macro_f1" in outcome.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["max", "min"])
def test_fixed_blocks_vanish_from_the_extracted_model(trained: Trained, tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    succeed("extract", supernet_dir=trained.root / "supernet", subnet=name, output_dir=directory)
    noted = read_json(directory / "subnet.json")
    subnet = subnet_from_json(noted["sizes"])
    assert subnet[Key("ffn_block", 0)] == 0
    assert subnet[Key("mha_block", 1)] == subnet[Key("ffn_block", 1)] == (1 if name == "max" else 0)
    small = load_model(str(directory), AutoModelForSequenceClassification).eval()
    names = dict(small.named_parameters())
    assert not [n for n in names if "layer.0.intermediate" in n or "layer.0.output.dense" in n]
    assert "bert.encoder.layer.0.attention.self.query.weight" in names
    assert "bert.encoder.layer.0.output.LayerNorm.weight" in names  # as published, the layer's last norm stays
    assert sum(p.numel() for p in small.parameters()) == noted["costs"]["params"] < noted["full_costs"]["params"]
    assert noted["costs"]["macs"] < noted["full_costs"]["macs"]
    supernet = Supernet(load_model(str(trained.root / "supernet"), AutoModelForSequenceClassification).eval())
    ids = torch.arange(24).reshape(3, 8)
    with torch.inference_mode(), supernet.activate(subnet) as model:
        torch.testing.assert_close(small(ids).logits, model(ids).logits, atol=0, rtol=0)
    assert metrics_of(model_dir=directory)["accuracy"] >= 0
