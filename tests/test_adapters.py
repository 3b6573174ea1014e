"""Adapters with elastic ranks: what a subnet computes, and what is left of it after extraction, by stock peft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import ROWS, Row, random_subnet
from peft import PeftModel, get_peft_model
from published_configs import config_of, lonas_bert
from safetensors.torch import save_file

from bootstrapnas.adapters import (
    adapter_modules,
    adapter_supernet,
    add_adapters,
    base_subnet,
    extract_adapters,
    lora_config,
    merged_adapters,
)
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_params
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.extraction import extract
from bootstrapnas.families import family_of
from bootstrapnas.families.adapted import NAME, Adapters, adapted_family
from bootstrapnas.nncf_config import build_space, check_config
from bootstrapnas.space import Gene
from bootstrapnas.supernet import Supernet

TARGETS = {
    "bert": ("query", "value", "intermediate.dense", "output.dense"),
    "llama": ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj"),
    "bloom": ("query_key_value", "dense_h_to_4h", "dense_4h_to_h"),
    "gpt2": ("c_attn", "c_fc", "mlp.c_proj"),
}
ADAPTED = [
    row for row in ROWS if row.config_class.model_type in TARGETS and row.head in ("SequenceClassification", "CausalLM")
]
every_row = pytest.mark.parametrize("row", ADAPTED, ids=lambda row: row.name)


def adapters_on(row: Row, scaling: str = "fixed") -> Adapters:
    model_type = row.config_class.model_type
    return Adapters(TARGETS[model_type], rank=4, alpha=8, scaling=scaling, transposed=model_type == "gpt2")


def adapted(row: Row, scaling: str = "fixed") -> tuple[Supernet, Adapters]:
    """Return a supernet whose adapters are not trivial."""
    adapters = adapters_on(row, scaling)
    model = row.build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        family = add_adapters(model, adapters)
        for name, parameter in model.named_parameters():
            if f"lora_B.{NAME}" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return adapter_supernet(model, family, adapters), adapters


def logits(model: torch.nn.Module, row: Row) -> torch.Tensor:
    with torch.no_grad():
        return model(**row.batch()).logits


@every_row
def test_new_adapters_change_nothing_and_full_ones_compute_what_stock_peft_does(row: Row) -> None:
    plain = row.build()
    expected = logits(plain, row)
    model = row.build()
    adapters = adapters_on(row)
    add_adapters(model, adapters)
    assert torch.equal(logits(model, row), expected)

    supernet, _ = adapted(row)
    stock = get_peft_model(row.build(), lora_config(adapters, list(adapter_modules(supernet.blueprint))))
    ours = {name: p for name, p in supernet.model.named_parameters() if "lora_" in name}
    incompatible = stock.base_model.model.load_state_dict(ours, strict=False)
    assert not incompatible.unexpected_keys
    found = logits(supernet.model, row)
    assert torch.equal(found, logits(stock, row))
    assert not torch.allclose(found, expected)


@every_row
@pytest.mark.parametrize("scaling", ["fixed", "active"])
def test_a_subnet_is_a_smaller_base_with_a_smaller_stock_adapter(row: Row, scaling: str, tmp_path: Path) -> None:
    supernet, adapters = adapted(row, scaling)
    blueprint = supernet.blueprint
    for seed in range(4):
        whole = {key: 1 for key in blueprint.elastic if blueprint.is_whole_layer(key)}
        subnet = {**random_subnet(blueprint, seed), **whole}
        tensors, ranks = extract_adapters(blueprint, dict(supernet.model.named_parameters()), subnet)
        plain = row.build()
        base = extract(plain, Blueprint.of(plain), base_subnet(blueprint, subnet))
        lora_config(adapters, list(ranks), ranks).save_pretrained(tmp_path / str(seed))
        save_file(
            {f"base_model.model.{name.replace(f'.{NAME}.', '.')}": tensor for name, tensor in tensors.items()},
            tmp_path / str(seed) / "adapter_model.safetensors",
        )
        assert len(set(ranks.values())) > 1
        with supernet.activate(subnet):
            expected = logits(supernet.model, row)
        stock = PeftModel.from_pretrained(base, tmp_path / str(seed)).eval()
        torch.testing.assert_close(logits(stock, row), expected, rtol=1e-5, atol=1e-5)
        assert count_params(blueprint, subnet) == sum(p.numel() for p in stock.parameters())
        torch.testing.assert_close(logits(stock.merge_and_unload(), row), expected, rtol=1e-4, atol=1e-5)


@every_row
@pytest.mark.parametrize("scaling", ["fixed", "active"])
def test_merged_while_evaluated(row: Row, scaling: str) -> None:
    """A subnet computes the same with its adapters added to its weights; afterwards all is as it was."""
    supernet, _ = adapted(row, scaling)
    before = logits(supernet.model, row)
    modules = list(supernet.model.modules())
    for seed in range(3):
        subnet = random_subnet(supernet.blueprint, seed)
        with supernet.activate(subnet):
            expected = logits(supernet.model, row)
            with merged_adapters(supernet):
                assert sum(f"lora_A.{NAME}" in name for name, _ in supernet.model.named_parameters()) == sum(
                    not supernet.blueprint.exists(parameter, subnet)
                    for name, parameter in supernet.blueprint.parameters.items()
                    if f"lora_A.{NAME}" in name
                )
                torch.testing.assert_close(logits(supernet.model, row), expected, rtol=1e-4, atol=1e-5)
    assert all(one is other for one, other in zip(modules, supernet.model.modules(), strict=True))
    assert torch.equal(logits(supernet.model, row), before)


def test_merging_needs_adapters() -> None:
    with pytest.raises(UserError, match="no adapters to merge"), merged_adapters(Supernet(ADAPTED[0].build())):
        pass


@every_row
def test_only_the_active_part_of_adapters_has_gradients(row: Row) -> None:
    supernet, _ = adapted(row)
    blueprint = supernet.blueprint
    subnet = {key: 3 for key in blueprint.elastic if key.dim.endswith(".rank")}
    with supernet.activate(subnet):
        supernet.model(**row.batch()).logits.square().sum().backward()
    for name, parameter in supernet.model.named_parameters():
        if "lora_" not in name:
            assert parameter.grad is None, name
            continue
        inside, outside = parameter.grad.split([3, 1], dim=0 if "lora_A" in name else 1)
        assert inside.count_nonzero(), name
        assert not outside.count_nonzero(), name


def test_ranks_are_dimensions_of_the_layer() -> None:
    row = ADAPTED[0]
    blueprint = adapted(row)[0].blueprint
    paths = ("attention.self.query", "attention.self.value", "intermediate.dense", "attention.output.dense")
    for path in (*paths, "output.dense"):
        assert blueprint.full[Key(f"{path}.rank", 1)] == 4
    inside = blueprint.inside(Key("ffn_block", 1))
    assert Key("output.dense.rank", 1) in inside
    assert Key("attention.self.query.rank", 1) not in inside


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("qeury",), r"target module 'qeury' is no linear layer of bert, which has .*did you mean 'query'"),
        ((), "no target modules"),
        (("LayerNorm",), "target module 'LayerNorm' is no linear layer"),
    ],
)
def test_unknown_targets_are_named(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapted_family(family_of(ADAPTED[0].build().config), Adapters(targets))


def test_adapters_know_how_weights_are_held() -> None:
    model = next(row for row in ADAPTED if row.config_class.model_type == "gpt2").build()
    with pytest.raises(UserError, match="adapters of gpt2 must have transposed=True"):
        add_adapters(model, Adapters(("c_attn",)))
    with pytest.raises(UserError, match="adapters of bert must have transposed=False"):
        add_adapters(ADAPTED[0].build(), Adapters(("query",), transposed=True))


def test_adapters_are_added_once_and_have_a_rank() -> None:
    row = ADAPTED[0]
    model = row.build()
    adapters = Adapters(("query",))
    add_adapters(model, adapters)
    with pytest.raises(UserError):
        add_adapters(model, adapters)
    with pytest.raises(UserError, match="at least 1"):
        Adapters(("query",), rank=0)
    with pytest.raises(UserError, match=r"unknown scaling 'activ'.*did you mean 'active'"):
        Adapters(("query",), scaling="activ")


# -- NNCF configs ------------------------------------------------------------------------------------------------------


def test_a_published_config_gives_shared_ranks_and_shared_widths() -> None:
    raw = lonas_bert(layers=3)
    width = raw["bootstrapNAS"]["training"]["elasticity"]["width"]
    width["overwrite_groups_widths"] = [[32, 16]] * 3 + [[4, 2, 1]] * 3 + [[24, 16, 8]] * 3
    row = ADAPTED[0]
    model = row.build()
    blueprint = Blueprint.of(model, add_adapters(model, Adapters(("query", "value"), rank=4)))
    space = build_space(check_config(raw), blueprint)
    ranks = (Key("attention.self.query.rank", 2), Key("attention.self.value.rank", 2))
    assert space.genes[2] == Gene((Key("head", 2),), (4, 2))
    assert space.genes[5] == Gene(ranks, (4, 2, 1))
    assert space.genes[8] == Gene((Key("ffn", 2),), (24, 16, 8))
    assert dict.fromkeys(ranks, 2).items() <= space.subnet(space.heuristic_genome).items()
    width["overwrite_groups_widths"][4] = [8, 4]
    with pytest.raises(UserError, match=r"groups_widths\[4\]: width 8 of attention.self.query.rank\[1\] must"):
        build_space(check_config(raw), blueprint)


def test_a_group_written_once_is_a_group_of_every_layer() -> None:
    stack = "{re}PeftModelForCausalLM/LoraModel[base_model]/Bert[model]/BertModel[bert]/E[encoder]/ModuleList[layer]"
    query = "A[attention]/S[self]/Linear[query]/ModuleDict[lora_A]/NNCFLinear[default]/linear_0"
    node = f"{stack}/BertLayer[{{*}}]/{query}"
    row = ADAPTED[0]
    model = row.build()
    blueprint = Blueprint.of(model, add_adapters(model, Adapters(("query",), rank=4)))
    raw = config_of([[node]], [[4, 3]], length=8, search={})
    space = build_space(check_config(raw), blueprint)
    assert [gene.keys for gene in space.genes] == [(Key("attention.self.query.rank", i),) for i in range(3)]
    raw["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups"] = [[node, node.replace("{*}", "1")]]
    with pytest.raises(UserError, match=r"overwrite_groups\[0\]: .* is one layer's, others have \{\*\}"):
        build_space(check_config(raw), blueprint)
