"""What decoders have besides what every family has: a cache of keys and values, generation, an elastic hidden size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from families import ENCODER_ROWS, FAMILY_ROWS, LENGTH, MIXED, Row, decoder_rows, outputs
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs, count_params
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.extraction import load_model, save_subnet
from bootstrapnas.importance import CRITERIA, order_scores, orders, width_scores
from bootstrapnas.importance.movement import MovementSettings, attach
from bootstrapnas.importance.structures import Block
from bootstrapnas.nncf_config import NodeNames, check_config
from bootstrapnas.nncf_config.elastic_space import listed_space
from bootstrapnas.space_generation import generate_space, mac_targets
from bootstrapnas.supernet import Supernet
from eftnas.default_config import default_movement_config
from eftnas.importance import structures_of

DECODERS = tuple(row for row in FAMILY_ROWS if row not in ENCODER_ROWS)
every_decoder = pytest.mark.parametrize("row", DECODERS, ids=lambda row: row.name)
LLAMA = next(row for row in DECODERS if row.config_class is LlamaConfig)
(MIXED_QWEN,) = decoder_rows("Qwen2", Qwen2Config, ["CausalLM"], **MIXED)
NEW = 7
"""Tokens to generate: with the prompt more than a sliding window holds."""


def skips(blocks: Mapping[str, tuple[int, ...]], **widths: int) -> dict[Key, int]:
    """Return a subnet that skips blocks of some layers; its widths differ between layers."""
    sizes = {Key(name, layer): 0 for name, layers in blocks.items() for layer in layers}
    return {**sizes, Key("ffn", 0): 7, Key("kv", 1): 1, **{Key(name): size for name, size in widths.items()}}


SUBNETS: dict[str, dict[Key, int]] = {
    "first": skips({"mha_block": (0,)}, hidden=20),
    "middle": skips({"mha_block": (1,), "ffn_block": (0,)}),
    "last": skips({"mha_block": (2,)}),
    "only the last": skips({"mha_block": (0, 1)}, hidden=28),
    "none": skips({"mha_block": (0, 1, 2)}),
    "a layer": skips({"layer_block": (1,), "mha_block": (2,)}),
}


def of_row(row: Row, subnet: Subnet) -> Subnet:
    """Return a subnet with a row's own units of attention in the place of key-value heads, without what is fixed."""
    own = {key._replace(dim=row.unit) if key.dim == "kv" else key: size for key, size in subnet.items()}
    return {key: size for key, size in own.items() if key in supernet_of(row).blueprint.elastic}


@lru_cache
def supernet_of(row: Row) -> Supernet:
    return Supernet(row.build())


@torch.no_grad()
def generate(model: nn.Module, **settings: object) -> Tensor:
    """Continue two prompts, the first of them padded on the left."""
    ids = torch.arange(1, 11).view(2, 5)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return model.generate(
        input_ids=ids * mask, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **settings
    )


@every_decoder
@pytest.mark.parametrize("subnet", SUBNETS.values(), ids=SUBNETS)
def test_generation_with_a_cache_is_that_without(row: Row, subnet: Subnet) -> None:
    supernet, subnet = supernet_of(row), of_row(row, subnet)
    small = supernet.extract(subnet)
    expected = generate(small, use_cache=False)
    assert torch.equal(generate(small), expected)
    with supernet.activate(subnet):
        assert torch.equal(generate(supernet.model, use_cache=False), expected)
        assert torch.equal(generate(supernet.model), expected)
    assert torch.equal(generate(small, num_beams=2), generate(small, num_beams=2, use_cache=False))


@every_decoder
def test_a_saved_subnet_generates_the_same(row: Row, tmp_path: Path) -> None:
    supernet = supernet_of(row)
    supernet.model.generation_config.repetition_penalty = 1.5
    small = supernet.extract(of_row(row, SUBNETS["first"]))
    save_subnet(small, tmp_path)
    for again in (
        load_model(str(tmp_path), row.auto_class),
        row.auto_class.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        assert again.generation_config.repetition_penalty == 1.5
        assert torch.equal(generate(again), generate(small))
    supernet.model.generation_config.repetition_penalty = 1.0


def test_a_narrower_subnet_under_another_head(tmp_path: Path) -> None:
    small = supernet_of(LLAMA).extract(SUBNETS["first"])
    save_subnet(small, tmp_path)
    other = load_model(str(tmp_path), AutoModelForSequenceClassification, num_labels=3)
    assert other.score.weight.shape == (3, 20)
    assert all(torch.equal(a, b) for a, b in zip(other.model.parameters(), small.model.parameters(), strict=True))
    assert other(**LLAMA.batch() | {"labels": torch.tensor([0, 2, 1])}).loss.isfinite()


ROTATIONS = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 4},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 4,
    },
}


