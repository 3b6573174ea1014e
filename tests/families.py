"""The rows of the conformance suite: one per family and architecture, and a toy family with what BERT lacks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
import transformers
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BloomConfig,
    Cache,
    DistilBertConfig,
    ElectraConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MobileBertConfig,
    ModernBertConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Dim, Key, embedding, linear, norm
from bootstrapnas.families import Family
from bootstrapnas.families.base import Block

LENGTH = 9
BATCH = 3
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "num_labels": 3,
    "pad_token_id": 0,
}
TARGETS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "SequenceClassification": lambda: {"labels": torch.tensor([0, 2, 1])},
    "QuestionAnswering": lambda: {"start_positions": torch.tensor([1, 0, 3]), "end_positions": torch.tensor([2, 4, 3])},
    "TokenClassification": lambda: {"labels": torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % 3},
    "MaskedLM": lambda: {"labels": torch.arange(BATCH * LENGTH).view(BATCH, LENGTH).where(MASKED, torch.tensor(-100))},
    "CausalLM": lambda: {"labels": torch.arange(BATCH * LENGTH).view(BATCH, LENGTH).where(MASKED, torch.tensor(-100))},
}
MASKED = torch.arange(LENGTH) % 2 == 0


def skip_in_bert(layer: nn.Module, block: str) -> None:
    """Skip a half-block by other means than the engine's, as published."""
    if block == "mha_block":
        layer.attention.forward = lambda x, *_, **__: (x, None)
    else:
        layer.feed_forward_chunk = layer.output.LayerNorm.forward


def skip_in_distilbert(layer: nn.Module, block: str) -> None:
    layer.skipped = {*getattr(layer, "skipped", ()), block}

    def forward(x: Tensor, mask: Tensor | None = None, **others: Any) -> Tensor:
        if "mha_block" not in layer.skipped:
            x = layer.sa_layer_norm(layer.attention(x, attention_mask=mask, **others)[0] + x)
        return layer.output_layer_norm(x if "ffn_block" in layer.skipped else layer.ffn(x) + x)

    layer.forward = forward


def skip_in_mobilebert(layer: nn.Module, block: str) -> None:
    """Skip a half-block: attention returns its residual, a stacked FFN its input, the last one keeps what follows."""
    if block == "mha_block":
        layer.attention.forward = lambda query, key, value, residual, *_, **__: (residual, None)
    elif block == "ffn_block":
        output = layer.output
        output.forward = lambda _, inner, outer: output.bottleneck(output.LayerNorm(inner), outer)
    else:
        layer.ffn[int(block[4])].forward = lambda x: x


def skip_in_modernbert(layer: nn.Module, block: str) -> None:
    """Skip a pre-norm half-block by adding nothing."""
    if block == "mha_block":
        layer.attn.forward = lambda x, **_: (torch.zeros_like(x), None)
    else:
        layer.mlp.forward = torch.zeros_like


def skip_in_llama(layer: nn.Module, block: str) -> None:
    """Skip a pre-norm half-block by adding nothing."""
    if block == "mha_block":
        layer.self_attn.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states), None)
    else:
        layer.mlp.forward = torch.zeros_like


def skip_in_bloom(layer: nn.Module, block: str) -> None:
    """Skip a half-block that adds its residual, its second argument, itself."""
    if block == "mha_block":
        layer.self_attention.forward = lambda x, residual, **_: (residual, None)
    else:
        layer.mlp.forward = lambda x, residual: residual


def skip_in_gpt_neox(layer: nn.Module, block: str) -> None:
    if block == "mha_block":
        layer.attention.forward = lambda x, **_: (torch.zeros_like(x), None)
    else:
        layer.mlp.forward = torch.zeros_like


def skip_in_gpt2(layer: nn.Module, block: str) -> None:
    if block == "mha_block":
        layer.attn.forward = lambda x, **_: (torch.zeros_like(x), None)
    else:
        layer.mlp.forward = torch.zeros_like


def skip_in_opt(layer: nn.Module, block: str) -> None:
    """Skip a half-block with its norm, which may come after it."""
    if block == "mha_block":
        layer.self_attn.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states), None)
        layer.self_attn_layer_norm.forward = lambda x: x
    else:
        layer.fc2.forward = lambda x: x.new_zeros(())
        layer.final_layer_norm.forward = lambda x: x


