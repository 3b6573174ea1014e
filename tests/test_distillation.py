"""What student and teacher are compared by: outputs, hidden states, self-attention relations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from families import ROWS, TOY, Row, ToyConfig, ToyModel, random_subnet
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from bootstrapnas.dims import Key
from bootstrapnas.distillation import KD_MODES, Distillation, Teacher, divergence, terms_of
from bootstrapnas.errors import UserError
from bootstrapnas.families import FAMILIES
from bootstrapnas.families.base import Attention
from bootstrapnas.intermediate import SHARPNESS, TERMS, Term, compared, matching_layer, recording
from bootstrapnas.nncf_config.schema import KDMode
from bootstrapnas.outputs import LOGITS, TOKENS, VALUE, Output
from bootstrapnas.supernet import Supernet

FAMILY_ROWS = list({row.config_class: row for row in reversed(ROWS)}.values())  # layers are the same in all its heads
every_row = pytest.mark.parametrize("row", FAMILY_ROWS, ids=lambda row: row.name)
SKIPPED = (Key("mha_block", 1), Key("ffn_block", 0))
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


def held(term: Term, student: dict[str, Any], teacher: dict[str, Any], inputs: dict[str, Tensor]) -> Tensor:
    return compared(term, student[term.name], teacher[term.name], inputs["attention_mask"])


def inputs_of(row: Row) -> dict[str, Tensor]:
    batch = row.batch()
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def recorded(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, list[list[Tensor]]]:
    with torch.no_grad(), recording(model, list(TERMS.values())) as found:
        model(**inputs)
    return found


# -- terms -------------------------------------------------------------------------------------------------------------


@every_row
@every_term
def test_terms_do_not_mind_the_order_of_units(row: Row, term: Term) -> None:
    """A supernet in the order of importance says at full size what its teacher says; a smaller subnet does not."""
    inputs, supernet = inputs_of(row), Supernet(row.build())
    teacher = recorded(row.build(), inputs)
    orders = {
        key: torch.randperm(supernet.blueprint.full[key], generator=torch.Generator().manual_seed(index))
        for index, key in enumerate(supernet.blueprint.widths)
    }
    supernet.reorder(orders)
    full = held(term, recorded(supernet.model, inputs), teacher, inputs)
    assert float(full) == pytest.approx(0, abs=1e-6)
    halves = {key: size // 2 for key, size in supernet.blueprint.full.items() if key in orders}
    with supernet.activate(halves):
        half = held(term, recorded(supernet.model, inputs), teacher, inputs)
    assert float(half) > 1e-5


@every_row
@every_term
def test_a_subnet_and_its_extraction_say_the_same(row: Row, term: Term) -> None:
    """With skipped blocks, too: nothing is recorded inside them, and a layer's output is still one."""
    inputs, supernet = inputs_of(row), Supernet(row.build())
    teacher = recorded(row.build(seed=1), inputs)
    blocks = [key for key in supernet.blueprint.elastic if supernet.blueprint.is_block(key)]
    subnet = {**random_subnet(supernet.blueprint), **{key: int(key not in SKIPPED) for key in blocks}}
    subnet.pop(Key("hidden"), None)  # hidden states of another size cannot be compared
    with supernet.activate(subnet):
        elastic = recorded(supernet.model, inputs)
    small = recorded(supernet.extract(subnet), inputs)
    found = held(term, elastic, teacher, inputs)
    assert float(found) > 0
    torch.testing.assert_close(held(term, small, teacher, inputs), found, rtol=1e-4, atol=1e-6)
    if SKIPPED[0] in blocks:
        assert elastic["attention_relations"][1] == []
    assert [len(layer) for layer in elastic["hidden_states"]] == [1] * supernet.blueprint.num_layers


