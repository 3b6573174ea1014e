"""Rules, criteria and files of scores; generation of search spaces from them."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import families
import pytest
import torch
from conftest import build_tiny_bert, tiny_bert_config
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from bootstrapnas.artefacts import save_tensors
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.families.gpt2 import GPT2
from bootstrapnas.importance.criteria import CRITERIA, find_criterion
from bootstrapnas.importance.external import EXTERNAL, load_external
from bootstrapnas.importance.filters import filter_orders
from bootstrapnas.importance.movement import MovementSettings, attach
from bootstrapnas.importance.reduction import orders
from bootstrapnas.importance.rules import RULES, default_rule, order_scores, width_scores
from bootstrapnas.importance.store import load_importance, save_importance
from bootstrapnas.importance.structures import Block, PerDim
from bootstrapnas.reorder import reorder
from bootstrapnas.space_generation import even_targets, generate_space, mac_targets

LAYER = "bert.encoder.layer.0"
QKV = tuple(f"{LAYER}.attention.self.{name}" for name in ("query", "key", "value"))


@pytest.fixture(scope="module")
def tiny() -> Blueprint:
    return Blueprint(tiny_bert_config(), "BertForSequenceClassification")


@pytest.fixture(scope="module")
def base() -> Blueprint:
    return Blueprint(BertConfig(num_labels=2), "BertForSequenceClassification")


def weight_scores(blueprint, seed=0):
    """Scores in the shapes of the published structure, of every layer."""
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, parameter in blueprint.parameters.items():
        if ".encoder.layer." in name and "LayerNorm" not in name:
            shape = list(blueprint.shape(name, {}))
            if ".attention." in name:
                shape = [size // 16 for size in shape]
            elif len(shape) == 2:
                shape[1 if ".intermediate." in name else 0] = 1
            elif ".output." in name:
                shape = [1]
            scores[parameter.name] = torch.randn(shape, generator=generator)
    return scores


def unit_scores(blueprint, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(blueprint.full[key], generator=generator)
        for key in blueprint.elastic
        if not blueprint.is_block(key)
    }


# -- rules -------------------------------------------------------------------------------------------------------------


def test_every_rule_against_loops(tiny):
    scores = weight_scores(tiny)
    full = {}
    for name, s in scores.items():
        for axis, size in enumerate(tiny.shape(name, {})):
            s = s.repeat_interleave(size // s.shape[axis], axis)
        full[name] = s
    for head in range(4):
        rows = slice(head * 16, (head + 1) * 16)
        members = [full[f"{path}.{leaf}"][rows] for path in QKV for leaf in ("weight", "bias")]
        members.append(full[f"{LAYER}.attention.output.dense.weight"][:, rows])
        expected = {
            "max": max(m.max() for m in members),
            "sum": sum(m.sum() for m in members),
            "mean": torch.cat([m.flatten() for m in members]).mean(),
            "rows": sum(full[f"{path}.weight"][rows].sum() for path in QKV),
        }
        for rule, (width, order) in {
            "prefix": ("max", "max"),
            "eftnas": ("max", "rows"),
            "sum": ("sum", "sum"),
            "mean": ("mean", "sum"),
            "relative": (None, "sum"),
            "rows": (None, "rows"),
        }.items():
            for function, wanted in ((width_scores, width), (order_scores, order)):
                if wanted is None:
                    continue
                found = function(tiny, scores, rule)[Key("head", 0)][head]
                torch.testing.assert_close(found, expected[wanted], rtol=1e-5, atol=1e-3)
    rows = full[f"{LAYER}.intermediate.dense.weight"].sum(1)
    torch.testing.assert_close(order_scores(tiny, scores, "eftnas")[Key("ffn", 0)], rows)
    for rule, by in (("relative", width_scores(tiny, scores, "mean")), ("rows", order_scores(tiny, scores, "rows"))):
        for key, found in width_scores(tiny, scores, rule).items():
            torch.testing.assert_close(found, by[key] / by[key].square().mean().sqrt())
    assert set(RULES) == {"prefix", "eftnas", "sum", "mean", "relative", "rows"}


def test_keys_without_scores_are_left_out(tiny):
    scores = {name: s for name, s in weight_scores(tiny).items() if "layer.1.attention" not in name}
    assert list(width_scores(tiny, scores)) == [Key("head", 0), Key("ffn", 0), Key("ffn", 1)]
    only_biases = {f"{LAYER}.intermediate.dense.bias": torch.zeros(128)}
    assert list(width_scores(tiny, only_biases)) == [Key("ffn", 0)]
    with pytest.raises(UserError, match="none of the scored parameters"):
        order_scores(tiny, only_biases, "eftnas")
    with pytest.raises(UserError, match="none of the scored parameters"):
        width_scores(tiny, {"classifier.weight": torch.zeros(3, 64)})


def test_an_unknown_rule_names_the_nearest(tiny):
    with pytest.raises(UserError, match=r"unknown importance rule 'prefx'.*did you mean 'prefix'"):
        width_scores(tiny, weight_scores(tiny), "prefx")


# -- criteria ----------------------------------------------------------------------------------------------------------


def model_loss(model, batch):
    return model(**batch).loss


def taylor_by_hand(model, batches):
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in batches:
        model.zero_grad()
        model_loss(model, batch).backward()
        for name, p in model.named_parameters():
            totals[name] += (p * p.grad).abs().detach()
    return totals


def gate_by_hand(model, batches):
    """Multiplies the units that a layer reads by ones, and takes the gradient of the ones."""
    gates, handles = {}, []
    for path, module in model.named_modules():
        if path.endswith("output.dense"):
            width = 16 if ".attention." in path else 1  # a head is 16 columns
            gate = gates[f"{path}.weight"] = torch.ones(module.in_features // width, requires_grad=True)
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, args, gate=gate, width=width: (args[0] * gate.repeat_interleave(width),)
                )
            )
    totals = dict.fromkeys(gates, 0)
    for batch in batches:
        gradients = torch.autograd.grad(model_loss(model, batch), list(gates.values()))
        for name, gradient in zip(gates, gradients, strict=True):
            totals[name] = totals[name] + gradient.abs()
    found = {}
    for name, total in totals.items():
        rows, columns = model.get_parameter(name).shape
        width = columns // len(total)
        found[name] = total.repeat_interleave(width)[None] / (rows * width)
    return found


def l2_by_hand(model, batches):
    found = {}
    for name, p in model.named_parameters():
        p = p.detach()
        if p.dim() == 1:
            found[name] = p.abs()
        elif "output.dense" in name:  # what is elastic is its columns
            found[name] = torch.stack([column.norm() / len(column) for column in p.T])[None]
        else:
            found[name] = torch.stack([row.norm() / len(row) for row in p])[:, None]
    return found


def geometric_median_by_hand(model, batches):
    found = {}
    for name, p in model.named_parameters():
        if p.dim() == 1:
            continue
        w = p.detach().T if "output.dense" in name else p.detach()
        units = list(w.split(16 if ".attention." in name else 1))  # a head is 16 rows
        shares = [sum((unit - other).norm() for other in units) / unit.numel() for unit in units]
        spread = torch.cat([share.expand_as(unit) for share, unit in zip(shares, units, strict=True)])
        found[name] = spread.T if "output.dense" in name else spread
    return found


def wanda_by_hand(model, batches):
    """Replaces each linear layer's input by what its own hook saw, one batch and one token at a time."""
    seen = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, args, out, path=path: seen.setdefault(path, []).append(args[0]))
    for batch in batches:
        with torch.no_grad():
            model(**batch)
    found = {}
    for path, inputs in seen.items():
        squares = 0
        for batch, x in zip(batches, inputs, strict=True):
            for row in range(len(x)):
                tokens = x[row][batch["attention_mask"][row].bool()] if x.dim() == 3 else x[row][None]
                squares = squares + sum(token**2 for token in tokens)
        found[f"{path}.weight"] = model.get_submodule(path).weight.detach().abs() * squares.sqrt()
    return found


