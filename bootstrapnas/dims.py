"""The vocabulary of elasticity: named dimensions, axis labels, subnets. Free of torch.

Each axis of each parameter is a product of named dimensions, or a concatenation of such products. A label text such as
``"head hd, hidden"`` says so for one parameter: axes are separated by commas, the dimensions of a product by spaces,
and the parts of a concatenation (a fused projection) by ``+``. Dimensions to the right vary fastest (row-major order).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias


class Key(NamedTuple):
    """One dimension in one place: ``("ffn", 3)`` in layer 3, ``("hidden", None)`` model-wide."""

    dim: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.dim if self.layer is None else f"{self.dim}[{self.layer}]"


Subnet: TypeAlias = Mapping[Key, int]
"""The sizes of a subnet in units (heads, channels, 1/0 for a kept/skipped block); a key left out is at full size."""

Product: TypeAlias = tuple[Key, ...]
Axis: TypeAlias = tuple[Product, ...]


@dataclass(frozen=True, slots=True)
class Dim:
    """A named dimension of a family.

    Attributes
    ----------
    name
        The word used in labels.
    source
        Where the full size in units comes from: the name of a Hugging Face config attribute, or, when it is derived, a
        function of the config. Only an attribute can be set again to express a smaller network.
    per_layer
        Whether every layer of the stack has a size of its own.
    elastic
        Whether subnets may be smaller than the full size along it.
    ordered
        Whether the order of its units has a meaning (channels that rotary positions pair, heads with a slope each).
    default
        The size where the config's attribute is None, from the config.
    """

    name: str
    source: str | Callable[[Any], int]
    per_layer: bool = True
    elastic: bool = True
    ordered: bool = False
    default: Callable[[Any], int] | None = None

    def size(self, config: Any) -> int:
        """Return the full size, in units."""
        found = getattr(config, self.source) if isinstance(self.source, str) else self.source(config)
        return int(self.default(config) if found is None and self.default is not None else found)


@dataclass(frozen=True, slots=True)
class Labels:
    """The axis labels of one parameter and what it costs to use.

    Attributes
    ----------
    axes
        Label text, for example ``"ffn, hidden"``.
    applied
        How often the weight of a matrix product is used: ``"token"`` (at every position), ``"sequence"`` (once per
        sequence: poolers and classifiers) or ``""`` (no matrix product: biases, norms, embedding tables).
    present
        Whether models of a config have the parameter at all. Default: all have it.
    tied
        The parameter, named as in the family's tables, that this one is as long as ``config.tie_word_embeddings``
        holds: one tensor used in two places, such as a decoder that is the embedding table.
    layers
        Of a parameter in a layer: whether the layer of that number (from 0) has it. Default: all have it.
    transposed
        Whether the weight of a matrix product is held as [in, out] (Hugging Face's ``Conv1D``), not as [out, in].
    """

    axes: str
    applied: str = ""
    present: Callable[[Any], bool] | None = None
    tied: str = ""
    layers: Callable[[int], bool] | None = None
    transposed: bool = False

    @property
    def outputs(self) -> str:
        """The label text of the axis of outputs."""
        return self.axes.split(",")[-1 if self.transposed else 0].strip()

    @property
    def inputs(self) -> str:
        """The label text of the axis of inputs."""
        return self.axes.split(",")[0 if self.transposed else -1].strip()

    def parse(self) -> list[list[list[str]]]:
        """Return, per axis, the concatenated products of dimension names."""
        return [parse_axis(axis) for axis in self.axes.split(",")]


def parse_axis(text: str) -> list[list[str]]:
    """Return the concatenated products of dimension names of one axis."""
    return [product.split() for product in text.split("+")]


def linear(
    name: str,
    out: str,
    inp: str,
    *,
    bias: bool | Callable[[Any], bool] = True,
    applied: str = "token",
    tied: str = "",
    tied_bias: str = "",
) -> dict[str, Labels]:
    """Label an ``nn.Linear`` (weight of shape [out, in]); whether it has a bias may depend on the config.

    `tied` and `tied_bias` name the parameters that its weight and bias are, as in `Labels.tied`.
    """
    labels = {f"{name}.weight": Labels(f"{out}, {inp}", applied, tied=tied)}
    if bias:
        labels[f"{name}.bias"] = Labels(out, present=None if isinstance(bias, bool) else bias, tied=tied_bias)
    return labels


def conv1d(name: str, out: str, inp: str) -> dict[str, Labels]:
    """Label a ``Conv1D`` of Hugging Face: a linear layer with a bias and a weight of shape [in, out]."""
    return {f"{name}.weight": Labels(f"{inp}, {out}", "token", transposed=True), f"{name}.bias": Labels(out)}


def norm(
    name: str,
    dim: str,
    *,
    bias: bool | Callable[[Any], bool] = True,
    layers: Callable[[int], bool] | None = None,
) -> dict[str, Labels]:
    """Label a LayerNorm or, without bias, an RMSNorm (weight of shape [dim]); not all layers need have it."""
    labels = {f"{name}.weight": Labels(dim, layers=layers)}
    if bias:
        labels[f"{name}.bias"] = Labels(dim, present=None if isinstance(bias, bool) else bias, layers=layers)
    return labels


def embedding(name: str, rows: str, dim: str) -> dict[str, Labels]:
    """Label an ``nn.Embedding`` (weight of shape [rows, dim])."""
    return {f"{name}.weight": Labels(f"{rows}, {dim}")}


def only_if(present: Callable[[Any], bool], labelled: Mapping[str, Labels]) -> dict[str, Labels]:
    """Return the same labels, of parameters that only models of some configs have."""
    return {name: replace(labels, present=present) for name, labels in labelled.items()}


def subnet_to_json(subnet: Subnet) -> dict[str, Any]:
    """Return a JSON-able form: a list over layers per dimension, or a number for a model-wide one.

    A layer that the subnet does not mention is ``null`` in the list: full size.
    """
    result: dict[str, Any] = {}
    for key, size in sorted(subnet.items(), key=lambda item: (item[0].dim, item[0].layer or 0)):
        if key.layer is None:
            result[key.dim] = size
        else:
            sizes = result.setdefault(key.dim, [])
            sizes.extend([None] * (key.layer + 1 - len(sizes)))
            sizes[key.layer] = size
    return result


def subnet_from_json(value: Mapping[str, Any]) -> dict[Key, int]:
    """Invert `subnet_to_json`."""
    subnet = {}
    for dim, sizes in value.items():
        if isinstance(sizes, list):
            subnet.update({Key(dim, layer): size for layer, size in enumerate(sizes) if size is not None})
        else:
            subnet[Key(dim)] = sizes
    return subnet
