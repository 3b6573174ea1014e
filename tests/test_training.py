"""What a training step of a stage computes, whatever the batch is cut into."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import build_tiny_bert
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.distillation import Distillation, Teacher, terms_of
from bootstrapnas.outputs import LOGITS, Output
from bootstrapnas.pipeline.arguments import StageTrainingArguments
from bootstrapnas.sampling import sandwich, step_random
from bootstrapnas.space import SearchSpace
from bootstrapnas.supernet import Supernet
from bootstrapnas.training import LengthGrouped, StageTrainer, last_checkpoint

ROWS = 8


def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (ROWS, 7), generator=generator)
    return Dataset.from_dict(
        {
            "input_ids": ids.tolist(),
            "attention_mask": torch.ones_like(ids).tolist(),
            "labels": [row % 3 for row in range(ROWS)],
            "teacher_logits": torch.randn(ROWS, 3, generator=generator).tolist(),
        }
    )


def collate(batch: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.tensor([row[name] for row in batch]) for name in batch[0]}


class Gradients(TrainerCallback):
    """Keeps the gradients of the first optimiser step."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.kept:
            self.kept = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def first_gradients(tmp_path: Path, batch: int, accumulation: int, **settings: Any) -> dict[str, Tensor]:
    model = build_tiny_bert()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    if settings.pop("elastic", False):
        blueprint = Blueprint.of(model)
        space = SearchSpace.build(blueprint, [(Key("head", 0), (4, 2)), (Key("ffn", 1), (128, 64, 32))])
        settings["supernet"] = Supernet(model, space)
        settings["subnets"] = lambda step, draw: {
            name: space.subnet(genome) for name, genome in sandwich(space, step_random(0, step, draw)).items()
        }
    trainer = StageTrainer(
        model=model,
        args=StageTrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0.0,
            save_strategy="no",
            train_sampling_strategy="sequential",
            **settings.pop("args", {}),
        ),
        train_dataset=rows(),
        data_collator=collate,
        title="test",
        **settings,
    )
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.kept


def taught(mode: str) -> dict[str, Any]:
    if mode == "in_place":
        return {"distillation": Distillation(), "in_place": True}
    terms = terms_of(mode)
    teacher = (
        Teacher(build_tiny_bert(1), terms, ["input_ids", "attention_mask"], [LOGITS], [0, 1, 2]) if terms else None
    )
    return {"distillation": Distillation(terms=dict.fromkeys(terms, 1.0)), "teacher": teacher}


@pytest.mark.parametrize(
    ("mode", "elastic"),
    [
        (None, False),
        (None, True),
        ("original", False),
        ("original", True),
        ("self_attention_distillation", True),
        ("in_place", True),
    ],
)
def test_accumulation_changes_no_gradient(tmp_path: Path, mode: str | None, elastic: bool) -> None:
    """Two rows four times are eight rows at once: losses are means, and a window keeps its subnets."""
    lesson = {} if mode is None else taught(mode)
    whole = first_gradients(tmp_path, 8, 1, elastic=elastic, **lesson)
    cut = first_gradients(tmp_path, 2, 4, elastic=elastic, **lesson)
    assert whole.keys() == cut.keys()
    assert sum(float(gradient.norm()) for gradient in whole.values()) > 0.1
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, atol=1e-6, rtol=1e-4)


def test_batches_of_a_window_can_draw_subnets_of_their_own(tmp_path: Path) -> None:
    found = first_gradients(tmp_path, 2, 4, elastic=True, draws_per_batch=True)
    model = build_tiny_bert().eval()
    blueprint = Blueprint.of(model)
    space = SearchSpace.build(blueprint, [(Key("head", 0), (4, 2)), (Key("ffn", 1), (128, 64, 32))])
    supernet, data, drawn = Supernet(model, space), list(rows()), set()
    for draw in range(4):
        batch = collate(data[2 * draw : 2 * draw + 2])
        del batch["teacher_logits"]
        for genome in sandwich(space, step_random(0, 0, draw)).values():
            drawn.add(genome)
            with supernet.activate(space.subnet(genome)):
                (model(**batch).loss / 4).backward()
    assert len(drawn) > 3  # the largest, the smallest, and at least two more
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, dict(model.named_parameters())[name].grad, atol=1e-6, rtol=1e-4)