BY_HAND = {
    "l1": lambda model, batches: {name: p.detach().abs() for name, p in model.named_parameters()},
    "l2": l2_by_hand,
    "geometric_median": geometric_median_by_hand,
    "taylor": taylor_by_hand,
    "gate": gate_by_hand,
    "wanda": wanda_by_hand,
}
WITHOUT_BIASES = ("geometric_median", "wanda")


def calibration_batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return [
        {
            "input_ids": torch.randint(5, 60, (4, 9), generator=generator),
            "attention_mask": mask,
            "labels": torch.tensor([0, 1, 2, 0]),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria(name, tiny):
    batches = calibration_batches()
    model = build_tiny_bert().train()
    scores = find_criterion(name)(model, tiny, iter(batches), model_loss)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    carriers = {p.name for key in tiny.elastic if not tiny.is_block(key) for p, _ in tiny.members(key)}
    assert f"{LAYER}.intermediate.dense.bias" in carriers
    if name in WITHOUT_BIASES:
        carriers = {carrier for carrier in carriers if carrier.endswith(".weight")}
    if name == "gate":
        carriers = {carrier for carrier in carriers if carrier.endswith("output.dense.weight")}
    assert scores.keys() == carriers
    expected = BY_HAND[name](build_tiny_bert(), batches)
    for parameter, found in scores.items():
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert (found >= 0).all()
        torch.testing.assert_close(found, expected[parameter])
    assert len(orders(order_scores(tiny, scores, default_rule(name)))) == 4


@pytest.mark.parametrize("name", CRITERIA)
def test_spaces_of_criteria_thin_heads_and_channels_alike(name, base):
    """One threshold must compare a head of 200 thousand entries with a channel of two thousand."""
    config = BertConfig(
        hidden_size=128, num_attention_heads=8, intermediate_size=512, num_hidden_layers=3, vocab_size=80, num_labels=3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        for parameter in model.parameters():  # rows that differ, and layers that differ in scale
            scale = 1 + torch.rand(len(parameter), *[1] * (parameter.dim() - 1))
            parameter.data *= scale * (0.5 + torch.rand(()))
    blueprint = Blueprint.of(model)
    scores = find_criterion(name)(model, blueprint, calibration_batches(), model_loss)
    full = count_macs(blueprint, length=64)
    units = width_scores(blueprint, scores, default_rule(name))
    half = generate_space(blueprint, units, [full // 2], length=64, tolerance=full // 20).subnets[0].subnet
    for dim in ("head", "ffn"):
        shares = [half[key] / blueprint.full[key] for key in units if key.dim == dim]
        assert 0.2 < sum(shares) / len(shares) < 0.9, (dim, shares)


@pytest.mark.parametrize("row", families.ROWS, ids=lambda row: row.name)
def test_criteria_score_every_family_and_follow_its_units(row):
    """Scores of the reordered model are the scores in the new order: nothing depends on where a unit stands."""
    batch = row.batch()
    for name in CRITERIA:
        model = row.build()
        blueprint = Blueprint.of(model)
        scores = find_criterion(name)(model, blueprint, [batch], families.loss)
        units = order_scores(blueprint, scores, default_rule(name))
        assert units.keys() == set(blueprint.widths)
        assert all(torch.isfinite(s).all() and (s >= 0).all() for s in scores.values())
        order = orders(units)
        with torch.no_grad():
            before = families.outputs(model, batch)
            reorder(model, blueprint, order)
            torch.testing.assert_close(families.outputs(model, batch), before, atol=1e-4, rtol=1e-4)
        again = order_scores(
            blueprint, find_criterion(name)(model, blueprint, [batch], families.loss), default_rule(name)
        )
        for key, found in again.items():
            torch.testing.assert_close(found, units[key][order[key]], rtol=1e-3, atol=1e-5, msg=f"{name} {key}")


# -- weights that are held as [in, out] --------------------------------------------------------------------------------


def as_linear(module):
    """Return the linear layer that a Conv1D is."""
    columns, rows = module.weight.shape
    linear = torch.nn.Linear(columns, rows)
    linear.weight.data, linear.bias.data = module.weight.data.T.contiguous(), module.bias.data.clone()
    return linear


def gpt2_twice():
    """Return a GPT-2, and the same network of ordinary linear layers, with their blueprints."""
    row = next(row for row in families.FAMILY_ROWS if row.name == "GPT2LMHeadModel")
    gpt2, other, layer = row.build(), row.build(), {}
    for path, module in list(other.named_modules()):
        if isinstance(module, Conv1D):
            other.set_submodule(path, as_linear(module))
    for name, labels in GPT2.layer.items():
        straight = replace(labels, axes=f"{labels.outputs}, {labels.inputs}", transposed=False)
        layer[name] = straight if labels.transposed else labels
    ordinary = replace(GPT2, layer=layer, follows=(), constants={"attn": GPT2.constants["attn"]})
    return gpt2, Blueprint.of(gpt2), other, Blueprint.of(other, ordinary), row.batch()


def assert_alike(gpt2, ordinary, scores, expected):
    """Check that units have the same scores by every rule, whichever way round weights are held."""
    assert scores.keys() == expected.keys()
    transposed = {name for name, parameter in gpt2.parameters.items() if parameter.transposed}
    assert transposed.intersection(scores)
    for name, found in scores.items():
        torch.testing.assert_close(found.T if name in transposed else found, expected[name], rtol=1e-4, atol=1e-7)
    for rule in RULES:
        for of in (width_scores, order_scores):
            units = of(ordinary, expected, rule)
            for key, found in of(gpt2, scores, rule).items():
                torch.testing.assert_close(found, units[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_score_a_conv1d_as_the_linear_layer_that_it_is(name):
    gpt2, blueprint, other, ordinary, batch = gpt2_twice()
    score = find_criterion(name)
    scores, expected = (
        score(m, b, [batch], model_loss) for m, b in ((gpt2.eval(), blueprint), (other.eval(), ordinary))
    )
    assert_alike(blueprint, ordinary, scores, expected)


def test_movement_scores_a_conv1d_as_the_linear_layer_that_it_is():
    gpt2, blueprint, other, ordinary, batch = gpt2_twice()
    structures = {
        f"transformer.h.{layer}.{path}": structure
        for layer in range(3)
        for path, structure in (("attn.c_proj", Block(4, 8)), ("mlp.c_fc", PerDim(0)), ("mlp.c_proj", PerDim(1)))
    }
    settings = MovementSettings(0, 2, 0.02, init_importance_threshold=-0.01, enable_structured_masking=False)
    found = []
    for model in (gpt2, other):
        control = attach(model.eval(), structures, settings, steps_per_epoch=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(4):
            control.step(step)
            optimizer.zero_grad()
            (model_loss(model, batch) + control.loss()).backward()
            optimizer.step()
        masks = control.masks()
        assert 0 < sum(int((~kept).sum()) for kept in masks.values()) < sum(kept.numel() for kept in masks.values())
        found.append(control.scores())
    assert_alike(blueprint, ordinary, *found)


def test_criteria_refuse():
    model = build_tiny_bert()
    with pytest.raises(UserError, match=r"unknown importance criterion 'tailor'.*did you mean 'taylor'"):
        find_criterion("tailor")
    for name in ("taylor", "gate", "wanda"):
        with pytest.raises(UserError, match=f"{name!r} needs data, but there is no batch"):
            find_criterion(name)(model, Blueprint.of(model), [], model_loss)


# -- NNCF's filter importance ------------------------------------------------------------------------------------------

BY_NNCF = {  # of a weight: one number a row
    "L1": lambda w: torch.stack([row.abs().sum() for row in w]),
    "L2": lambda w: torch.stack([row.square().sum().sqrt() for row in w]),
    "geometric_median": lambda w: torch.stack([(w - row).square().sum(1).sqrt().sum() for row in w]),
}


@pytest.mark.parametrize("name", BY_NNCF)
def test_filter_importance_is_nncfs(name, tiny):
    """Rows of the group's own layers count: no biases, no columns of what follows. Heads stay whole."""
    model = build_tiny_bert()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(len(parameter), *[1] * (parameter.dim() - 1))
    found = filter_orders(model, tiny, name)
    weights = dict(model.named_parameters())
    for layer in range(2):
        path = f"bert.encoder.layer.{layer}"
        channels = BY_NNCF[name](weights[f"{path}.intermediate.dense.weight"].detach())
        assert found[Key("ffn", layer)].tolist() == channels.argsort(descending=True, stable=True).tolist()
        rows = [weights[f"{path}.attention.self.{m}.weight"].detach() for m in ("query", "key", "value")]
        if name == "geometric_median":  # of whole heads
            heads = sum(BY_NNCF[name](w.reshape(4, -1)) for w in rows)
        else:
            heads = sum(BY_NNCF[name](w) for w in rows).view(4, 16).sum(1)
        assert found[Key("head", layer)].tolist() == heads.argsort(descending=True, stable=True).tolist()
    batch = calibration_batches(1)[0]
    with torch.no_grad():
        before = model(**batch).logits
        reorder(model, tiny, found)
        torch.testing.assert_close(model(**batch).logits, before, atol=1e-5, rtol=1e-5)
    assert all(order.tolist() == sorted(order.tolist()) for order in filter_orders(model, tiny, name).values())


# -- scores of other programs ------------------------------------------------------------------------------------------

NODE = (
    "BertForSequenceClassification/BertModel[bert]/BertEncoder[encoder]/ModuleList[layer]/BertLayer[0]/"
    "BertIntermediate[intermediate]/NNCFLinear[dense]/linear_0"
)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_external_scores_order_by_the_sums_of_rows(kind, tiny, tmp_path):
    rows, columns = torch.randn(128, 64), torch.randn(64, 128)
    found = {NODE: rows, f"{LAYER}.output.dense.weight": columns}
    if kind == "torch":
        torch.save(found, tmp_path / "scores.pth")
        scores = load_external(tmp_path / "scores.pth", tiny)
    else:
        save_file(found, tmp_path / "scores.safetensors")
        scores = load_external(tmp_path / "scores.safetensors", tiny)
    assert scores.keys() == {f"{LAYER}.intermediate.dense.weight", f"{LAYER}.output.dense.weight"}
    assert default_rule(EXTERNAL) == "rows"
    order = order_scores(tiny, scores, "rows")
    assert list(order) == [Key("ffn", 0)]
    torch.testing.assert_close(order[Key("ffn", 0)], rows.sum(1))


WEIGHT = f"{LAYER}.intermediate.dense.weight"


class Evil:
    def __reduce__(self):
        return (print, ("code of the file runs",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, r"external_importance_path \S+ does not exist"),
        (lambda path: path.write_bytes(b"nothing"), "is neither safetensors nor a file of tensors by torch.save: "),
        (lambda path: torch.save({"a": Evil()}, path), "is neither safetensors nor a file of tensors by torch.save: "),
        (lambda path: torch.save([torch.zeros(1)], path), "must hold a mapping from names to tensors"),
        (lambda path: torch.save({}, path), "holds no scores"),
        (
            lambda path: torch.save({NODE.replace("dense", "dens"): torch.zeros(128, 64)}, path),
            "no such parameter; did",
        ),
        (
            lambda path: torch.save({NODE: torch.zeros(100, 64)}, path),
            r"\(100, 64\), which does not divide \(128, 64\)",
        ),
        (
            lambda path: torch.save({NODE: torch.zeros(1, 1), WEIGHT: torch.zeros(1, 1)}, path),
            f"{WEIGHT!r} is the second entry with scores of {WEIGHT!r}",
        ),
    ],
)
def test_external_scores_that_are_refused(write, message, tiny, tmp_path, capsys):
    write(tmp_path / "scores.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_external(tmp_path / "scores.pth", tiny)
    assert "\n" not in str(caught.value)
    assert "code of the file runs" not in capsys.readouterr().out


# -- files -------------------------------------------------------------------------------------------------------------


def test_scores_survive_a_file(tiny, tmp_path):
    scores = weight_scores(tiny)
    save_importance(tmp_path / "importance.safetensors", scores, tiny, "movement", {"structure": {"a": "fine"}})
    found, metadata = load_importance(tmp_path / "importance.safetensors", tiny)
    assert found.keys() == scores.keys()
    assert all(torch.equal(found[name], scores[name]) for name in scores)
    assert metadata["criterion"] == "movement"
    assert metadata["model_type"] == "bert"
    assert metadata["structure"] == {"a": "fine"}


def test_scores_of_another_head_fit(tiny, tmp_path):
    save_importance(tmp_path / "scores", weight_scores(tiny), tiny, "movement")
    answering = Blueprint(tiny_bert_config(), "BertForQuestionAnswering")
    assert load_importance(tmp_path / "scores", answering)[0].keys() == weight_scores(tiny).keys()


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({f"{LAYER}.output.dense.weigh": (1, 128)}, {}, "did you mean 'bert.encoder.layer.0.output.dense.weight'"),
        ({f"{LAYER}.output.dense.weight": (1, 100)}, {}, r"shape \(1, 100\), which does not divide \(64, 128\)"),
        ({}, {"model_type": "roberta"}, "scores of a 'roberta' model, not of 'bert'"),
        ({}, {"kind": "weights"}, "holds no importance scores"),
        ({}, {"format": 99}, "update bootstrapnas"),
    ],
)
def test_loading_checks_scores_against_the_model(tensors, metadata, message, tiny, tmp_path):
    header = {"kind": "importance", "criterion": "movement", "model_type": "bert"} | metadata
    save_tensors(tmp_path / "scores", {name: torch.zeros(shape) for name, shape in tensors.items()}, header)
    with pytest.raises(UserError, match=message) as caught:
        load_importance(tmp_path / "scores", tiny)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(tiny, tmp_path):
    path = tmp_path / "scores"
    with pytest.raises(UserError, match="does not exist"):
        load_importance(path, tiny)
    save_importance(path, weight_scores(tiny), tiny, "movement")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is corrupt"):
        load_importance(path, tiny)
    with pytest.raises(UserError, match="not all finite"):
        save_importance(path, {f"{LAYER}.output.dense.bias": torch.tensor([torch.nan])}, tiny, "movement")


# -- targets -----------------------------------------------------------------------------------------------------------


def test_published_targets(base):
    full = count_macs(base, length=128) // 10**6
    assert even_targets(full, 4400, 5) == (4400, 6093, 7786, 9479, 11174)


def test_an_exact_division_drops_no_target():
    assert even_targets(100, 20, 5) == (20, 40, 60, 80, 100)
    assert mac_targets(1000) == (200, 400, 600, 800, 1000)
    assert mac_targets(1000, 0.5, 2) == (500, 1000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: even_targets(100, 20, 1), "at least 2 targets, not 1"),
        (lambda: even_targets(100, 100, 5), "below the full model's 100, not 100"),
        (lambda: mac_targets(100, 1.5), "between 0 and 1, not 1.5"),
    ],
)
def test_targets_refuse(call, message):
    with pytest.raises(UserError, match=message):
        call()


# -- generation --------------------------------------------------------------------------------------------------------


def test_base_model_meets_its_targets(base):
    targets = tuple(10**6 * target for target in (4400, 6093, 7786, 9479, 11174))
    report = generate_space(base, unit_scores(base), targets, length=128, tolerance=100 * 10**6)
    assert report.notes == ()
    for target, found in zip(targets, report.subnets, strict=True):
        assert found.target == target
        assert abs(found.macs - target) <= 100 * 10**6
        assert found.macs == count_macs(base, found.subnet, length=128)
        assert report.space.subnet(report.space.genome(found.subnet)).items() >= found.subnet.items()
    assert [gene.keys[0] for gene in report.space.genes[:24]] == [
        Key(dim, layer) for dim in ("head", "ffn") for layer in range(12)
    ]
    for gene in report.space.genes:
        assert gene.choices[0] == base.full[gene.keys[0]]
    for gene in report.space.genes[12:24]:
        assert all(width % 8 == 0 for width in gene.choices)
    assert count_macs(base, report.space.subnet(report.space.min_genome), length=128) == report.subnets[0].macs
    assert report.subnets[-1].macs == count_macs(base, length=128)


@given(st.integers(0, 10**6), st.integers(1, 99))
def test_a_target_gets_the_nearest_subnet_of_all_thresholds(tiny, seed, percent):
    scores = {key: (s * 4).round() / 4 for key, s in unit_scores(tiny, seed).items()}  # coarse, with many ties
    target = count_macs(tiny, length=32) * percent // 100
    found = generate_space(tiny, scores, [target], length=32, tolerance=0).subnets[0]
    reachable = []
    for threshold in [-1e9, *sorted({float(x) for s in scores.values() for x in s})]:
        subnet = {}
        for key, s in scores.items():
            kept, full = int((s > threshold).sum()), tiny.full[key]
            if kept < 0.02 * full:
                subnet[Key({"head": "mha_block", "ffn": "ffn_block"}[key.dim], key.layer)] = 0
            elif key.dim == "ffn":
                subnet[key] = min(full, (kept + 7) // 8 * 8)
            else:
                subnet[key] = kept
        reachable.append(count_macs(tiny, subnet, length=32))
    assert all(a >= b for a, b in pairwise(reachable))
    assert abs(found.macs - target) == min(abs(macs - target) for macs in reachable)


@given(st.integers(0, 10**6))
def test_units_above_a_threshold_are_a_prefix_of_the_order(tiny, seed):
    scores = weight_scores(tiny, seed)
    widths = width_scores(tiny, scores)
    order = orders(order_scores(tiny, scores))
    targets = mac_targets(count_macs(tiny, length=16))
    report = generate_space(tiny, widths, targets, length=16, tolerance=10**9, multiple={}, depth="none")
    for found in report.subnets:
        for key, size in found.subnet.items():
            above = set(range(tiny.full[key]))
            if found.threshold is not None:
                above = set((widths[key] > found.threshold).nonzero().flatten().tolist())
            assert size == max(1, len(above))
            assert above <= set(order[key][:size].tolist())
    for gene in report.space.genes:
        sizes = [found.subnet[gene.keys[0]] for found in report.subnets]
        assert sizes == sorted(sizes)
        assert set(gene.choices) == {*sizes, tiny.full[gene.keys[0]]}


def test_a_starved_block_is_skipped_and_its_width_left_alone(tiny):
    scores = unit_scores(tiny)
    scores[Key("ffn", 1)] = torch.full((128,), -9.0)
    scores[Key("head", 0)] = torch.full((4,), -8.0)
    target = int(count_macs(tiny, length=16) * 0.4)
    report = generate_space(tiny, scores, [target], length=16, tolerance=target)
    subnet = report.subnets[0].subnet
    assert subnet[Key("ffn_block", 1)] == subnet[Key("mha_block", 0)] == 0
    assert subnet[Key("ffn", 1)] == 128
    assert Key("ffn_block", 0) not in subnet
    choices = {gene.keys[0]: gene.choices for gene in report.space.genes}
    assert choices[Key("ffn_block", 1)] == (1, 0)
    assert choices[Key("ffn", 1)] == (128,)
    kept = generate_space(tiny, scores, [target], length=16, tolerance=target, depth="none").subnets[0].subnet
    assert set(kept) == set(scores)
    assert kept[Key("ffn", 1)] == 8
    assert kept[Key("head", 0)] == 1


def test_the_layers_with_the_lowest_sums_are_skipped_for_half_of_what_is_saved(base):
    scores = unit_scores(base)
    sums = {layer: sum(float(s.sum()) for key, s in scores.items() if key.layer == layer) for layer in range(12)}
    full = count_macs(base, length=128)
    report = generate_space(base, scores, mac_targets(full), length=128, depth="layers")
    assert report.notes == ()
    for found, count in zip(report.subnets, (5, 4, 2, 1, 0), strict=True):  # half of 80, 60, 40, 20 and 0 % of 12
        skipped = {key.layer for key, size in found.subnet.items() if size == 0}
        assert skipped == set(sorted(sums, key=sums.__getitem__)[:count])
        assert all(found.subnet[Key("ffn", layer)] == 3072 for layer in skipped)
        assert report.space.subnet(report.space.genome(found.subnet)).items() >= found.subnet.items()
    blocks = [gene for gene in report.space.genes if base.is_block(gene.keys[0])]
    assert [(len(gene.keys), gene.choices) for gene in blocks] == [(1, (1, 0))] * 5


def test_multiples_round_up_to_full_at_most():
    blueprint = Blueprint(BertConfig(hidden_size=64, num_attention_heads=4, intermediate_size=100), "BertModel")
    scores = unit_scores(blueprint)
    targets = mac_targets(count_macs(blueprint, length=16), 0.3, 8)
    report = generate_space(blueprint, scores, targets, length=16, tolerance=10**9, multiple={"ffn": 32})
    assert {w for g in report.space.genes if g.keys[0].dim == "ffn" for w in g.choices} <= {32, 64, 96, 100}
    assert {w for g in report.space.genes if g.keys[0].dim == "head" for w in g.choices} <= {1, 2, 3, 4}


def test_unreachable_targets_are_taken_as_near_as_possible_and_reported(tiny):
    full = count_macs(tiny, length=16)
    report = generate_space(tiny, unit_scores(tiny), [1, 2 * full], length=16, tolerance=100)
    assert report.subnets[1].macs == full
    assert report.subnets[1].threshold is None
    assert report.subnets[0].macs == min(found.macs for found in report.subnets)
    assert report.notes[1] == f"target of {2 * full:,} MACs: the nearest that a threshold reaches is {full:,}"
    assert len(report.notes) == 2


def test_keys_without_scores_stay_full(tiny):
    scores = {key: s for key, s in unit_scores(tiny).items() if key.dim == "ffn"}
    target = count_macs(tiny, length=16) // 2
    report = generate_space(tiny, scores, [target], length=16, tolerance=target)
    assert {gene.keys[0].dim for gene in report.space.genes} <= {"ffn", "ffn_block"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": []}, "at least one target"),
        ({"targets": [5, -1]}, "must be positive numbers of MACs, not -1"),
        ({"unit_scores": {}}, "at least one elastic dimension"),
        ({"unit_scores": {Key("hidden"): torch.zeros(64)}}, "hidden, which is no elastic dimension"),
        ({"unit_scores": {Key("ffn", 7): torch.zeros(128)}}, r"ffn\[7\], which is no elastic dimension"),
        ({"unit_scores": {Key("ffn", 0): torch.zeros(127)}}, r"shape \[127\], but it has 128 units"),
        ({"unit_scores": {Key("ffn", 0): torch.full((128,), torch.nan)}}, "not all finite"),
        ({"multiple": {"fnn": 8}}, "did you mean 'ffn'"),
        ({"multiple": {"ffn": 0}}, "cannot be multiples of 0"),
        ({"depth": "layer"}, r"unknown depth 'layer' \(known: half_blocks, layers, none\); did you mean 'layers'"),
    ],
)
def test_generation_refuses(change, message, tiny):
    given = {"unit_scores": unit_scores(tiny), "targets": [10**6], "length": 16, "tolerance": 0} | change
    with pytest.raises(UserError, match=message):
        generate_space(tiny, given.pop("unit_scores"), given.pop("targets"), **given)


def test_generated_subnets_run_and_cost_what_was_counted(tiny):
    from bootstrapnas.supernet import Supernet

    report = generate_space(
        tiny, unit_scores(tiny), mac_targets(count_macs(tiny, length=16)), length=16, tolerance=10**9
    )
    supernet = Supernet(build_tiny_bert(), report.space)
    for genome in (report.space.min_genome, report.space.sample(random.Random(0))):
        subnet = report.space.subnet(genome)
        extracted = supernet.extract(subnet)
        assert isinstance(extracted, BertForSequenceClassification)
        assert sum(p.numel() for p in extracted.parameters()) == supernet.count(subnet, length=16).params
