"""The model that a config is for, as far as its node names and widths tell. Free of torch.

Node names hold the class of the model, its layers and its modules; the largest width of a group is how many outputs the
layers in it have. That is enough to know the published models by their shape. What it does not tell stays unknown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.errors import UserError
from bootstrapnas.families import DECODERS, FAMILIES, Family
from bootstrapnas.families.adapted import Adapters, adapted_family
from bootstrapnas.nncf_config.node_names import EVERY_LAYER, module_path
from bootstrapnas.nncf_config.reading import NNCFConfig

_ADAPTERS: Final = re.compile(r"\.(base_layer|lora_A|lora_B)(\.\w+)?$")
_BERT: Final = {
    "attention.self.query": "hidden_size",
    "attention.self.key": "hidden_size",
    "attention.self.value": "hidden_size",
    "attention.output.dense": "hidden_size",
    "intermediate.dense": "intermediate_size",
    "output.dense": "hidden_size",
}

OTHER_NAMES: Final = {
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "ffn_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
}
"""What some types of model call an attribute -> what most do."""


def _widths(family: Family) -> dict[str, str]:
    """Return the linear layers of a layer whose outputs are one dimension, with the config attribute of its size."""
    named = {dim.name: OTHER_NAMES.get(dim.source, dim.source) for dim in family.dims if isinstance(dim.source, str)}
    sources = {"ffn": "intermediate_size", **named}  # also where a type of model derives it from its hidden size
    outputs = {name.removesuffix(".weight"): labels.outputs for name, labels in family.layer.items() if labels.applied}
    return {module: sources[out] for module, out in outputs.items() if out in sources}


LAYOUTS: Final[Mapping[str, Mapping[str, str]]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": {
        "attention.q_lin": "hidden_size",
        "attention.k_lin": "hidden_size",
        "attention.v_lin": "hidden_size",
        "attention.out_lin": "hidden_size",
        "ffn.lin1": "intermediate_size",
        "ffn.lin2": "hidden_size",
    },
    "modernbert": {
        "attn.Wqkv": "hidden_size",  # a fused layer counts the channels of one part
        "attn.Wo": "hidden_size",
        "mlp.Wi": "intermediate_size",
        "mlp.Wo": "hidden_size",
    },
    **{family.model_type: _widths(family) for family in DECODERS},
}
"""Model type -> linear layer of a layer of the stack -> the size that its number of outputs is."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A published model, known by its shape.

    Attributes
    ----------
    name
        What people call it.
    hub_id
        Where its vocabulary and positions are from; other checkpoints of the shape may differ in them.
    config
        Attributes of its Hugging Face config.
    """

    name: str
    hub_id: str
    config: Mapping[str, int | str]


def _known(name: str, hub_id: str, model_type: str, sizes: str, **others: int) -> KnownModel:
    """Return a known model; `sizes` are its layers, hidden size, heads and FFN."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    numbers = dict(zip(names, map(int, sizes.split()), strict=True))
    return KnownModel(name, hub_id, {"model_type": model_type, **numbers, **others})