def tell_nothing(layer: nn.Module, units: int) -> None:
    """Code that reads its sizes from tensors needs not be told how many units of attention there are."""


def tell_gpt2(layer: nn.Module, units: int) -> None:
    layer.attn.split_size = units * layer.attn.head_dim


def tell_opt(layer: nn.Module, units: int) -> None:
    layer.self_attn.num_heads = units


def tell_phi3(layer: nn.Module, units: int) -> None:
    attention = layer.self_attn
    attention.config = copy.copy(attention.config)
    attention.config.num_attention_heads = attention.num_key_value_groups * units
    attention.num_key_value_heads = units


@dataclass(frozen=True)
class Row:
    """A family and architecture under test.

    `sizes` are config attributes of the family that have other names than BERT's; `skip` is the oracle that skips a
    block of a layer without the engine, `tell` the one that tells a layer's code its units of attention; `ordered` are
    dimensions whose order has a meaning (rotary positions); `unit` is the unit of attention (none: its heads are
    fixed), `ffns` are the widths of FFNs, `expressed` are dimensions of which a config expresses any size, and
    `embeddings` the paths of all embeddings in the base model.
    """

    model_class: type[PreTrainedModel]
    config_class: type[PreTrainedConfig]
    auto_class: Any
    sizes: tuple[tuple[str, Any], ...] = ()
    skip: Callable[[nn.Module, str], None] = skip_in_bert
    tell: Callable[[nn.Module, int], None] = tell_nothing
    ordered: tuple[str, ...] = ()
    unit: str = "head"
    ffns: tuple[str, ...] = ("ffn",)
    expressed: tuple[str, ...] = ("ffn",)
    embeddings: tuple[str, ...] = ("embeddings",)

    @property
    def name(self) -> str:
        return self.model_class.__name__

    @property
    def head(self) -> str:
        return "CausalLM" if self.name.endswith("LMHeadModel") else self.name.partition("For")[2]

    @property
    def units(self) -> tuple[str, ...]:
        """The elastic widths of a layer."""
        return (self.unit, *self.ffns) if self.unit else self.ffns

    @property
    def attention(self) -> str:
        """The implementation of attention that models have by themselves."""
        return "sdpa" if self.model_class._supports_sdpa else "eager"

    def build(self, attention: str = "", seed: int = 0, **changes: Any) -> PreTrainedModel:
        """Build the tiny model in evaluation mode, with biases and norms that are not trivial."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the seed of devices that are not there keeps a traceback
            labels = 2 if "QuestionAnswering" in self.name else SIZES["num_labels"]
            sizes = {**SIZES, **dict(self.sizes), "num_labels": labels, **changes}
            sizes = {name: list(size) if isinstance(size, tuple) else size for name, size in sizes.items()}
            model = self.model_class(self.config_class(**sizes, attn_implementation=attention or self.attention))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model.eval()

    def batch(self) -> dict[str, Tensor]:
        """Return inputs [BATCH, LENGTH], the first of them padded, and the targets of the task."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(1, SIZES["vocab_size"], (BATCH, LENGTH), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 6:] = 0
        return {"input_ids": ids * mask, "attention_mask": mask, **(TARGETS[self.head]() if self.head else {})}


HEADS = ("SequenceClassification", "QuestionAnswering", "", "TokenClassification", "MaskedLM")


def class_name(stem: str, head: str) -> str:
    """Return the name of a family's class with a head, or of its bare model."""
    if (stem, head) == ("GPT2", "CausalLM"):
        return "GPT2LMHeadModel"
    return f"{stem}For{head}" if head else f"{stem}Model"


def rows(stem: str, config_class: type[PreTrainedConfig], heads: Sequence[str] = HEADS, **settings: Any) -> list[Row]:
    """Return a row per head of the classes called ``<stem>For<head>``; no head is the bare model."""
    return [
        Row(
            getattr(transformers, class_name(stem, head)),
            config_class,
            getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel"),
            **settings,
        )
        for head in heads
    ]


