"""What the training sections of an NNCF config do to a supernet's training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import LENGTH, succeed, write_config
from conftest import TaskFiles, build_tiny_bert

import bootstrapnas.pipeline.teacher
import eftnas.train
from bootstrapnas.artefacts import load_tensors
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.errors import UserError
from bootstrapnas.pipeline.teacher import Lesson
from bootstrapnas.reorder import reorder
from bootstrapnas.supernet import Supernet
from bootstrapnas.training import StageTrainer

STEPS = 6  # of an epoch: 96 rows in batches of 16
STAGES = "list_stage_descriptions"


# -- order while training ----------------------------------------------------------------------------------------------


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(5, 60, (4, 9), generator=generator),
            "labels": torch.randint(0, 3, (4,), generator=generator),
        }
        for _ in range(count)
    ]


def steps(model: Any, optimizer: torch.optim.Optimizer, data: list[dict[str, torch.Tensor]]) -> None:
    for batch in data:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.NAdam, torch.optim.SGD])
def test_training_after_a_reorder_is_that_of_the_permuted_model(optimiser: type[torch.optim.Optimizer]) -> None:
    data = batches(8)
    options: dict[str, Any] = {"lr": 1e-3, **({"momentum": 0.9} if optimiser is torch.optim.SGD else {})}
    plain, changed = build_tiny_bert(), build_tiny_bert()
    optimisers = [optimiser(model.parameters(), **options) for model in (plain, changed)]
    for model, optimizer in zip((plain, changed), optimisers, strict=True):
        steps(model, optimizer, data[:4])
    blueprint = Blueprint.of(changed)
    orders = {Key(dim, layer): torch.randperm(n) for dim, n in (("head", 4), ("ffn", 128)) for layer in range(2)}
    with torch.no_grad():
        before = changed(**data[4]).logits
        reorder(changed, blueprint, orders, optimisers[1])
        torch.testing.assert_close(changed(**data[4]).logits, before, atol=1e-6, rtol=1e-5)
    for model, optimizer in zip((plain, changed), optimisers, strict=True):
        steps(model, optimizer, data[4:])
    reorder(plain, blueprint, orders)
    wanted = dict(plain.named_parameters())
    for name, parameter in changed.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], atol=2e-6, rtol=1e-4, msg=name)


def test_an_optimiser_without_moments_per_entry_is_refused() -> None:
    model = build_tiny_bert()
    optimizer = torch.optim.Adafactor(model.parameters())
    steps(model, optimizer, batches(1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match=r"units cannot be put in order while training with Adafactor: .* adamw_torch"):
        reorder(model, Blueprint.of(model), {Key("head", 0): torch.tensor([1, 0, 2, 3])}, optimizer)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


class Training:
    """``eftnas train`` of a random tiny BERT under changed configs."""

    def __init__(self, root: Path, model: Path, task: TaskFiles) -> None:
        self.root = root
        self.flags: dict[str, Any] = {
            "model_name_or_path": model,
            "train_file": task.train,
            "validation_file": task.validation,
            "max_seq_length": LENGTH,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-3,
            "save_strategy": "steps",
            "save_steps": 4,
        }

    def config(self, stages: list[dict[str, Any]], name: str = "config", **width: Any) -> Path:
        def change(config: dict[str, Any]) -> None:
            training = config["bootstrapNAS"]["training"]
            training["schedule"][STAGES] = stages
            training["elasticity"]["width"] = {"min_width": 16, **width}

        return write_config(self.root / f"{name}.json", change)

    def run(self, config: Path, name: str, **flags: Any) -> str:
        return succeed("train", **{**self.flags, **flags}, nncf_config=config, output_dir=self.root / name).err

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_tensors(self.root / name / "model.safetensors")[0]


@pytest.fixture
def training(tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> Training:
    return Training(tmp_path, tiny_bert_dir, tiny_task_files)


def watch_orders(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Mapping[Key, torch.Tensor]]]:
    """Return a list that receives (step, orders) of every reorder while training."""
    seen: list[tuple[int, Mapping[Key, torch.Tensor]]] = []
    prepare, reorder_supernet = StageTrainer._prepare_step, Supernet.reorder
    now = [-1]

    def prepared(self: StageTrainer, step: int) -> None:
        now[0] = step
        prepare(self, step)

    def recorded(self: Supernet, orders: Mapping[Key, torch.Tensor], optimizer: Any = None) -> None:
        seen.append((now[0], dict(orders)))
        reorder_supernet(self, orders, optimizer)

    monkeypatch.setattr(StageTrainer, "_prepare_step", prepared)
    monkeypatch.setattr(Supernet, "reorder", recorded)
    return seen


class KilledError(Exception):
    """Stands for a kill."""


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    step = StageTrainer.training_step

    def interrupted(self: StageTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == at:
            raise KilledError
        return step(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", interrupted)


def test_stages_put_units_in_order_and_resume_to_the_bit(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [
        {"train_dims": ["width"], "epochs": 1, "width_indicator": 2, "reorg_weights": True},
        {"train_dims": ["width", "depth"], "epochs": 2, "width_indicator": -1, "reorg_interval": 1},
    ]
    config = training.config(stages, filter_importance="L2")
    with monkeypatch.context() as patch:
        seen = watch_orders(patch)
        said = training.run(config, "whole")
    assert "filter_importance L2 orders the units before the steps 0, 6, 12" in said
    assert [step for step, _ in seen] == [0, STEPS, 2 * STEPS]
    assert all(len(orders) == 4 for _, orders in seen)
    moved = [any(order.tolist() != sorted(order.tolist()) for order in orders.values()) for _, orders in seen]
    assert moved == [True, True, True]
    with monkeypatch.context() as patch:
        interrupt(patch, at=STEPS + 1)  # after the second reorder; the checkpoint is from before
        with pytest.raises(KilledError):
            training.run(config, "killed")
    with monkeypatch.context() as patch:
        seen = watch_orders(patch)
        assert "resuming from checkpoint-4" in training.run(config, "killed")
    assert [step for step, _ in seen] == [STEPS, 2 * STEPS]
    whole, resumed = training.weights("whole"), training.weights("killed")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_scores_that_are_given_or_come_from_a_file_order_once(
    training: Training, monkeypatch: pytest.MonkeyPatch, tiny_bert_dir: Path
) -> None:
    stages = [{"train_dims": ["width", "depth"], "epochs": 2, "width_indicator": -1, "reorg_interval": 1}]
    generator = torch.Generator().manual_seed(0)
    names = [f"bert.encoder.layer.{i}.intermediate.dense.weight" for i in range(2)]
    scores = {name: torch.randn(128, 64, generator=generator) for name in names}
    torch.save(scores, training.root / "scores.pth")
    external = {"filter_importance": "external", "external_importance_path": str(training.root / "scores.pth")}
    config = training.config(stages, **external)
    seen = watch_orders(monkeypatch)
    said = training.run(config, "external")
    assert "order the units once" in said
    ((step, orders),) = seen
    assert step == 0
    for layer, name in enumerate(names):
        assert orders[Key("ffn", layer)].tolist() == scores[name].sum(1).argsort(descending=True).tolist()
    task = {name: training.flags[name] for name in ("model_name_or_path", "train_file", "validation_file")}
    succeed("importance", **task, criterion="l1", output_dir=training.root / "importance")
    seen.clear()
    said = training.run(config, "given", importance_weight_dir=training.root / "importance")
    assert "order the units once" in said
    assert "filter_importance has no effect: --importance_weight_dir orders the units" in said
    assert len(seen) == 1  # before the trainer is there


def test_filter_importance_without_a_stage_that_asks_for_it_is_named(training: Training) -> None:
    stages = [{"train_dims": ["width", "depth"], "epochs": 1, "width_indicator": -1}]
    said = training.run(training.config(stages, filter_importance="L1"), "run")
    assert "no --importance_weight_dir: units keep the order of the checkpoint" in said
    assert "width.filter_importance has no effect: no stage says reorg_weights" in said


# -- the model as its own teacher --------------------------------------------------------------------------------------


def nncf_term(
    student: torch.Tensor, teacher: torch.Tensor, kind: str, scale: float, temperature: float
) -> torch.Tensor:
    """NNCF's term for outputs [batch, classes], as its reference has it."""
    if kind == "mse":
        return scale * ((student - teacher) ** 2).mean()
    log_student, soft = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    return scale * temperature**2 * student.shape[1] * -(soft * log_student).mean()


