"""Movement sparsity against a slow reference written from the formulas, with autograd and full-size tensors only."""

from __future__ import annotations

import copy
import csv
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import build_tiny_bert
from torch import nn
from torch.func import functional_call
from transformers import MPNetConfig, MPNetModel
from transformers.pytorch_utils import Conv1D

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.importance.movement import MovementLinear, MovementSettings, attach
from bootstrapnas.importance.structured import parameter_mask, resolve, write_structured_sparsity
from bootstrapnas.importance.structures import Block, Fine, PerDim, assign_structures, build_structure
from bootstrapnas.pipeline.arguments import StageTrainingArguments
from bootstrapnas.training import StageTrainer

HEADS, HEAD_DIM, FFN = 4, 16, 128
LAYERS = ("bert.encoder.layer.0", "bert.encoder.layer.1")
QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
STEPS_PER_EPOCH = 5


def structures(attention=Block(16, 8)):  # noqa: B008 - frozen
    found = {}
    for layer in LAYERS:
        found |= {f"{layer}.{name}": attention for name in (*QKV, "attention.output.dense")}
        found |= {f"{layer}.intermediate.dense": PerDim(0), f"{layer}.output.dense": PerDim(1)}
    return found | {"bert.pooler.dense": Fine()}


def settings(**changes):
    values = {"warmup_start_epoch": 1, "warmup_end_epoch": 3, "importance_regularization_factor": 0.05}
    return MovementSettings(**(values | changes))


