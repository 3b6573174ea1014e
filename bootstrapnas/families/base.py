"""What a model family declares. A family is data; the engine derives everything else from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bootstrapnas.dims import Dim, Labels

STAND_INS = ("input", "input, none", "zero", "zero, none")
"""What a module of a skipped block returns: its first argument, zero, or either as the first of a pair with None."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a layer that a subnet may skip: a dimension of full size 1 that can be 0.

    Attributes
    ----------
    name
        The dimension's name, for example ``"mha_block"``.
    stand_ins
        Module path inside the layer -> what it returns when the block is skipped (one of `STAND_INS`). All parameters
        below these paths belong to the block and vanish with it. The empty path is the layer itself.
    nncf_start, nncf_end
        The block's boundary in NNCF's ``skipped_blocks``: ``"<module path in the layer>/<operator>"`` of the last
        operator executed before the skipped part and of the last one skipped. A start that begins with ``"<"`` lies in
        the layer before; `nncf_first` replaces it in the first layer (path below the base model, or a function of the
        config that returns it).
    """

    name: str
    stand_ins: Mapping[str, str]
    nncf_start: str
    nncf_end: str
    nncf_first: str | Callable[[Any], str] = ""

    @property
    def whole_layer(self) -> bool:
        """Whether nothing of the layer is left without the block."""
        return "" in self.stand_ins


@dataclass(frozen=True, slots=True)
class Attention:
    """The two matrix products of attention (scores and weighted values), which no parameter shows.

    `heads` and `head_dim` are label products; both cost ``heads * head_dim * length**2`` MACs a sequence each. They are
    skipped with the parameters that carry the heads.
    """

    heads: str
    head_dim: str


@dataclass(frozen=True, slots=True)
class Family:
    """A model family: its dimensions and the axis labels of its parameters.

    Attributes
    ----------
    model_type
        ``config.model_type`` of Hugging Face.
    base
        Attribute under which task models hold the base model (``"bert"``). Names in labels leave it out.
    bare
        Class name of the base model itself, whose parameter names have no such prefix.
    stack
        Path of the list of layers, below the base model.
    num_layers
        The config attribute that holds the number of layers: then layers are `alike`, and a network without some of
        them is a smaller network of the same kind. Else a function of the config that returns the number.
    dims
        All dimensions that occur in labels.
    embeddings
        Parameter name -> labels of the embeddings.
    layer
        Parameter name inside a layer -> labels.
    architectures
        Class name of a model -> labels of what it has besides embeddings and layers (pooler, task head).
    blocks
        Parts of a layer that can be skipped.
    attention
        Attention products in a layer.
    dropout
        Config attributes that hold dropout probabilities.
    max_length
        The longest sequence that a model takes, in tokens, from the config. Default: no limit.
    follows
        Class names of modules, norms as a rule, whose code takes its sizes from its own parameters: with smaller ones
        it computes the smaller module.
    attributes
        Config attributes that are products of dimensions, beside those that dimensions name as their source: what has
        to be set as well where a config is to express a smaller network.
    cache
        Module path inside a layer of the attention that keeps keys and values: its ``layer_idx`` is its place in a
        cache. Default: there is no cache.
    layer_types
        Config attribute with the kind of attention of each layer (``"full_attention"``, …). Default: all are alike.
    alike
        Whether what a layer computes does not depend on its number, by the config. Default: it never does.
    constants
        Module path inside a layer -> attribute of the module -> the label text of what it holds: numbers that the
        module's code reads and that shrink with a subnet, such as ``{"num_heads": "head"}``. ``"config.num_heads"`` is
        an entry of the config that the module holds.
    """

    model_type: str
    base: str
    bare: str
    stack: str
    num_layers: str | Callable[[Any], int]
    dims: tuple[Dim, ...]
    embeddings: Mapping[str, Labels]
    layer: Mapping[str, Labels]
    architectures: Mapping[str, Mapping[str, Labels]]
    blocks: tuple[Block, ...] = ()
    attention: tuple[Attention, ...] = ()
    dropout: tuple[str, ...] = ()
    max_length: Callable[[Any], int] | None = None
    follows: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    cache: str = ""
    layer_types: str = ""
    alike: Callable[[Any], bool] = lambda _: True
    constants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