@pytest.mark.parametrize("kind", ROTATIONS)
def test_rotary_positions_of_any_kind_survive(kind: str, tmp_path: Path) -> None:
    """In memory, where they are copied, and from disk, where the config tells them."""
    rope = {"rope_type": kind, "rope_theta": 500.0, **ROTATIONS[kind]}
    supernet = Supernet(LLAMA.build(rope_parameters=rope))
    for name, subnet in (("own", SUBNETS["first"]), ("plain", UNIFORM["everything"])):
        small = supernet.extract(subnet)
        with supernet.activate(subnet):
            expected = generate(supernet.model)
        assert torch.equal(generate(small), expected)
        save_subnet(small, tmp_path / name)
        assert torch.equal(generate(load_model(str(tmp_path / name), LLAMA.auto_class)), expected)


# -- layers of two kinds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skipped", [(0,), (1,), (0, 1), (1, 2)], ids=str)
def test_layers_of_two_kinds_keep_their_places_in_the_cache(skipped: tuple[int, ...]) -> None:
    """The first layer sees everything, the others a window of 4 tokens."""
    supernet = supernet_of(MIXED_QWEN)
    subnet = skips({"mha_block": skipped})
    small = supernet.extract(subnet)
    expected = generate(small, use_cache=False)
    assert torch.equal(generate(small), expected)
    with supernet.activate(subnet):
        assert torch.equal(generate(supernet.model, use_cache=False), expected)
        if 0 not in skipped:
            assert torch.equal(generate(supernet.model), expected)
        else:  # no layer of the first one's kind is left, whose keys tell how long the cache is
            with pytest.raises(ValueError, match="pass use_cache=False, or extract the subnet"):
                generate(supernet.model)


def test_a_skipped_layer_takes_its_kind_along() -> None:
    supernet = supernet_of(MIXED_QWEN)
    small = supernet.extract({Key("layer_block", 0): 0})
    assert type(small) is MIXED_QWEN.model_class
    assert small.config.layer_types == ["sliding_attention", "sliding_attention"]
    assert torch.equal(generate(small), generate(small, use_cache=False))
    assert supernet.model.config.layer_types[0] == "full_attention"


# -- ordinary checkpoints ----------------------------------------------------------------------------------------------

UNIFORM: dict[str, dict[Key, int]] = {
    "kv": {Key("kv", layer): 1 for layer in range(3)},
    "ffn and a layer": {**{Key("ffn", layer): 11 for layer in (0, 2)}, Key("layer_block", 1): 0},
    "hidden": {Key("hidden"): 24},
    "everything": {
        **{Key(dim, layer): size for layer in (1, 2) for dim, size in (("kv", 1), ("ffn", 5))},
        Key("hidden"): 16,
        Key("layer_block", 0): 0,
    },
}


@every_decoder
@pytest.mark.parametrize("subnet", UNIFORM.values(), ids=UNIFORM)
def test_alike_layers_are_an_ordinary_checkpoint(row: Row, subnet: Subnet, tmp_path: Path) -> None:
    """If the config expresses the sizes. The head size stays, whatever the hidden size and the number of heads."""
    supernet, subnet = supernet_of(row), of_row(row, subnet)
    small = supernet.extract(subnet)
    ordinary = {key.dim for key in subnet} <= {*row.expressed, "layer_block"}
    assert (type(small) is row.model_class) == ordinary
    save_subnet(small, tmp_path)
    again = row.auto_class.from_pretrained(tmp_path, trust_remote_code=not ordinary)
    assert type(again).__name__ == type(small).__name__
    if "head_dim" in supernet.blueprint.family.attributes:
        assert again.config.head_dim == supernet.blueprint.full[Key("hd", 0)]
    assert torch.equal(generate(again), generate(small))
    with torch.no_grad(), supernet.activate(subnet):
        torch.testing.assert_close(outputs(again, row.batch()), outputs(supernet.model, row.batch()), rtol=0, atol=1e-6)


def test_a_hidden_size_that_llamas_config_refuses_is_no_other_model(tmp_path: Path) -> None:
    supernet = supernet_of(LLAMA)
    small = supernet.extract({Key("hidden"): 30})  # 4 heads
    assert type(small).__name__ == "SubnetLlamaForCausalLM"
    save_subnet(small, tmp_path)
    again = load_model(str(tmp_path), LLAMA.auto_class)
    assert torch.equal(generate(again), generate(small))


def test_layers_that_are_not_alike_keep_what_they_compute(tmp_path: Path) -> None:
    """GPT-2 may scale scores by the number of the layer: one layer fewer is no ordinary GPT-2."""
    row = next(row for row in DECODERS if row.config_class is GPT2Config)
    skip: Subnet = {Key("layer_block", 0): 0}
    assert type(supernet_of(row).extract(skip)) is row.model_class
    supernet = Supernet(row.build(scale_attn_by_inverse_layer_idx=True))
    small = supernet.extract(skip)
    assert type(small).__name__ == "SubnetGPT2LMHeadModel"
    save_subnet(small, tmp_path)
    with torch.no_grad(), supernet.activate(skip):
        expected = outputs(supernet.model, row.batch())
    for model in (small, load_model(str(tmp_path), row.auto_class)):
        with torch.no_grad():
            torch.testing.assert_close(outputs(model, row.batch()), expected, rtol=0, atol=1e-6)