@pytest.mark.parametrize(
    ("section", "kind", "scale", "temperature"),
    [
        ({"type": "softmax", "scale": 3.0, "temperature": 4.0}, "softmax", 3.0, 4.0),
        ({}, "softmax", 1.0, 1.0),
        ({"type": "mse", "scale": 50.0}, "mse", 50.0, 1.0),
    ],
)
def test_the_teacher_of_the_config_is_the_model_before_training(
    training: Training, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any], kind: str, scale: float,
    temperature: float, tiny_bert_dir: Path,
) -> None:  # fmt: skip
    config = training.config([{"train_dims": ["width", "depth"], "width_indicator": -1}])
    raw = json.loads(config.read_text())
    raw["bootstrapNAS"]["training"]["compression"] = {"algorithm": "knowledge_distillation", **section}
    raw["kd_mode"] = "hidden_states"
    config.write_text(json.dumps(raw))
    lessons, warnings = [], []

    def caught(*arguments: Any, **options: Any) -> Any:
        lessons.extend(argument for argument in arguments if isinstance(argument, Lesson))
        raise KilledError

    monkeypatch.setattr(eftnas.train, "build_trainer", caught)
    monkeypatch.setattr(bootstrapnas.pipeline.teacher, "warn", warnings.append)
    with pytest.raises(KilledError):
        training.run(config, "run", kd_cache_dir=training.root / "cache")
    assert warnings == [
        f"--{flag} has no effect without --kd_teacher_model" for flag in ("kd_mode hidden_states", "kd_cache_dir")
    ]
    (lesson,) = lessons
    model = build_tiny_bert().eval()
    row = lesson.rows[5]
    with torch.no_grad():
        wanted = model(torch.tensor([row["input_ids"]])).logits[0]
    torch.testing.assert_close(torch.tensor(row["teacher_logits"]), wanted, atol=1e-5, rtol=1e-5)
    student = torch.randn(4, 3, requires_grad=True)
    teacher, task = torch.randn(4, 3), torch.tensor(0.7)
    found, expected = (
        torch.autograd.grad(loss, student)[0]
        for loss in (
            lesson.distillation(task, {"logits": student}, {"logits": teacher}),
            nncf_term(student, teacher, kind, scale, temperature),
        )
    )
    torch.testing.assert_close(found, expected)
    same = lesson.distillation(task, {"logits": teacher}, {"logits": teacher})
    torch.testing.assert_close(same, task)  # the task loss counts whole