def batches(number, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        ids = torch.randint(5, 60, (8, 12), generator=generator)
        yield {"input_ids": ids, "labels": ids[:, 1] % 3}


# -- the reference -----------------------------------------------------------------------------------------------------


def full_size(scores, shape):
    """Repeat scores to the shape of their parameter, axis by axis."""
    for axis, size in enumerate(shape):
        scores = scores.repeat_interleave(size // scores.shape[axis], axis)
    return scores


class Reference:
    """The formulas of NNCF's movement sparsity, one after the other."""

    FACTORS = {Block: lambda s, shape: (s.rows, s.columns), Fine: lambda s, shape: (1, 1)}  # noqa: RUF012
    FACTORS[PerDim] = lambda s, shape: (1, shape[1]) if s.axis == 0 else (shape[0], 1)

    def __init__(self, model, structure_of, chosen):
        self.model, self.chosen = model, chosen
        self.parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        self.factors, self.scores = {}, {}
        for path, structure in structure_of.items():
            shape = self.parameters[f"{path}.weight"].shape
            r, c = self.factors[path] = self.FACTORS[type(structure)](structure, shape)
            self.scores[f"{path}.weight"] = torch.zeros(shape[0] // r, shape[1] // c, dtype=torch.float64)
            self.scores[f"{path}.bias"] = torch.zeros(shape[0] // r, dtype=torch.float64)
        for scores in self.scores.values():
            scores.requires_grad_()
        self.initial, self.frozen, self.masks = None, False, {}
        self.threshold, self.strength = -float("inf"), 0.0

    def expanded(self):
        return {name: full_size(s.detach(), self.parameters[name].shape) for name, s in self.scores.items()}

    def step(self, t):
        start, end = 1 * STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH
        if self.frozen:
            return
        if t < start:
            self.masks = {name: torch.ones_like(s) for name, s in self.expanded().items()}
            return
        if self.initial is None:
            everything = torch.cat([s.flatten() for s in self.expanded().values()]).sort().values
            self.initial = float(everything[int(0.001 * len(everything))])
        f = 1.0 if t >= end else 1 - (1 - ((t - start) / STEPS_PER_EPOCH) / 2) ** 3
        self.threshold = self.initial + f * (0.0 - self.initial)
        self.strength = f * self.chosen.importance_regularization_factor
        for name, s in self.expanded().items():
            highest = torch.quantile(s.flatten(), self.chosen.threshold_quantile_cap)
            self.masks[name] = (s > min(self.threshold, float(highest))).double()
        if t >= end:
            self.frozen = True
            for scores in self.scores.values():
                scores.requires_grad_(False)
                scores.grad = None
            if self.chosen.enable_structured_masking:
                self.prune_structures()

    def prune_structures(self):
        for layer in LAYERS:
            out, rows = f"{layer}.attention.output.dense", [f"{layer}.{name}" for name in QKV]
            self.prune_units(rows, out, HEADS, HEAD_DIM)
            self.prune_units([f"{layer}.intermediate.dense"], f"{layer}.output.dense", FFN, 1)

    def prune_units(self, rows, out, units, size):
        for unit in range(units):
            part = slice(unit * size, (unit + 1) * size)
            alive = self.masks[f"{out}.weight"][:, part].any()
            for path in rows:
                alive = alive or self.masks[f"{path}.weight"][part].any() or self.masks[f"{path}.bias"][part].any()
            for path in rows:
                self.masks[f"{path}.weight"][part] = self.masks[f"{path}.bias"][part] = float(alive)
            self.masks[f"{out}.weight"][:, part] = float(alive)
        self.masks[f"{out}.bias"] = torch.ones_like(self.masks[f"{out}.bias"])

    def loss(self, batch):
        used = dict(self.parameters)
        for name, scores in self.scores.items():
            expanded = full_size(scores, used[name].shape)
            used[name] = used[name] * (self.masks[name] + (expanded - expanded.detach()))  # straight through
        loss = functional_call(self.model, used, kwargs=batch).loss
        penalties = []
        for path, (r, c) in self.factors.items():
            weight, bias = self.scores[f"{path}.weight"], self.scores[f"{path}.bias"]
            penalties.append(0.5 * weight.sigmoid().mean() * r * c + 0.5 * bias.sigmoid().mean() * r)
        strength = 0.0 if self.frozen else self.strength
        return loss + strength * torch.stack(penalties).mean()


@pytest.mark.parametrize(
    ("cap", "structured", "attention"),
    [(1.0, True, Block(16, 8)), (0.9, True, Block(8, 64)), (1.0, False, Fine()), (0.98, False, Block(32, 32))],
    ids=lambda value: str(value),
)
def test_training_agrees_with_the_formulas(cap, structured, attention):
    chosen = settings(threshold_quantile_cap=cap, enable_structured_masking=structured)
    model = build_tiny_bert().double()
    reference = Reference(copy.deepcopy(model), structures(attention), chosen)
    control = attach(model, structures(attention), chosen, STEPS_PER_EPOCH)
    mine = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    theirs = torch.optim.AdamW([*reference.parameters.values(), *reference.scores.values()], lr=2e-3, weight_decay=0.0)
    masked = []
    for t, batch in enumerate(batches(20)):
        control.step(t)
        reference.step(t)
        assert control.threshold == pytest.approx(reference.threshold, abs=1e-9)
        losses = []
        for optimiser, loss in ((mine, model(**batch).loss + control.loss()), (theirs, reference.loss(batch))):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-7)
        masked.append(sum(int((m == 0).sum()) for m in reference.masks.values()))
    assert masked[:5] == [0] * 5
    assert 0 < masked[7] < masked[14] < sum(m.numel() for m in reference.masks.values())
    assert control.frozen
    assert control.loss() == 0
    for name, scores in control.scores().items():
        torch.testing.assert_close(scores, reference.scores[name].detach(), rtol=0, atol=1e-7)
    for name, parameter in reference.parameters.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), parameter.detach(), rtol=0, atol=1e-6)
    for path, module in control.modules.items():
        with torch.no_grad():
            used = module(torch.eye(module.in_features, dtype=torch.float64)) - module(
                torch.zeros(1, module.in_features, dtype=torch.float64)
            )
        expected = reference.parameters[f"{path}.weight"] * reference.masks[f"{path}.weight"]
        torch.testing.assert_close(used.T, expected.detach(), rtol=0, atol=1e-6)


# -- one layer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize(
    "structure", [Fine(), Block(2, 3), Block(4, 1), Block(1, 6), Block(4, 6), PerDim(0), PerDim(1)]
)
def test_gradients_of_one_layer(structure, kind):
    """What is held as [in, out] has scores, masks and gradients so as well."""
    linear = nn.Linear(6, 4) if kind is nn.Linear else Conv1D(4, 6)

    def as_matrix(tensor):
        return tensor.T if kind is Conv1D else tensor

    r, c = structure.factors((4, 6))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    module = MovementLinear.of(linear, structure)
    assert isinstance(module, kind)
    kept = torch.rand(4 // r, 6 // c, generator=generator) > 0.4
    kept_bias = torch.rand(4 // r, generator=generator) > 0.4
    module.set_mask("weight", as_matrix(kept))
    module.set_mask("bias", kept_bias[:, None])
    x, d_y = torch.randn(5, 6, generator=generator), torch.randn(5, 4, generator=generator)
    y = module(x)
    y.backward(d_y)

    full, full_bias, weight = (
        full_size(kept.float(), (4, 6)),
        full_size(kept_bias.float(), (4,)),
        as_matrix(linear.weight),
    )
    torch.testing.assert_close(y, x @ (weight * full).T + linear.bias * full_bias)
    d_weight, d_bias = d_y.T @ x, d_y.sum(0)
    torch.testing.assert_close(as_matrix(module.weight.grad), d_weight * full)
    torch.testing.assert_close(module.bias.grad, d_bias * full_bias)
    for i, j in product(range(4 // r), range(6 // c)):
        block = slice(i * r, (i + 1) * r), slice(j * c, (j + 1) * c)
        expected = (d_weight[block] * weight[block]).sum()  # not masked: a dead block can come back
        torch.testing.assert_close(as_matrix(module.weight_importance.grad)[i, j], expected.detach())
    for i in range(4 // r):
        expected = (d_bias * linear.bias)[i * r : (i + 1) * r].sum()
        torch.testing.assert_close(module.bias_importance.grad[i], expected.detach())
    assert type(module.plain()) is kind


def test_before_the_warm_up_the_model_is_the_plain_one_and_scores_learn():
    plain, model = build_tiny_bert(), build_tiny_bert()
    control = attach(model, structures(), settings(), STEPS_PER_EPOCH)
    batch = next(batches(1))
    control.step(0)
    assert torch.equal(plain(**batch).logits, model(**batch).logits)
    assert control.loss() == 0
    model(**batch).loss.backward()
    plain(**batch).loss.backward()
    for path, module in control.modules.items():
        assert torch.equal(module.weight.grad, plain.get_submodule(path).weight.grad)
    assert control.modules[f"{LAYERS[0]}.{QKV[0]}"].weight_importance.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_products_in_bfloat16_and_scores_in_float32(dtype):
    model = build_tiny_bert().to(dtype)
    control = attach(model, structures(), settings(init_importance_threshold=-1.0), STEPS_PER_EPOCH)
    control.step(6)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**next(batches(1)))
        (output.loss + control.loss()).backward()
    assert output.logits.dtype == torch.bfloat16
    for module in control.modules.values():
        assert module.weight.grad.dtype == dtype
        assert module.weight_importance.grad.dtype == torch.float32
        assert module.weight_importance.grad.isfinite().all()


def test_lr_multiplier_scales_the_gradients_of_scores_alone():
    gradients = []
    for factor in (1.0, 0.25):
        model = build_tiny_bert()
        attach(model, structures(), settings(compression_lr_multiplier=factor), STEPS_PER_EPOCH)
        for batch in batches(2):  # they add up, as in gradient accumulation
            model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient * (0.25 if name.endswith("_importance") else 1.0))


def test_a_layer_without_bias():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    control = attach(model, {"0": Block(2, 2)}, settings(enable_structured_masking=False), STEPS_PER_EPOCH)
    control.step(6)
    model(torch.ones(1, 4)).sum().backward()
    assert control.scores().keys() == {"0.weight"}
    # r c mean(sigmoid(0)) / 2 = 4 * 0.5 / 2
    assert control.loss().item() == pytest.approx(control.strength)
    control.detach()
    assert type(model[0]) is nn.Linear


# -- schedule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "power", "steps_per_epoch", "values"),
    [
        (1, 3, 3.0, 4, {0: 0, 3: 0, 4: 0, 6: 0.578125, 8: 0.875, 11: 0.998046875, 12: 1, 99: 1}),
        (0, 2, 1.0, 2, {0: 0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1}),
        (0.5, 1.25, 3.0, 10, {4: 0, 5: 0, 6: 1 - (1 - 0.1 / 0.75) ** 3, 11: 1 - (1 - 0.6 / 0.75) ** 3, 12: 1}),
    ],
)
def test_ramp(start, end, power, steps_per_epoch, values):
    chosen = settings(warmup_start_epoch=start, warmup_end_epoch=end, power=power)
    for step, value in values.items():
        assert chosen.ramp(step, steps_per_epoch) == pytest.approx(value)


def test_threshold_and_strength_follow_the_ramp():
    chosen = settings(init_importance_threshold=-0.4, final_importance_threshold=0.2, enable_structured_masking=False)
    control = attach(build_tiny_bert(), structures(), chosen, 4)
    assert (control.first_step, control.end_step) == (4, 12)
    expected = {3: (-float("inf"), 0), 4: (-0.4, 0), 8: (-0.4 + 0.875 * 0.6, 0.875 * 0.05), 12: (0.2, 0.05)}
    for step, (threshold, strength) in expected.items():
        control.step(step)
        assert control.threshold == pytest.approx(threshold)
        assert control.strength == pytest.approx(strength)
        assert control.frozen == (step == 12)
    assert not any(module.weight_importance.requires_grad for module in control.modules.values())


# -- resuming and detaching --------------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_model_resumes_the_run():
    def start():
        model = build_tiny_bert()
        control = attach(model, structures(), settings(), STEPS_PER_EPOCH)
        return model, control, torch.optim.AdamW(model.parameters(), lr=2e-3)

    def run(model, control, optimiser, steps):
        for t, batch in enumerate(batches(20)):
            if t in steps:
                control.step(t)
                optimiser.zero_grad()
                (model(**batch).loss + control.loss()).backward()
                optimiser.step()

    whole = start()
    run(*whole, range(18))
    for cut in (3, 9, 16):  # before, in and after the warm-up
        first, second = start(), start()
        run(*first, range(cut))
        second[0].load_state_dict(first[0].state_dict())
        second[2].load_state_dict(first[2].state_dict())
        run(*second, range(cut, 18))
        assert second[1].threshold == whole[1].threshold
        for (name, expected), found in zip(whole[0].state_dict().items(), second[0].state_dict().values(), strict=True):
            assert torch.equal(expected, found), (cut, name)


def test_detach_puts_plain_layers_back():
    model = build_tiny_bert()
    parameters = dict(model.named_parameters())
    control = attach(model, structures(), settings(), STEPS_PER_EPOCH)
    names = dict(model.named_parameters())
    assert all(names[name] is parameter for name, parameter in parameters.items())
    control.step(7)
    scores = control.scores()
    assert scores[f"{LAYERS[1]}.intermediate.dense.weight"].shape == (FFN, 1)
    assert scores[f"{LAYERS[1]}.output.dense.weight"].shape == (1, FFN)
    assert scores[f"{LAYERS[1]}.output.dense.bias"].shape == (1,)
    assert scores[f"{LAYERS[1]}.attention.self.key.weight"].shape == (4, 8)
    control.detach()
    assert not any(isinstance(module, MovementLinear) for module in model.modules())
    assert model.state_dict().keys() == build_tiny_bert().state_dict().keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert torch.equal(model(**next(batches(1))).logits, build_tiny_bert()(**next(batches(1))).logits)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no layer to score"),
        ({f"{LAYERS[0]}.attention.self.qury": Fine()}, "did you mean 'bert.encoder.layer.0.attention.self.query'"),
        (
            {f"{LAYERS[0]}.output.dense": Fine(), f"{LAYERS[0]}.{QKV[0]}": Block(24, 8)},
            "query: blocks of 24 x 8 do not",
        ),
        ({"bert.embeddings.LayerNorm": Fine()}, "no linear layer 'bert.embeddings.LayerNorm'"),
    ],
)
def test_attach_refuses_and_leaves_the_model_alone(given, message):
    model = build_tiny_bert()
    with pytest.raises(UserError, match=message) as caught:
        attach(model, given, settings(), STEPS_PER_EPOCH)
    assert "\n" not in str(caught.value)
    assert model.state_dict().keys() == build_tiny_bert().state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_start_epoch": -1}, "warmup_start_epoch"),
        ({"warmup_end_epoch": 1}, "warmup_end_epoch"),
        ({"importance_regularization_factor": -0.1}, "importance_regularization_factor must not be negative"),
        ({"power": 0}, "power must be positive"),
        ({"threshold_quantile_cap": 1.5}, "threshold_quantile_cap must be above 0 and at most 1"),
    ],
)
def test_settings_refuse(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_a_warm_up_without_steps_is_refused():
    with pytest.raises(UserError, match="has no step at 5 steps an epoch"):
        attach(build_tiny_bert(), structures(), settings(warmup_end_epoch=1.1), STEPS_PER_EPOCH)


def test_structured_masking_needs_a_known_family():
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = MPNetModel(MPNetConfig(**sizes))
    chosen = {"encoder.layer.0.intermediate.dense": Fine()}
    with pytest.raises(UserError, match="no axis labels for model type 'mpnet'"):
        attach(model, chosen, settings(), STEPS_PER_EPOCH)
    assert (
        attach(model, chosen, settings(enable_structured_masking=False), STEPS_PER_EPOCH).modules.keys()
        == chosen.keys()
    )


# -- structures --------------------------------------------------------------------------------------------------------


def test_structures_by_scopes():
    nodes = {"a.query": "Bert/Attention[a]/query", "a.dense": "Bert/Output[a]/dense", "head": "Bert/head"}
    rules = [(lambda n: "Attention" in n, Block(2, 2)), (lambda n: "Output" in n, PerDim(1))]
    assert assign_structures(nodes, rules, lambda n: n == "Bert/head") == {"a.query": Block(2, 2), "a.dense": PerDim(1)}
    assert assign_structures(nodes, rules)["head"] == Fine()
    with pytest.raises(UserError, match=r"two entries match 'Bert/Attention\[a\]/query' \(block 2x2, fine\)"):
        assign_structures(nodes, [*rules, (lambda n: "query" in n, Fine())])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("fine",), Fine()),
        (("block", [32, 16]), Block(32, 16)),
        (("per_dim", None, 1), PerDim(1)),
        (("blok", [1, 1]), "did you mean 'block'"),
        (("block",), "sparse_factors belong to mode 'block'"),
        (("fine", [1, 1]), "the mode is 'fine'"),
        (("per_dim",), "axis belongs to mode 'per_dim'"),
        (("per_dim", None, 2), "axis of per_dim must be 0 or 1, not 2"),
        (("block", [32]), r"must be \[rows, columns\], not \[32\]"),
        (("block", [0, 1]), "must be at least 1"),
    ],
)
def test_build_structure(values, expected):
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            build_structure(*values)
    else:
        assert build_structure(*values) == expected