_UNCASED: Final = {"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
_BPE: Final = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
_MULTILINGUAL: Final = {**_BPE, "vocab_size": 250002}
_ELECTRA: Final = "google/electra-"
_MODERN: Final = {
    "vocab_size": 50368,
    "max_position_embeddings": 8192,
    **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), 0),
    "decoder_bias": 1,
    "tie_word_embeddings": 1,
}
_SMALL_WORDS: Final = {**_UNCASED, "embedding_size": 128}
_WIDE_WORDS: Final = {**_UNCASED, "embedding_size": 768}
_LLAMA: Final = {
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "head_dim": 128,
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings"), 0),
}
_BLOOM: Final = {"vocab_size": 250880, "tie_word_embeddings": 1}
KNOWN: Final = (
    _known("BERT-base", "google-bert/bert-base-uncased", "bert", "12 768 12 3072", **_UNCASED),
    _known("BERT-large", "google-bert/bert-large-uncased", "bert", "24 1024 16 4096", **_UNCASED),
    _known("BERT-medium", "google/bert_uncased_L-8_H-512_A-8", "bert", "8 512 8 2048", **_UNCASED),
    _known("BERT-small", "google/bert_uncased_L-4_H-512_A-8", "bert", "4 512 8 2048", **_UNCASED),
    _known("BERT-mini", "google/bert_uncased_L-4_H-256_A-4", "bert", "4 256 4 1024", **_UNCASED),
    _known("BERT-tiny", "google/bert_uncased_L-2_H-128_A-2", "bert", "2 128 2 512", **_UNCASED),
    _known("MiniLM-L6", "sentence-transformers/all-MiniLM-L6-v2", "bert", "6 384 12 1536", **_UNCASED),
    _known("MiniLM-L12", "microsoft/MiniLM-L12-H384-uncased", "bert", "12 384 12 1536", **_UNCASED),
    _known("DistilBERT", "distilbert/distilbert-base-uncased", "distilbert", "6 768 12 3072", **_UNCASED),
    _known("RoBERTa-base", "FacebookAI/roberta-base", "roberta", "12 768 12 3072", **_BPE),
    _known("RoBERTa-large", "FacebookAI/roberta-large", "roberta", "24 1024 16 4096", **_BPE),
    _known("XLM-R-base", "FacebookAI/xlm-roberta-base", "xlm-roberta", "12 768 12 3072", **_MULTILINGUAL),
    _known("XLM-R-large", "FacebookAI/xlm-roberta-large", "xlm-roberta", "24 1024 16 4096", **_MULTILINGUAL),
    _known(
        "ELECTRA-small", f"{_ELECTRA}small-discriminator", "electra", "12 256 4 1024", **_UNCASED, embedding_size=128
    ),
    _known(
        "ELECTRA-base", f"{_ELECTRA}base-discriminator", "electra", "12 768 12 3072", **_UNCASED, embedding_size=768
    ),
    _known("ModernBERT-base", "answerdotai/ModernBERT-base", "modernbert", "22 768 12 1152", **_MODERN),
    _known("ModernBERT-large", "answerdotai/ModernBERT-large", "modernbert", "28 1024 16 2624", **_MODERN),
    _known("LLaMA-7B", "huggyllama/llama-7b", "llama", "32 4096 32 11008", num_key_value_heads=32, **_LLAMA),
    _known("LLaMA-13B", "huggyllama/llama-13b", "llama", "40 5120 40 13824", num_key_value_heads=40, **_LLAMA),
    _known("BLOOMZ-7B1", "bigscience/bloomz-7b1", "bloom", "30 4096 32 16384", **_BLOOM),
)


@dataclass(frozen=True, slots=True)
class Member:
    """One layer in a group: its module inside a layer of the stack, and which (`None`: outside, -1: every one)."""

    module: str
    layer: int | None

    @property
    def adapted(self) -> str:
        """The module that an adapter's matrix or frozen weight belongs to; any other is itself."""
        return _ADAPTERS.sub("", self.module)

    @property
    def is_rank(self) -> bool:
        """Whether its outputs are the ranks of an adapter."""
        return ".lora_A" in self.module