def test_a_teacher_that_is_named_takes_the_place_of_the_configs(training: Training, tiny_bert_dir: Path) -> None:
    config = training.config([{"train_dims": ["width", "depth"], "width_indicator": -1}])
    raw = json.loads(config.read_text())
    raw["bootstrapNAS"]["training"]["compression"] = {"algorithm": "knowledge_distillation"}
    config.write_text(json.dumps(raw))
    said = training.run(config, "run", kd_teacher_model=tiny_bert_dir, max_train_samples=16)
    assert f"bootstrapNAS.training.compression has no effect: the teacher is {tiny_bert_dir}" in said


# -- stages ------------------------------------------------------------------------------------------------------------


def test_subnets_of_each_stage_are_within_its_indicators(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progressive shrinking: two widths, with new subnets every second step, then all of them, then blocks as well."""
    stages = [
        {"train_dims": ["width"], "epochs": 1, "width_indicator": 2, "sample_rate": 2},
        {"train_dims": ["width"], "epochs": 1, "width_indicator": -1},
        {"train_dims": ["width", "depth"], "epochs": -1, "width_indicator": 3, "init_lr": 1e-4},
    ]
    config = training.config(stages, min_width=16, width_step=32)
    seen: list[dict[str, Subnet]] = []
    rates: list[float] = []
    step = StageTrainer.training_step

    def watched(self: StageTrainer, *arguments: Any, **options: Any) -> torch.Tensor:
        named = self._subnets(self.state.global_step, 0)
        drawn = named.get("random", named["max"])  # what comes up twice has the first of its names
        seen.append({"random": drawn, "min": named.get("min", drawn)})
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(StageTrainer, "training_step", watched)
    flags = dict(training.flags)
    del flags["learning_rate"]
    succeed("train", **flags, nncf_config=config, output_dir=training.root / "run", num_train_epochs=2)
    assert len(seen) == 4 * STEPS
    by_stage = [seen[:STEPS], seen[STEPS : 2 * STEPS], seen[2 * STEPS :]]
    ffn, heads = (128, 96, 64, 32), (4, 2)  # 16 channels a head: 64, 32
    for subnets, limit, depth in zip(by_stage, (2, 4, 3), (False, False, True), strict=True):
        assert len({step["random"][Key("ffn", layer)] for step in subnets for layer in range(2)}) > 1
        for layer in range(2):
            assert {step["random"][Key("ffn", layer)] for step in subnets} <= set(ffn[:limit])
            assert {step["random"][Key("head", layer)] for step in subnets} <= set(heads[:limit])
            assert {step["min"][Key("ffn", layer)] for step in subnets} == {ffn[limit - 1]}
            blocks = {step["random"].get(Key("ffn_block", layer)) for step in subnets}
            assert blocks <= ({0, 1} if depth else {None})
    assert all(by_stage[0][i]["random"] == by_stage[0][i + 1]["random"] for i in (0, 2, 4))
    # Each stage begins with its own rate; without one, with that of the command line.
    assert [rates[0], rates[STEPS], rates[2 * STEPS]] == pytest.approx([5e-5, 5e-5, 1e-4])
    assert rates[STEPS - 1] == pytest.approx(0.5 * 5e-5 * (1 + math.cos(math.pi * (STEPS - 1) / STEPS)))
    assert rates[-1] == pytest.approx(0.5 * 1e-4 * (1 + math.cos(math.pi * (2 * STEPS - 1) / (2 * STEPS))))
