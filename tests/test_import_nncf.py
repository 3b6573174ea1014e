"""``bootstrapnas import-nncf``: what NNCF 2.x and EFTNAS left on disk goes on in our stages; no code of it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Outcome, succeed, write_config
from conftest import TaskFiles, build_tiny_bert
from transformers import BertForSequenceClassification

from bootstrapnas.artefacts import read_json, read_stage
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.cli import main
from bootstrapnas.importance import load_importance, order_scores, orders
from bootstrapnas.pipeline.cli import to_arguments
from bootstrapnas.supernet import Supernet

LAYER = "bert.encoder.layer"


class Evil:
    """A pickle of this runs code when it is read as pickles are."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def scores_of(model: BertForSequenceClassification) -> dict[str, torch.Tensor]:
    """Scores of movement sparsity in EFTNAS's granularity: blocks of 16 x 16, rows, columns; and biases."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(model.config.num_hidden_layers):
        path = f"{LAYER}.{layer}"
        for module in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= {f"{path}.attention.{module}.weight": (4, 4), f"{path}.attention.{module}.bias": (4,)}
        shapes |= {f"{path}.intermediate.dense.weight": (128, 1), f"{path}.intermediate.dense.bias": (128,)}
        shapes |= {f"{path}.output.dense.weight": (1, 128), f"{path}.output.dense.bias": (1,)}
    return {name: torch.randn(shape, generator=generator) / 1000 for name, shape in shapes.items()}


def nncf_state(model: BertForSequenceClassification, scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a model under movement sparsity, by NNCF's names."""
    state = dict(model.state_dict())
    for name, tensor in scores.items():
        module, _, leaf = name.rpartition(".")
        state[f"{module}.pre_ops.0.op.{leaf}_importance"] = tensor
        state[f"{module}.pre_ops.0.op.{leaf}_ctx._binary_mask"] = torch.ones_like(state[name])
    return state


class World:
    """What EFTNAS leaves after its supernet stage, of the tiny BERT."""

    def __init__(self, root: Path, tiny_bert_dir: Path, files: TaskFiles) -> None:
        self.root, self.tiny_bert_dir = root, tiny_bert_dir
        self.source, self.output = root / "eftnas", root / "out"
        self.task = {"train_file": files.train, "validation_file": files.validation}
        self.model = build_tiny_bert()
        self.scores = scores_of(self.model)
        self.config = write_config(root / "nncf_config.json")
        shutil.copytree(tiny_bert_dir, self.source)
        (self.source / "model.safetensors").unlink()
        scored = self.source / "movement_sparsity_0"
        scored.mkdir()
        shutil.copy(self.source / "config.json", scored)
        torch.save(nncf_state(self.model, self.scores), scored / "pytorch_model.bin")
        blueprint = Blueprint.of(self.model)
        self.supernet = Supernet(self.model)
        self.supernet.reorder(orders(order_scores(blueprint, self.scores, "eftnas")))
        state = {**self.model.state_dict(), "bert.embeddings.position_ids": torch.arange(64)[None]}
        torch.save(state, self.source / "pytorch_model.bin")
        torch.save({"state": Evil(root / "code-ran")}, self.source / "elasticity_state.pt")
        shutil.copy(self.config, self.source)

    def run(self, **flags: Any) -> Outcome:
        """Run the command on `source`, with the task's files unless told otherwise."""
        flags = {**self.task, "output_dir": self.output, **flags}
        with redirect_stderr(StringIO()) as err:
            status = main(["import-nncf", str(self.source), *to_arguments(flags)])
        assert not (self.root / "code-ran").exists()
        return Outcome(status, "", err.getvalue())

    def imported(self, **flags: Any) -> str:
        outcome = self.run(**flags)
        assert outcome.status == 0, outcome.err
        return outcome.err