# -- the hidden size enters a space when it is asked for ---------------------------------------------------------------


def loss(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**batch).loss


@pytest.mark.parametrize("criterion", ["taylor", "gate", "l1"])
def test_the_hidden_size_is_varied_only_if_asked_for(criterion: str) -> None:
    model, batch = LLAMA.build(), LLAMA.batch()
    blueprint = Blueprint.of(model)
    scores = CRITERIA[criterion](model, blueprint, [batch], loss)
    units = width_scores(blueprint, scores, "mean")
    assert {key.dim for key in units} == {"kv", "ffn"} == {key.dim for key in order_scores(blueprint, scores)}
    config = check_config({"bootstrapNAS": {"training": {"elasticity": {"available_elasticity_dims": ["width"]}}}})
    assert Key("hidden") not in {key for gene in listed_space(config, blueprint).genes for key in gene.keys}
    units = width_scores(blueprint, scores, "mean", also=["hidden"])
    full = count_macs(blueprint, length=LENGTH)
    space = generate_space(blueprint, units, mac_targets(full, 0.3), length=LENGTH).space
    assert Key("hidden") in {key for gene in space.genes for key in gene.keys}
    before = outputs(model, batch).detach()
    supernet = Supernet(model, space)
    supernet.reorder(orders(units))
    with torch.no_grad():
        torch.testing.assert_close(outputs(model, batch), before, rtol=0, atol=1e-5)


def test_movement_scores_lead_to_a_space_of_key_value_groups_and_channels() -> None:
    model, batch = LLAMA.build().train(), LLAMA.batch()
    blueprint, names = Blueprint.of(model), NodeNames.of(model)
    structures = structures_of(check_config(default_movement_config(blueprint, names.linears, 1)), names)
    assert len(structures) == 7 * 3  # all of a layer's, not the output layer
    assert structures["model.layers.0.self_attn.k_proj"] == Block(8, 8)  # a head; that of the queries is two
    assert structures["model.layers.0.self_attn.q_proj"] == Block(16, 16)
    settings = MovementSettings(warmup_start_epoch=1, warmup_end_epoch=2, importance_regularization_factor=0.02)
    control = attach(model, structures, settings, steps_per_epoch=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        control.step(step)
        optimizer.zero_grad()
        (model(**batch).loss + control.loss()).backward()
        optimizer.step()
    units = width_scores(blueprint, control.scores(), "prefix")
    assert units.keys() == set(blueprint.widths)
    assert all(scores.isfinite().all() and len(scores.unique()) > 1 for scores in units.values())


PYTHIA = {"vocab_size": 50432, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 16384}


@pytest.mark.parametrize(
    ("config", "architecture", "params"),
    [
        (GPT2Config(), "GPT2LMHeadModel", 124_439_808),
        (BloomConfig(vocab_size=250880, hidden_size=4096, n_layer=30, n_head=32), "BloomForCausalLM", 7_069_016_064),
        (OPTConfig(), "OPTForCausalLM", 125_239_296),
        (GPTNeoXConfig(**PYTHIA, num_attention_heads=32), "GPTNeoXForCausalLM", 6_857_302_016),
    ],
    ids=["GPT-2", "BLOOM-7B1", "OPT-125M", "Pythia-6.9B"],
)
def test_parameters_are_the_published_ones(config: PreTrainedConfig, architecture: str, params: int) -> None:
    assert count_params(Blueprint(config, architecture)) == params


def test_counts_of_llama_7b_are_the_published_ones() -> None:
    blueprint = Blueprint(LlamaConfig(), "LlamaForCausalLM")
    assert count_params(blueprint) == 6_738_415_616
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    assert count_macs(blueprint, length=256) == 256 * (32 * layer + 32000 * 4096) + 32 * 2 * 4096 * 256**2


def test_replicas_of_data_parallelism_compute_the_subnet() -> None:
    """Their parameters are plain attributes, copies on other devices that gradients pass through."""
    supernet = Supernet(LLAMA.build())
    copies = {module: module._replicate_for_data_parallel() for module in supernet.model.modules()}
    for module, copy in copies.items():
        copy._modules.update({name: copies[child] for name, child in module._modules.items()})
        for name, parameter in module._parameters.items():
            setattr(copy, name, None if parameter is None else parameter * 1)
    subnet = {Key("hidden", None): 24, Key("kv", 1): 1, Key("ffn_block", 2): 0}
    with supernet.activate(subnet), torch.no_grad():
        inputs = LLAMA.batch()
        assert torch.equal(copies[supernet.model](**inputs).logits, supernet.model(**inputs).logits)