def test_the_largest_subnet_learns_from_labels_and_teaches_the_others(tmp_path: Path) -> None:
    found = first_gradients(tmp_path, ROWS, 1, elastic=True, distillation=Distillation(), in_place=True)
    model = build_tiny_bert().eval()
    blueprint = Blueprint.of(model)
    space = SearchSpace.build(blueprint, [(Key("head", 0), (4, 2)), (Key("ffn", 1), (128, 64, 32))])
    supernet, batch, said = Supernet(model, space), collate(list(rows())), None
    del batch["teacher_logits"]
    for genome in sandwich(space, step_random(0, 0)).values():  # the largest first
        with supernet.activate(space.subnet(genome)):
            outputs = model(**batch)
        loss = outputs.loss
        if said is None:
            said = torch.log_softmax(outputs.logits.detach() / 2, -1)
        else:
            student = torch.log_softmax(outputs.logits / 2, -1)
            loss = 0.1 * loss + 0.9 * 4 * (said.exp() * (said - student)).sum(-1).mean()
        loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


POSITIONS = (Output("start", "tokens"), Output("end", "tokens"))


def test_distillation_of_positions_is_the_mean_of_two_and_ignores_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = ({name: torch.randn(2, 5, generator=generator) for name in ("start", "end")} for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found = Distillation(outputs=POSITIONS)(torch.tensor(3.0), student, teacher, mask)
    terms = []
    for name in ("start", "end"):
        for row, length in ((0, 5), (1, 3)):
            p = torch.softmax(teacher[name][row, :length] / 2, -1)
            q = torch.softmax(student[name][row, :length] / 2, -1)
            terms.append(4 * (p * (p / q).log()).sum())
    torch.testing.assert_close(found, 0.1 * 3 + 0.9 * torch.stack(terms).mean())


def test_distillation_gives_padding_no_gradient() -> None:
    student = {name: torch.zeros(1, 4, requires_grad=True) for name in ("start", "end")}
    teacher = {name: torch.tensor([[5.0, -5.0, 1e4, torch.inf]]) for name in ("start", "end")}
    Distillation(outputs=POSITIONS)(torch.zeros(()), student, teacher, torch.tensor([[1, 1, 0, 0]])).backward()
    gradient = student["start"].grad
    assert gradient is not None
    assert gradient[0, 2:].tolist() == [0, 0]
    assert gradient[0, 0] < 0 < gradient[0, 1]


def test_distillation_of_tokens_with_classes_is_a_mean_over_tokens() -> None:
    tags = (Output("logits", "tokens labels"),)
    student, teacher = torch.zeros(2, 2, 3), torch.tensor([[[2.0, 0, 0], [0, 0, 0]], [[0, 0, 0], [9, 9, 0]]])
    mask = torch.tensor([[1, 1], [1, 0]])
    found = Distillation(outputs=tags, task_weight=0, teacher_weight=1)(
        torch.zeros(()), {"logits": student}, {"logits": teacher}, mask
    )
    p = torch.softmax(torch.tensor([1.0, 0, 0]), -1)
    torch.testing.assert_close(found, 4 * (p * (p * 3).log()).sum() / 3)


def test_distillation_of_a_value_is_the_squared_error() -> None:
    kd = Distillation(outputs=(Output("logits", "value"),), task_weight=0, teacher_weight=1)
    found = kd(torch.zeros(()), {"logits": torch.tensor([[1.0], [2.0]])}, {"logits": torch.tensor([[0.0], [4.0]])})
    assert found == 2.5


@pytest.mark.parametrize("settings", [{"activation_checkpointing": True}, {"bf16": True}], ids=lambda s: next(iter(s)))
def test_modes_survive_checkpointing_and_autocast(tmp_path: Path, settings: dict[str, Any]) -> None:
    plain = first_gradients(tmp_path, 8, 1, elastic=True, **taught("self_attention_distillation"))
    found = first_gradients(tmp_path, 8, 1, elastic=True, args=settings, **taught("self_attention_distillation"))
    rough = "bf16" in settings
    for name, gradient in plain.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert error < (0.05 if rough else 1e-5), name


def test_the_teacher_is_asked_once_a_batch(tmp_path: Path) -> None:
    """Not once a subnet; in evaluation mode, without gradients, in the precision of the student."""
    lesson, asked = taught("hidden_states"), []

    def ask(model: torch.nn.Module, args: Any, kwargs: Any) -> None:
        asked.append((model.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), sorted(kwargs)))

    lesson["teacher"].model.register_forward_pre_hook(ask, with_kwargs=True)
    first_gradients(tmp_path, 2, 4, elastic=True, args={"bf16": True}, **lesson)
    assert asked == [(False, False, True, ["attention_mask", "input_ids"])] * 4