MODERNBERT = {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "local_attention": 4}
MOBILEBERT = {"embedding_size": 8, "intra_bottleneck_size": 16, "attention_probs_dropout_prob": 0.1}
BIASES = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)


def modernbert_rows(heads: Sequence[str], **sizes: Any) -> list[Row]:
    """Return rows of ModernBERT: the first of its three layers has global attention, the others local."""
    return rows(
        "ModernBert",
        ModernBertConfig,
        heads,
        sizes=tuple({**MODERNBERT, **sizes}.items()),
        skip=skip_in_modernbert,
        ordered=("hd",),
    )


GROUPED = {"num_key_value_heads": 2, "eos_token_id": None, "bos_token_id": 1, "classifier_dropout": 0.0}
UNGROUPED = {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}
MIXED = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
"""The first layer of a Qwen sees everything, the others a window."""
ALTERNATING = {**MIXED, "layer_types": ("sliding_attention", "full_attention", "sliding_attention")}


def decoder_rows(stem: str, config_class: type[PreTrainedConfig], heads: Sequence[str], **sizes: Any) -> list[Row]:
    """Return rows of a decoder with LLaMA's layers: two groups of a key-value head and two query heads.

    Gemma's config scales the embeddings by the root of its hidden size, so a smaller one would be another model.
    """
    return rows(
        stem,
        config_class,
        heads,
        sizes=tuple({**GROUPED, **sizes}.items()),
        skip=skip_in_llama,
        ordered=("hd",),
        unit="kv",
        expressed=("ffn", "kv") if stem == "Gemma" else ("ffn", "kv", "hidden"),
        embeddings=("embed_tokens",),
    )


def bloom_rows(heads: Sequence[str]) -> list[Row]:
    """Return rows of BLOOM, whose heads have slopes by their numbers."""
    return rows(
        "Bloom",
        BloomConfig,
        heads,
        sizes=(("n_layer", 3), ("n_head", 4), ("hidden_dropout", 0.1), ("attention_dropout", 0.1)),
        skip=skip_in_bloom,
        ordered=("head",),
        unit="",
        expressed=(),
        embeddings=("word_embeddings", "word_embeddings_layernorm"),
    )


def gpt_neox_rows(heads: Sequence[str], **sizes: Any) -> list[Row]:
    """Return rows of GPT-NeoX, of whose heads a quarter of the channels is rotated."""
    dropout = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "eos_token_id": None}
    return rows(
        "GPTNeoX",
        GPTNeoXConfig,
        heads,
        sizes=tuple({**dropout, **sizes}.items()),
        skip=skip_in_gpt_neox,
        ordered=("hd",),
        embeddings=("embed_in",),
    )


def gpt2_rows(heads: Sequence[str], **sizes: Any) -> list[Row]:
    """Return rows of GPT-2, whose code reads from attributes how many channels heads have and linear layers put out."""
    dropout = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.1)
    return rows(
        "GPT2",
        GPT2Config,
        heads,
        sizes=tuple({"n_inner": 24, "eos_token_id": None, "bos_token_id": None, **dropout, **sizes}.items()),
        skip=skip_in_gpt2,
        tell=tell_gpt2,
        embeddings=("wte", "wpe"),
    )


def opt_rows(heads: Sequence[str], **sizes: Any) -> list[Row]:
    """Return rows of OPT, whose code reads its number of heads from an attribute."""
    return rows(
        "OPT",
        OPTConfig,
        heads,
        sizes=tuple({"ffn_dim": 24, "eos_token_id": None, **sizes}.items()),
        skip=skip_in_opt,
        tell=tell_opt,
        ordered=("hidden",),
        embeddings=("decoder.embed_tokens", "decoder.embed_positions"),
    )