@dataclass(frozen=True, slots=True)
class Group:
    """One of ``overwrite_groups``: its layers and its widths, in channels, descending."""

    members: tuple[Member, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Implied:
    """What a config tells about the model it is for.

    Attributes
    ----------
    architecture
        Class of the model in the node names, without wrappers; `None` without node names.
    model_type
        Its ``config.model_type``, `None` where unknown.
    adapters
        The adapters that nodes belong to, as large as the groups say; `None` if none does.
    sizes
        The sizes that widths and names tell, by attribute of the config.
    known
        The published model of these sizes, if there is just one.
    """

    architecture: str | None
    model_type: str | None
    adapters: Adapters | None
    sizes: Mapping[str, int]
    known: KnownModel | None


def groups_of(config: NNCFConfig) -> tuple[Group, ...]:
    """Return the groups that a config lists, in its order."""
    width = config.training.elasticity.width
    return tuple(
        Group(tuple(_member(node) for node in nodes), tuple(sorted(set(widths), reverse=True)))
        for nodes, widths in zip(width.overwrite_groups or (), width.overwrite_groups_widths or (), strict=True)
    )


def implied_model(config: NNCFConfig) -> Implied:
    """Return what a config's node names and widths tell about its model."""
    groups = groups_of(config)
    nodes = tuple(_nodes(config))
    architecture = next((found for node in nodes if (found := _architecture(node))), None)
    model_type = None if architecture is None else _model_type(architecture)
    sizes = _sizes(groups, model_type, nodes)
    matches = [
        known
        for known in KNOWN
        if known.config["model_type"] == model_type
        and len(sizes) > 1  # layers alone say little
        and all(known.config[name] == size for name, size in sizes.items())
    ]
    known = matches[0] if len(matches) == 1 else None
    return Implied(architecture, model_type, _adapters(groups, nodes), sizes, known)


def _adapters(groups: Iterable[Group], nodes: Iterable[str]) -> Adapters | None:
    targets = [member.adapted for member in map(_member, nodes) if _ADAPTERS.search(member.module)]
    ranks = [max(group.widths) for group in groups if any(member.is_rank for member in group.members)]
    return Adapters(tuple(dict.fromkeys(targets)), max(ranks, default=1)) if targets else None


def labels_with(family: Family, adapters: Adapters | None) -> Family:
    """Return a family's labels with the adapters that a config implies, if any."""
    return family if adapters is None else adapted_family(family, adapters)


def implied_blueprint(implied: Implied, widths: Iterable[int]) -> Blueprint | None:
    """Return the blueprint of the implied model, or `None` where that much is not known.

    A classifier's labels are not known, so it has none here. A model that is not a published one has no vocabulary
    and no positions either, and heads as large as `widths` (of attention) allow: its embeddings and its units mean
    nothing, while MACs and the parameters of its layers, which depend on neither, are right.
    """
    family = FAMILIES.get(implied.model_type or "")
    architecture = implied.architecture
    if family is None or architecture is None or architecture not in family.architectures:
        return None
    family = labels_with(family, implied.adapters)
    sizes: dict[str, Any] = dict(implied.sizes)
    if implied.known is not None:
        sizes = dict(implied.known.config)
    elif len(sizes) == 3:
        heads = sizes["hidden_size"] // math.gcd(sizes["hidden_size"], *widths)
        sizes |= {"model_type": implied.model_type, "num_attention_heads": heads}
        sizes |= {"vocab_size": 0, "max_position_embeddings": 0, "type_vocab_size": 0}
    else:
        return None
    try:
        return Blueprint(named_config({**sizes, "num_labels": labels_of(architecture)}), architecture, family)
    except AttributeError:  # the family needs a size that neither widths nor names tell
        return None


def labels_of(architecture: str) -> int:
    """Return how many labels a head has by itself: start and end of an answer; those of a classifier are not known."""
    return 2 if architecture.endswith("ForQuestionAnswering") else 0


def named_config(attributes: Mapping[str, Any]) -> SimpleNamespace:
    """Return attributes of a model's config as an object, under all names that types of models have for them."""
    usual = {usual: attributes[other] for other, usual in OTHER_NAMES.items() if other in attributes}
    every = {**usual, **attributes}
    return SimpleNamespace(
        **{**{other: every[usual] for other, usual in OTHER_NAMES.items() if usual in every}, **every}
    )


def check_model(config: NNCFConfig, given: Any, whose: str) -> None:
    """Raise `UserError` if a config is for another model than `given`, naming the first group that does not fit.

    Parameters
    ----------
    config
        The NNCF config.
    given
        A Hugging Face config, or what is read from its ``config.json``.
    whose
        The model, for the message.
    """
    implied = implied_model(config)
    layers = getattr(given, "num_hidden_layers", None)
    layout = LAYOUTS.get(given.model_type, {})
    here = f"{implied.known.name if implied.known else implied.architecture}: {shape_of(implied.sizes)}"
    shape = {name: size for name in _SHAPE if (size := size_of(given, name)) is not None}
    there = f"{given.model_type}: {shape_of(shape)}"
    for index, group in enumerate(groups_of(config)):
        member = next((member for member in group.members if not member.is_rank), group.members[0])
        name = member.module if member.layer in (None, -1) else f"{member.module} of layer {member.layer}"
        attribute = layout.get(member.adapted)
        size = None if attribute is None or member.is_rank else size_of(given, attribute)
        if implied.model_type not in (None, given.model_type):
            difference = "is of another type"
        elif layers is not None and member.layer is not None and member.layer >= layers:
            difference = f"is beyond the model's {layers} layers"
        # Widths below the full one are allowed; those of another published model are a mistake.
        elif size is not None and (group.widths[0] > size or (group.widths[0] < size and implied.known is not None)):
            difference = f"has {group.widths[0]} channels in the config, {size} in the model"
        else:
            continue
        raise UserError(
            f"{config.path} does not fit {whose}: {name} (bootstrapNAS.training.elasticity.width.overwrite_groups"
            f"[{index}]) {difference}; the config is for {here}, the model is {there}"
        )


def size_of(given: Any, attribute: str) -> int | None:
    """Return a size by its usual name from a model's config, which may derive that of the FFN; `None` if it cannot."""
    try:
        if attribute == "intermediate_size" and given.model_type in FAMILIES:
            for dim in FAMILIES[given.model_type].dims:
                if dim.name == "ffn":
                    return dim.size(given)
        return int(getattr(given, attribute))
    except AttributeError:
        return None


_SHAPE: Final = {
    "num_hidden_layers": "{} layers",
    "hidden_size": "hidden {}",
    "num_attention_heads": "{} heads",
    "intermediate_size": "FFN {}",
}


def shape_of(sizes: Mapping[str, Any]) -> str:
    """Return the sizes of a model in a few words."""
    shown = [text.format(sizes[name]) for name, text in _SHAPE.items() if name in sizes]
    return (
        ", ".join(words.removesuffix("s") if words.startswith("1 ") else words for words in shown) or "no sizes known"
    )


# -- node names --------------------------------------------------------------------------------------------------------


def _nodes(config: NNCFConfig) -> Iterator[str]:
    elasticity = config.training.elasticity
    for group in elasticity.width.overwrite_groups or ():
        yield from group
    yield from elasticity.width.add_dynamic_inputs
    for block in (*(elasticity.depth.skipped_blocks or ()), *elasticity.depth.fixed_skipped_blocks):
        yield from block


def _architecture(node: str) -> str | None:
    """Return the class of the model in a node name: the last ``...For...`` or ``...Model``, wrappers come before it."""
    classes = [element.partition("[")[0] for element in node.removeprefix("{re}").split("/")]
    heads = [name for name in classes if re.fullmatch(r"(?!Peft)\w+For[A-Z]\w+", name)]
    bare = [name for name in classes if re.fullmatch(r"(?!Lora)\w+Model", name)]
    return next(iter([*heads, *bare]), None)


def _model_type(architecture: str) -> str | None:
    """Return the model type of a class, by the registered families, else by the known models."""
    for model_type, family in FAMILIES.items():
        if architecture in family.architectures:
            return model_type
    name = re.split(r"For[A-Z]|Model$", architecture)[0].lower()
    return name if name in {*FAMILIES, *LAYOUTS} else None


def _member(node: str) -> Member:
    """Return what a node stands for; the first number in its path is that of the layer."""
    parts = module_path(node.removeprefix("{re}").replace("\\", "")).split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal() or part == EVERY_LAYER), None)
    if at is None:
        return Member(".".join(parts), None)
    return Member(".".join(parts[at + 1 :]), -1 if parts[at] == EVERY_LAYER else int(parts[at]))


def _sizes(groups: Iterable[Group], model_type: str | None, nodes: Iterable[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for group in groups:
        for member in group.members:
            attribute = LAYOUTS.get(model_type or "", {}).get(member.adapted)
            if attribute is not None and not member.is_rank:
                sizes[attribute] = max(sizes.get(attribute, 0), group.widths[0])
    layers = [member.layer for member in map(_member, nodes) if member.layer is not None]
    if layers and min(layers) >= 0:
        sizes["num_hidden_layers"] = max(layers) + 1
    return sizes
