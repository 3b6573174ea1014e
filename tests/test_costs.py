"""Costs in closed form, against published figures, NNCF's check value and the tensors of real models."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from published_spaces import CONFIGS, SPACES, PublishedSpace
from transformers import AutoConfig

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import FULL, count_attention_macs, count_costs, count_macs, count_nncf_flops, count_params
from bootstrapnas.dims import Key
from bootstrapnas.families import FAMILIES

MILLION = 1e6


@pytest.mark.parametrize("published", SPACES, ids=lambda published: published.name)
def test_macs_of_published_spaces(published: PublishedSpace) -> None:
    blueprint, space = published.blueprint(), published.space()
    smallest, largest = (
        count_macs(blueprint, space.subnet(genome), length=published.length, head=not published.is_squad) / MILLION
        for genome in (space.min_genome, space.max_genome)
    )
    assert (smallest, largest) == pytest.approx(published.mmacs, abs=1)


def test_the_table_is_whole() -> None:
    assert len(SPACES) == 18
    for published in SPACES:
        config = CONFIGS[published.model]
        assert len(published.sizes("head")) == len(published.sizes("ffn")) == config.num_hidden_layers
        assert {sizes[0] for sizes in published.sizes("head")} == {config.num_attention_heads}
        assert {sizes[0] for sizes in published.sizes("ffn")} == {config.intermediate_size}


def test_bert_base_at_128_tokens() -> None:
    # Per layer: 4 projections of attention, 2 matrices of the FFN, 2 products of attention; then pooler and classifier.
    layer = 128 * (4 * 768 * 768 + 2 * 768 * 3072) + 2 * 768 * 128 * 128
    by_hand = 12 * layer + 768 * 768 + 2 * 768
    blueprint = Blueprint(CONFIGS["s1_bert_base"], "BertForSequenceClassification")
    assert count_macs(blueprint, length=128) == by_hand == 11_174_217_216
    assert count_params(blueprint) == 109_483_778


def test_skipped_blocks_cost_nothing() -> None:
    blueprint = Blueprint(CONFIGS["s1_bert_base"], "BertForSequenceClassification")
    skipped = {Key(block, layer): 0 for block in ("mha_block", "ffn_block") for layer in range(12)}
    assert count_macs(blueprint, skipped, length=128) == 768 * 768 + 2 * 768
    assert count_attention_macs(blueprint, {Key("mha_block", 0): 0}, length=128) == 11 * 2 * 768 * 128 * 128


def tiny(model_type: str, num_labels: int = 2) -> SimpleNamespace:
    return SimpleNamespace(
        model_type=model_type,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=120,
        max_position_embeddings=64,
        embedding_size=32,
        intra_bottleneck_size=32,
        type_vocab_size=2,
        num_labels=num_labels,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    )


def test_flops_of_nncf() -> None:
    blueprint = Blueprint(tiny("bert"), "BertForSequenceClassification")
    assert count_nncf_flops(blueprint, length=128) == 16_785_664
    costs = count_costs(blueprint, FULL, length=128)
    assert 2 * costs.nncf_macs == 16_785_664
    assert costs.macs - costs.nncf_macs == 2 * 2 * 64 * 128 * 128
    assert costs.length == 128


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_labelled_architecture_has_the_parameters_that_are_counted(model_type: str) -> None:
    for architecture in FAMILIES[model_type].architectures:
        labels = 2 if "QuestionAnswering" in architecture else 3
        with torch.device("meta"):
            model = getattr(transformers, architecture)(AutoConfig.for_model(**vars(tiny(model_type, labels))))
        blueprint = Blueprint.of(model)
        named = model.named_parameters(remove_duplicate=False)
        tables = {id(p) for name, p in named if re.search(r"embed\w*(?<!project)\.|\bw[tp]e\.", name)}
        outside = sum(p.numel() for p in model.parameters() if id(p) not in tables)
        assert count_params(blueprint) == sum(p.numel() for p in model.parameters())
        assert count_params(blueprint, embeddings=False) == outside


def test_counting_needs_no_torch() -> None:
    modules = "bootstrapnas.costs, bootstrapnas.space, bootstrapnas.schedule, bootstrapnas.nncf_config"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