POST_NORM = {"do_layer_norm_before": False, "word_embed_proj_dim": 16}
"""OPT-350m: norms after their halves of a layer, embeddings of another size."""
ROWS = (
    *rows("Bert", BertConfig),
    *rows("Roberta", RobertaConfig),
    *rows("DistilBert", DistilBertConfig, sizes=(("hidden_dim", 24),), skip=skip_in_distilbert),
    *rows("Electra", ElectraConfig, sizes=(("embedding_size", 16),)),
    *rows(
        "MobileBert",
        MobileBertConfig,
        sizes=tuple(MOBILEBERT.items()),
        skip=skip_in_mobilebert,
        ffns=("ffn_0", "ffn_1", "ffn_2", "ffn"),
        expressed=(),  # one attribute is the width of all four
    ),
    *rows("XLMRoberta", XLMRobertaConfig, ["SequenceClassification"]),  # RoBERTa's code under other names
    *modernbert_rows(["SequenceClassification", ""]),
    *modernbert_rows(["TokenClassification", "QuestionAnswering", "MaskedLM"], **BIASES),
    *decoder_rows("Llama", LlamaConfig, ["CausalLM", "SequenceClassification"]),
    *decoder_rows("Llama", LlamaConfig, ["", "TokenClassification"], **UNGROUPED),
    *decoder_rows("Mistral", MistralConfig, ["CausalLM"], sliding_window=4),
    *decoder_rows("Qwen2", Qwen2Config, ["CausalLM"], tie_word_embeddings=True),
    *decoder_rows("Qwen3", Qwen3Config, ["CausalLM"], head_dim=16, attention_bias=True, **ALTERNATING),
    *decoder_rows("Gemma", GemmaConfig, ["CausalLM"], head_dim=8),
    *bloom_rows(["CausalLM", "SequenceClassification", "", "TokenClassification"]),
    *gpt_neox_rows(["CausalLM", "SequenceClassification"]),
    *gpt_neox_rows(["", "TokenClassification"], use_parallel_residual=False, attention_bias=False),
    *gpt2_rows(["CausalLM", "SequenceClassification", ""]),
    *gpt2_rows(["TokenClassification", "QuestionAnswering"], n_inner=None, scale_attn_by_inverse_layer_idx=True),
    *opt_rows(["CausalLM"]),
    *opt_rows([""], **POST_NORM),
    *opt_rows(["SequenceClassification"], layer_norm_elementwise_affine=False, enable_bias=False),
    *(replace(row, tell=tell_phi3) for row in decoder_rows("Phi3", Phi3Config, ["CausalLM"])),
)
FAMILY_ROWS = tuple(
    next(row for row in ROWS if row.config_class is c) for c in dict.fromkeys(r.config_class for r in ROWS)
)
"""The first row of every family: enough for what does not depend on the head."""
ENCODER_ROWS = tuple(row for row in FAMILY_ROWS if row.head != "CausalLM")
"""The first row of every family of encoders: what EFTNAS's templates and the export of encoders are for."""
EXPORTED_ROWS = tuple(
    row for row in ROWS if row in ENCODER_ROWS or row.name in ("BertForTokenClassification", "BertForMaskedLM")
)
"""Every family and every head of encoders once; what else BERT has is exported in test_export.py."""


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors of one output: itself, those of a tuple, or the keys and values that a cache holds."""
    if isinstance(value, Cache):
        return [tensor for layer in value.layers if layer.is_initialized for tensor in (layer.keys, layer.values)]
    return list(value) if isinstance(value, tuple) else [value]


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return everything that the task reads from the model as one vector."""
    found = model(**batch)
    names = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
    return torch.cat([found[name].flatten() for name in names if found.get(name) is not None])


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the task's loss, or of a bare model one that depends on every output differently."""
    found = model(**batch)
    if "loss" in found:
        return found.loss
    flat = torch.cat([found[name].flatten() for name in ("last_hidden_state", "pooler_output") if name in found])
    return (flat * torch.linspace(-1, 1, flat.numel())).sum()


def gradients(model: nn.Module, batch: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor | None]:
    """Return the loss's gradients by parameter name; `seed` decides what dropout drops."""
    model.zero_grad(set_to_none=True)
    torch.default_generator.manual_seed(seed)
    loss(model, batch).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def smallest(blueprint: Blueprint, key: Key) -> int:
    return 0 if blueprint.is_block(key) else 1