@pytest.fixture
def world(tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> World:
    return World(tmp_path, tiny_bert_dir, tiny_task_files)


def test_scores_and_supernet_go_on_in_the_next_stages(world: World) -> None:
    said = world.imported()
    assert "elasticity_state.pt skipped: a pickle" in said
    importance, supernet = world.output / "importance", world.output / "supernet"
    found, header = load_importance(importance / "importance.safetensors", Blueprint.of(build_tiny_bert()))
    assert header["criterion"] == "movement"
    assert found.keys() == world.scores.keys()
    assert all(torch.equal(found[name], scores) for name, scores in world.scores.items())
    succeed(
        "search-space",
        model_name_or_path=world.tiny_bert_dir,
        importance_weight_dir=importance,
        source_config=world.config,
        target_config=world.root / "space.json",
    )
    succeed("search", supernet_dir=supernet, output_dir=world.root / "search", num_evals=6, population=3)
    succeed(
        "extract", supernet_dir=supernet, search_dir=world.root / "search", subnet="best", output_dir=world.root / "b"
    )
    succeed("extract", supernet_dir=supernet, subnet="max", output_dir=world.root / "max")
    largest = BertForSequenceClassification.from_pretrained(world.root / "max").eval()
    batch = {"input_ids": torch.arange(5, 45).view(4, 10)}
    with torch.no_grad():
        torch.testing.assert_close(largest(**batch).logits, world.model(**batch).logits)


def test_the_same_import_is_found_again_and_another_is_refused(world: World) -> None:
    world.imported()
    assert "importance: finished already" in world.imported()
    state = torch.load(world.source / "pytorch_model.bin", weights_only=True)
    torch.save({name: tensor * 2 for name, tensor in state.items()}, world.source / "pytorch_model.bin")
    refused = world.run()
    assert refused.status == 2
    assert "holds another run (nncf: " in refused.err
    world.imported(overwrite_output_dir=True)
    assert read_stage(world.output / "supernet", "train")["result"]["imported"].endswith("pytorch_model.bin")


def test_scores_beside_weights_in_the_directory_itself(world: World) -> None:
    """What the published scripts expect: the file of scores moved up."""
    shutil.move(world.source / "movement_sparsity_0" / "pytorch_model.bin", world.source / "pytorch_model.bin")
    world.imported()
    assert [path.name for path in world.output.iterdir()] == ["importance"]


@pytest.mark.parametrize("name", ["last_model_weights.pth", "supernet_weights.pth"])
def test_plain_weights_take_config_and_tokenizer_from_the_model(world: World, name: str) -> None:
    weights = world.source / "pytorch_model.bin"
    kept = weights.rename(world.root / name)
    shutil.rmtree(world.source)
    world.source.mkdir()
    kept.rename(world.source / name)
    said = world.imported(model_name_or_path=world.tiny_bert_dir, nncf_config=world.config)
    assert f"supernet weights of {name}" in said
    saved = BertForSequenceClassification.from_pretrained(world.output / "supernet")
    for parameter, tensor in world.model.named_parameters():
        assert torch.equal(saved.get_parameter(parameter), tensor)


def test_the_task_that_the_config_notes(world: World) -> None:
    path = world.source / "config.json"
    path.write_text(json.dumps({**read_json(path), "finetuning_task": "mnli"}), encoding="utf-8")
    world.task = {}
    world.imported()
    for stage in ("importance", "supernet"):
        assert read_json(world.output / stage / "task.json")["task_name"] == "mnli"


def state(change: Callable[[dict[str, Any]], Any], name: str = "pytorch_model.bin") -> Callable[[World], None]:
    """Change a state dict of the directory in place."""

    def apply(world: World) -> None:
        found = torch.load(world.source / name, weights_only=True)
        change(found)
        torch.save(found, world.source / name)

    return apply


def evil(world: World) -> None:
    shutil.rmtree(world.source / "movement_sparsity_0")
    torch.save({"model_state": Evil(world.root / "code-ran")}, world.source / "pytorch_model.bin")


def empty(world: World) -> None:
    shutil.rmtree(world.source)
    world.source.mkdir()


def without(*names: str) -> Callable[[World], None]:
    def apply(world: World) -> None:
        for name in names:
            path = world.source / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def relabelled(world: World) -> None:
    path = world.source / "config.json"
    names = dict(enumerate(("no", "yes", "perhaps")))
    path.write_text(json.dumps({**read_json(path), "id2label": names, "label2id": {v: k for k, v in names.items()}}))


SCORED = "movement_sparsity_0"
SCORES = f"{SCORED}/pytorch_model.bin"
QUERY = f"{LAYER}.0.attention.self.query"


@pytest.mark.parametrize(
    ("damage", "flags", "message"),
    [
        (lambda world: shutil.rmtree(world.source), {}, "eftnas does not exist or is not a directory"),
        (empty, {}, "holds neither importance scores nor supernet weights; looked for last_model_weights.pth, "),
        (evil, {}, "pytorch_model.bin: is neither safetensors nor a file of tensors by torch.save: it needs the code"),
        (without("config.json", SCORED), {}, "eftnas has no config.json; pass --model_name_or_path"),
        (without("nncf_config.json", SCORED), {}, "eftnas has no nncf_config.json, which describes the supernet"),
        (
            without("tokenizer.json", "tokenizer_config.json"),
            {},
            "has no tokenizer files; pass --tokenizer_name",
        ),
        (lambda world: world.task.clear(), {}, "the task of"),
        (lambda world: world.task.clear(), {"task_name": "rte"}, "has 3 labels, the task rte 2"),
        (relabelled, {}, "eftnas has other labels (no, yes, perhaps) than the task (go, stop, wait)"),
        (
            state(lambda found: found.pop("classifier.weight")),
            {},
            "pytorch_model.bin has no 'classifier.weight', which BertForSequenceClassification needs",
        ),
        (
            state(lambda found: found.update({"classifer.bias": torch.zeros(3)})),
            {},
            "has 'classifer.bias', which BertForSequenceClassification has not; did you mean 'classifier.bias'?",
        ),
        (
            state(lambda found: found.update({"classifier.bias": torch.zeros(2)})),
            {},
            "'classifier.bias' has shape (2,), the model's has (3,)",
        ),
        (
            state(lambda found: found.update({f"{QUERY}.pre_ops.0.op.weight_importance": torch.zeros(3, 4)}), SCORES),
            {},
            "scores of 'bert.encoder.layer.0.attention.self.query.weight' have shape (3, 4), which does not divide",
        ),
    ],
)
def test_what_cannot_be_imported_is_told_and_nothing_is_written(
    world: World, damage: Callable[[World], None], flags: dict[str, Any], message: str
) -> None:
    damage(world)
    outcome = world.run(**flags)
    assert outcome.status == 2
    assert outcome.err.startswith("bootstrapnas: error: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not world.output.exists()