# -- structured masks --------------------------------------------------------------------------------------------------


def random_scores(seed=0):
    model = build_tiny_bert()
    scores = attach(model, structures(), settings(), STEPS_PER_EPOCH).scores()
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(s.shape, generator=generator) for name, s in scores.items()}


@pytest.mark.parametrize("threshold", [1.0, 2.0, 2.5, 9.0])
def test_resolve_against_brute_force(threshold):
    blueprint = Blueprint.of(build_tiny_bert())
    scores = random_scores()
    full = {name: full_size(s, blueprint.shape(name, {})) for name, s in scores.items()}
    units = resolve(blueprint, scores, threshold)
    assert list(units) == [Key("head", 0), Key("head", 1), Key("ffn", 0), Key("ffn", 1)]
    for index, layer in enumerate(LAYERS):
        for head in range(HEADS):
            rows = range(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            alive = any(
                full[f"{layer}.{name}.weight"][row].max() > threshold or full[f"{layer}.{name}.bias"][row] > threshold
                for name, row in product(QKV, rows)
            ) or any(full[f"{layer}.attention.output.dense.weight"][:, row].max() > threshold for row in rows)
            assert units[Key("head", index)][head] == alive
        for channel in range(FFN):
            alive = (
                full[f"{layer}.intermediate.dense.weight"][channel].max() > threshold
                or full[f"{layer}.intermediate.dense.bias"][channel] > threshold
                or full[f"{layer}.output.dense.weight"][:, channel].max() > threshold
            )
            assert units[Key("ffn", index)][channel] == alive
    if threshold == 9.0:
        assert not any(mask.any() for mask in units.values())


def test_parameter_masks_are_outer_products_of_unit_masks():
    blueprint = Blueprint.of(build_tiny_bert())
    units = {Key("head", 0): torch.tensor([True, False, True, False]), Key("ffn", 0): torch.arange(FFN) < 3}
    rows = torch.tensor([True, False, True, False]).repeat_interleave(HEAD_DIM)
    expected = {
        f"{LAYERS[0]}.attention.self.value.weight": rows[:, None].expand(64, 64),
        f"{LAYERS[0]}.attention.self.value.bias": rows,
        f"{LAYERS[0]}.attention.output.dense.weight": rows.expand(64, 64),
        f"{LAYERS[0]}.output.dense.weight": (torch.arange(FFN) < 3).expand(64, FFN),
        f"{LAYERS[0]}.attention.output.dense.bias": None,
        f"{LAYERS[1]}.output.dense.weight": None,
    }
    for name, mask in expected.items():
        found = parameter_mask(blueprint, name, units)
        assert found is None if mask is None else torch.equal(found, mask)


def test_structured_sparsity_csv(tmp_path):
    blueprint = Blueprint.of(build_tiny_bert())
    units = {Key("head", 0): torch.tensor([True, False, True, False]), Key("ffn", 1): torch.arange(FFN) < 30}
    path = tmp_path / "structured_sparsity.csv"
    write_structured_sparsity(path, blueprint, units, lambda module: f"node of {module}")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "", "group_id", "torch_module", "weight_shape", "pruned_weight_shape", "bias_shape", "pruned_bias_shape",
        "head_or_channel_id_to_keep", "module_node_name",
    ]  # fmt: skip
    found = [tuple(row.values()) for row in rows]
    attention, ffn = f"{LAYERS[0]}.attention", LAYERS[1]
    kept = "[0, 2]"
    assert found == [
        *(
            (str(i), "0", path, "(64, 64)", "(32, 64)", "(64,)", "(32,)", kept, f"node of {path}")
            for i, path in enumerate(f"{LAYERS[0]}.{name}" for name in QKV)
        ),
        ("3", "0", f"{attention}.output.dense", "(64, 64)", "(64, 32)", "(64,)", "(64,)", kept,
         f"node of {attention}.output.dense"),
        ("4", "1", f"{ffn}.intermediate.dense", "(128, 64)", "(30, 64)", "(128,)", "(30,)", "[30 items]",
         f"node of {ffn}.intermediate.dense"),
        ("5", "1", f"{ffn}.output.dense", "(64, 128)", "(64, 30)", "(64,)", "(64,)", "[30 items]",
         f"node of {ffn}.output.dense"),
    ]  # fmt: skip


def test_scores_train_at_their_own_rate(tmp_path: Path) -> None:
    tiny_bert = build_tiny_bert()
    attach(tiny_bert, {"bert.encoder.layer.0.intermediate.dense": PerDim(0)}, MovementSettings(0.5, 1, 0.02), 10)
    trainer = StageTrainer(
        model=tiny_bert,
        args=StageTrainingArguments(output_dir=str(tmp_path), learning_rate=1e-5, use_cpu=True),
        train_dataset=[{}],
        data_collator=lambda rows: {},
        title="scores",
        score_learning_rate=1e-2,
    )
    optimizer = trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in tiny_bert.named_parameters() if p.requires_grad}
    assert {rate for name, rate in found.items() if name.endswith("_importance")} == {1e-2}
    assert {rate for name, rate in found.items() if not name.endswith("_importance")} == {1e-5}