def test_penalty_counts_once_a_step(tmp_path: Path) -> None:
    penalties = []
    for batch, accumulation in ((8, 1), (2, 4)):
        weight = torch.nn.Parameter(torch.ones(()))
        first_gradients(tmp_path, batch, accumulation, penalty=lambda weight=weight: 3 * weight)
        penalties.append(float(weight.grad))
    assert penalties == [3.0, 3.0]


def test_sandwich_adds_up_the_gradients_of_its_subnets(tmp_path: Path) -> None:
    total = first_gradients(tmp_path, 8, 1, elastic=True)
    parts = []
    for name in ("max", "random", "min"):
        model = build_tiny_bert().eval()
        blueprint = Blueprint.of(model)
        space = SearchSpace.build(blueprint, [(Key("head", 0), (4, 2)), (Key("ffn", 1), (128, 64, 32))])
        supernet = Supernet(model, space)
        with supernet.activate(space.subnet(sandwich(space, step_random(0, 0))[name])):
            batch = collate(list(rows()))
            batch.pop("teacher_logits")
            model(**batch).loss.backward()
        parts.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in total.items():
        torch.testing.assert_close(gradient, sum(part[name] for part in parts), atol=1e-6, rtol=1e-4)


def test_a_scaler_of_float16_steps_without_any_gradient() -> None:
    layer = torch.nn.Linear(2, 1)
    before = layer.weight.clone()

    def step(scaled: bool) -> None:
        scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(layer.parameters(), lr=1.0)
        accelerator = SimpleNamespace(scaler=scaler if scaled else None)
        trainer: Any = SimpleNamespace(accelerator=accelerator, model=layer)
        scaler.scale(StageTrainer._without_gradients(trainer, torch.tensor(3.0))).backward()
        scaler.step(optimizer)

    step(scaled=True)
    assert torch.equal(layer.weight, before)
    layer.zero_grad()
    with pytest.raises(AssertionError, match="No inf checks were recorded"):  # torch's own
        step(scaled=False)


def test_length_grouped_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [row % 17 + 1 for row in range(200)]
    sampler = LengthGrouped(lengths, 8, seed=3)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    assert sorted(first) == list(range(200))
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_batches_of_like_length_are_in_random_order() -> None:
    """As they come from Hugging Face, batches fall in length within a window."""
    lengths = [(row * 37) % 211 + 1 for row in range(205)]
    found = [lengths[row] for row in LengthGrouped(lengths, 8, seed=3)]
    batches = [found[start : start + 8] for start in range(0, len(found), 8)]
    assert [len(batch) for batch in batches] == [8] * 25 + [5]
    assert max(lengths) in batches[0]
    assert median(max(batch) - min(batch) for batch in batches) < 50  # of 211; of random rows about 165
    means = [sum(batch) / len(batch) for batch in batches]
    rises = sum(later > earlier for earlier, later in pairwise(means))
    assert 7 < rises < 18


def test_last_checkpoint_skips_and_deletes_cut_off_ones(tmp_path: Path) -> None:
    for step, text in ((2, "{}"), (10, "{}"), (12, '{"epoch": ')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()


def test_no_loader_is_forked_from_a_process_with_openvino(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def workers() -> int:
        args = StageTrainingArguments(output_dir=str(tmp_path), dataloader_num_workers=2, dataloader_prefetch_factor=3)
        trainer = StageTrainer(
            model=build_tiny_bert(), args=args, train_dataset=rows(), data_collator=collate, title="test"
        )
        return int(trainer.get_train_dataloader().num_workers)

    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    assert workers() == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "openvino", ModuleType("openvino"))
    assert workers() == 0
    assert "--dataloader_num_workers has no effect in a process in which OpenVINO was loaded" in capsys.readouterr().err