@every_row
@every_term
def test_padding_and_batch_do_not_count(row: Row, term: Term) -> None:
    """A term is a mean over rows of a mean over real tokens."""
    inputs, model, teacher = inputs_of(row), row.build(), row.build(seed=1)
    for module in (*model.modules(), *teacher.modules()):
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])  # as trained ones are: MobileBERT's embeddings see beside

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        return held(term, recorded(model, inputs), recorded(teacher, inputs), inputs)

    rows = [loss({name: tensor[row : row + 1] for name, tensor in inputs.items()}) for row in range(3)]
    torch.testing.assert_close(loss(inputs), torch.stack(rows).mean(), rtol=1e-4, atol=1e-6)
    padded = {name: F.pad(tensor, (0, 4)) for name, tensor in inputs.items()}
    torch.testing.assert_close(loss(padded), loss(inputs), rtol=1e-4, atol=1e-6)


def test_hidden_states_by_hand() -> None:
    row = ROWS[0]
    inputs, model, teacher = inputs_of(row), row.build(), row.build(seed=1)
    found = held(TERMS["hidden_states"], recorded(model, inputs), recorded(teacher, inputs), inputs)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = (m(**inputs, output_hidden_states=True).hidden_states[1:] for m in (model, teacher))
    errors = [
        float(((s[i][real[i]] - t[i][real[i]]) ** 2).sum() / (t[i][real[i]] ** 2).sum())
        for s, t in zip(ours, theirs, strict=True)
        for i in range(3)
    ]
    assert float(found) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_relations_by_hand() -> None:
    """The softmax of a token's products with every token, averaged over channels and times the sharpness."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, channels, generator=generator) for channels in (8, 12))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = TERMS["attention_relations"].compare([student], [teacher], mask)
    rows = []
    for row in range(2):
        length, total = int(mask[row].sum()), 0.0
        for i in range(length):
            p, q = (
                torch.softmax(
                    torch.stack([SHARPNESS * (x[row, i] @ x[row, j]) / x.shape[-1] for j in range(length)]), 0
                )
                for x in (teacher, student)
            )
            total += float((p * (p / q).log()).sum())
        rows.append(total / length)
    assert float(found) == pytest.approx(sum(rows) / 2, rel=1e-4)


def test_a_fused_projection_is_three_relations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", replace(TOY, attention=(Attention("head", "hd"),)))
    torch.manual_seed(0)
    model = ToyModel(ToyConfig())
    supernet = Supernet(model, family=FAMILIES["toy"])
    ids = torch.tensor([[1, 2, 3]])
    with supernet.activate({Key("head", 0): 2}), recording(model, [TERMS["attention_relations"]]) as found:
        model(ids)
    assert [[tuple(t.shape) for t in layer] for layer in found["attention_relations"]] == [
        [(1, 3, 8)] * 3,
        [(1, 3, 12)] * 3,
    ]


def test_recording_leaves_no_hook_behind() -> None:
    model = ROWS[0].build()
    with pytest.raises(ZeroDivisionError), recording(model, list(TERMS.values())):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("layers", "teacher_layers", "expected"),
    [(3, 3, [0, 1, 2]), (3, 6, [1, 3, 5]), (4, 12, [2, 5, 8, 11]), (6, 3, [0, 0, 1, 1, 1, 2]), (1, 12, [11])],
)
def test_layers_are_matched_by_depth(layers: int, teacher_layers: int, expected: list[int]) -> None:
    assert [matching_layer(index, layers, teacher_layers) for index in range(layers)] == expected


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_modes_are_the_names_of_the_config() -> None:
    assert tuple(KD_MODES) == get_args(KDMode)
    with pytest.raises(UserError, match=r"unknown --kd_mode 'hidden_state' .*did you mean 'hidden_states'"):
        terms_of("hidden_state")


def test_the_loss_is_a_weighted_sum() -> None:
    row = ROWS[0]
    inputs, model, teacher = inputs_of(row), row.build(), row.build(seed=1)
    terms = terms_of("self_attention_distillation")
    taught = Teacher(teacher, terms, list(inputs), [LOGITS], [2, 0, 1])(inputs)
    assert not taught["logits"].requires_grad
    torch.testing.assert_close(taught["logits"], teacher(**inputs).logits[:, [2, 0, 1]])
    with recording(model, terms) as inner:
        logits = model(**inputs).logits
    student = {"logits": logits, **inner}
    mask, task = inputs["attention_mask"], torch.tensor(3.0)
    with torch.no_grad():
        plain = Distillation()(task, student, taught)
        found = Distillation(terms={terms[0]: 0.5, terms[1]: 2.0})(task, student, taught, mask)
    parts = [float(compared(term, inner[term.name], taught[term.name], mask).detach()) for term in terms]
    assert float(found) == pytest.approx(float(plain) + 0.5 * parts[0] + 2.0 * parts[1], rel=1e-5)
    with torch.no_grad():
        p, q = ((x / 2).softmax(-1) for x in (taught["logits"], student["logits"]))
        divergence = float((p * (p / q).log()).sum(-1).mean())
    assert float(plain) == pytest.approx(0.1 * 3 + 0.9 * 4 * divergence, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0, 4.0])
def test_padding_does_not_count_at_any_temperature(temperature: float) -> None:
    """Of a position in a text: the same as without the padding, and gradients that are numbers."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 5, generator=generator) for _ in range(2))
    loss = Distillation(temperature=temperature, outputs=(Output("start_logits", TOKENS),))
    padded, cut = (F.pad(student, (0, extra), value=7.0).requires_grad_() for extra in (3, 0))
    task, mask = torch.tensor(0.0), torch.ones(1, 5)
    found = loss(task, {"start_logits": padded}, {"start_logits": F.pad(teacher, (0, 3))}, F.pad(mask, (0, 3)))
    wanted = loss(task, {"start_logits": cut}, {"start_logits": teacher}, mask)
    torch.testing.assert_close(found, wanted)
    found.backward()
    wanted.backward()
    assert padded.grad is not None
    torch.testing.assert_close(padded.grad, F.pad(cut.grad, (0, 3)))