def subnets(blueprint: Blueprint) -> st.SearchStrategy[dict[Key, int]]:
    """Return a strategy of arbitrary subnets; keys may be left out."""
    sizes = {key: st.integers(smallest(blueprint, key), blueprint.full[key]) for key in blueprint.elastic}
    return st.fixed_dictionaries({}, optional=sizes)


def random_subnet(blueprint: Blueprint, seed: int = 0) -> dict[Key, int]:
    """Return a subnet with every key drawn at random."""
    random = Random(seed)
    return {key: random.randint(smallest(blueprint, key), blueprint.full[key]) for key in blueprint.elastic}


# -- a family with a fused projection, an elastic hidden size and pre-norm blocks --------------------------------------


class ToyConfig(PreTrainedConfig):
    model_type = "toy"
    vocab_size: int = 20
    hidden_size: int = 12
    num_hidden_layers: int = 2
    num_heads: int = 3
    head_dim: int = 4
    queries: int = 1
    interleaved: bool = False
    intermediate_size: int = 10
    tie_word_embeddings: bool = True


class ToyLayer(nn.Module):
    """Pre-norm attention with one projection for queries, keys and values, then a feed-forward part.

    The projection has all queries, then all keys, then all values, or interleaved the three of a head after another.
    """

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.config = config
        self.norm = nn.LayerNorm(config.hidden_size)
        self.qkv = nn.Linear(config.hidden_size, (config.queries + 2) * inner)
        self.out = nn.Linear(config.queries * inner, config.hidden_size)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        qkv, per_head, size = self.qkv(self.norm(x)), self.config.queries + 2, self.config.head_dim
        if self.config.interleaved:
            parts = qkv.unflatten(-1, (-1, per_head, size)).unbind(-2)
        else:
            heads = qkv.shape[-1] // (per_head * size)
            parts = qkv.unflatten(-1, (-1, size)).split([self.config.queries * heads, heads, heads], -2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class ToyModel(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "toy"
    _supports_sdpa = True

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ToyLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("scale", torch.tensor(0.5))
        self.post_init()

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) * self.scale
        for layer in self.layers:
            x = layer(x)
        return self.decoder(self.norm(x))


class TiedToyModel(ToyModel):
    """Its decoder is its embedding table: one parameter under two names."""

    _tied_weights_keys = {"decoder.weight": "embed.weight"}  # noqa: RUF012 - as transformers has it

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder


TOY = Family(
    model_type="toy",
    base="toy",
    bare="ToyModel",
    stack="layers",
    num_layers=lambda config: config.num_hidden_layers,
    dims=(
        Dim("hidden", "hidden_size", per_layer=False),
        Dim("vocab", "vocab_size", per_layer=False, elastic=False),
        Dim("head", "num_heads"),
        Dim("query", "queries", per_layer=False, elastic=False),
        Dim("three", lambda _: 3, per_layer=False, elastic=False),
        Dim("hd", "head_dim", per_layer=False, elastic=False),
        Dim("ffn", "intermediate_size"),
    ),
    embeddings=embedding("embed", "vocab", "hidden"),
    layer={
        **norm("norm", "hidden"),
        **linear("qkv", "head hd + head hd + head hd", "hidden"),
        **linear("out", "hidden", "head query hd"),
        **linear("up", "ffn", "hidden"),
        **linear("down", "hidden", "ffn"),
    },
    architectures={
        name: {**norm("norm", "hidden"), **linear("decoder", "vocab", "hidden", bias=False, tied=tied)}
        for name, tied in (("ToyModel", ""), ("TiedToyModel", "embed.weight"))
    },
    blocks=(Block("ffn_block", {"up": "input", "down": "zero"}, nncf_start="", nncf_end=""),),
)
TIED_TOY = replace(TOY, bare="TiedToyModel")
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "concatenated": ("head hd + head hd + head hd", {}),
    "grouped": ("head query hd + head hd + head hd", {"queries": 2}),
    "interleaved": ("head three hd", {"interleaved": True}),
}
"""Ways to fuse queries, keys and values: labels of the fused axis, and the toy's settings."""


def toy_family(layout: str) -> Family:
    """Return the toy's family with another layout of the fused projection."""
    return replace(TOY, layer={**TOY.layer, **linear("qkv", LAYOUTS[layout][0], "hidden")})