def test_hidden_states_of_different_sizes_are_refused() -> None:
    wide = BertForSequenceClassification(
        BertConfig(vocab_size=9, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8)
    )
    small = ROWS[0].build()
    with pytest.raises(UserError, match=r"size 32 \(model\) and 48 \(teacher\) cannot be compared; use --kd_mode orig"):
        TERMS["hidden_states"].check(small, wide)
    TERMS["attention_relations"].check(small, wide)


@pytest.mark.parametrize("kind", ["classes", "values", "positions"])
def test_divergence_of_outputs_kept_by_rows(kind: str) -> None:
    """Rows of positions have lengths of their own; several outputs count alike."""
    generator = np.random.default_rng(0)
    outputs, lengths = {
        "classes": ((LOGITS,), [3] * 5),
        "values": ((Output("logits", VALUE),), [1] * 5),
        "positions": ((Output("start_logits", TOKENS), Output("end_logits", TOKENS)), [4, 2, 7, 4, 3]),
    }[kind]
    said, taught = (
        {o.name: [generator.normal(size=length).astype(np.float32) for length in lengths] for o in outputs}
        for _ in range(2)
    )

    def apart(student: np.ndarray, teacher: np.ndarray) -> float:
        if kind == "values":
            return float(((student - teacher) ** 2).mean())
        p, q = (np.exp(row) / np.exp(row).sum() for row in (teacher.astype(float), student.astype(float)))
        return float((p * np.log(p / q)).sum())

    pairs = [zip(said[o.name], taught[o.name], strict=True) for o in outputs]
    expected = np.mean([[apart(*pair) for pair in of] for of in pairs])
    assert divergence(outputs, taught, said) == pytest.approx(expected, rel=1e-5)
    assert divergence(outputs, said, said) == pytest.approx(0, abs=1e-7)
