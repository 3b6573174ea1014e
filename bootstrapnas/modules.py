"""Elastic modules: subclasses that use the active prefix of the full-size tensors they hold.

Each is made from an ordinary module by `adopt`, takes its place on the parent, and keeps its parameters and names.
Slices are views, so the cost of a forward and backward pass falls with the subnet's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.errors import UserError
from bootstrapnas.modeling_subnet import STAND_INS, set_attributes
from bootstrapnas.slicing import Index, apply_index, parameter_index

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ActiveSubnet:
    """The subnet that elastic modules compute; the one mutable object of a supernet."""

    def __init__(self, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        self.subnet: Subnet = {}
        self._index: dict[str, tuple[Index, ...]] = {}
        self._attributes: Mapping[str, Mapping[str, int]] | None = None
        self._has_cache: bool | None = None

    def set(self, subnet: Subnet) -> None:
        """Make `subnet` the active one. Indices are worked out when a module first asks for them."""
        self.subnet = subnet
        self._index = {}
        self._attributes = None
        self._has_cache = None

    def attributes(self, path: str) -> Mapping[str, int]:
        """Return what the code of the module at `path` reads from its attributes."""
        if self._attributes is None:
            self._attributes = self.blueprint.attributes(self.subnet)
        return self._attributes.get(path, {})

    @property
    def has_cache(self) -> bool:
        """Whether a cache of keys and values can tell how many tokens it holds."""
        if self._has_cache is None:
            places = self.blueprint.cache_places(self.subnet).values()
            self._has_cache = not places or 0 in places
        return self._has_cache

    def view(self, name: str, tensor: Tensor) -> Tensor:
        """Return the active part of the parameter `name`."""
        index = self._index.get(name)
        if index is None:
            index = self._index[name] = parameter_index(self.blueprint, name, self.subnet)
        return apply_index(tensor, index)

    def skipped(self, block: Key) -> bool:
        """Return whether a block is skipped."""
        return self.blueprint.size(block, self.subnet) == 0


def adopt(cls: type[ModuleT], module: nn.Module) -> ModuleT:
    """Return an instance of `cls` with the state of `module`: parameters, buffers, hooks, attributes."""
    adopted = cls.__new__(cls)
    adopted.__dict__.update(module.__dict__)
    return adopted


def linear_classes() -> tuple[type[nn.Module], ...]:
    """Return the classes of linear layers: ``nn.Linear``, and Hugging Face's ``Conv1D`` with a weight of [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, Conv1D


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return how many outputs and inputs a linear layer has."""
    weight = module.get_parameter("weight")
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, nn.Linear) else (columns, rows)


class _Elastic:
    """What elastic modules share: their path in the model and the active subnet."""

    _path: str
    _active: ActiveSubnet

    def _view(self, leaf: str) -> Tensor | None:
        tensor: Tensor | None = getattr(self, leaf)
        return None if tensor is None else self._active.view(f"{self._path}.{leaf}", tensor)


class ElasticLinear(_Elastic, nn.Linear):
    """``nn.Linear`` of the active output and input channels: x [..., in] -> [..., out]."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self._view("weight"), self._view("bias"))  # type: ignore[arg-type]


class ElasticEmbedding(_Elastic, nn.Embedding):
    """``nn.Embedding`` of the active columns: ids [...] -> [..., columns]."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(
            input,
            self._view("weight"),  # type: ignore[arg-type]
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )


class ElasticLayerNorm(_Elastic, nn.LayerNorm):
    """``nn.LayerNorm`` over the active channels: x [..., channels] -> the same shape."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self._view("weight")
        return F.layer_norm(input, tuple(weight.shape), weight, self._view("bias"), self.eps)  # type: ignore[union-attr]


ELASTIC: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: ElasticLinear,
    nn.Embedding: ElasticEmbedding,
    nn.LayerNorm: ElasticLayerNorm,
}


class _Following(_Elastic):
    """A module whose own code computes the active subnet, given the active part of its parameters and its attributes.

    The code runs on a twin that shares everything else, so nothing is changed and changed back.
    """

    _plain: type[nn.Module]
    _leaves: tuple[str, ...]  # its parameters by name: the replicas of data parallelism have none, but such attributes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        assert isinstance(self, nn.Module)
        twin = adopt(self._plain, self)
        attributes = self._active.attributes(self._path)
        if attributes:
            set_attributes(twin, attributes)
        vars(twin).update({leaf: self._view(leaf) for leaf in self._leaves})
        return self._plain.forward(twin, *args, **kwargs)


class _Cached(_Following):
    """Attention that keeps keys and values."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        if cache is not None and not self._active.has_cache:
            place = self._active.attributes(self._path)["layer_idx"]
            if cache.get_seq_length(place):
                raise UserError(
                    "the active subnet skips attention in all layers of the kind of the first one, whose keys tell how "
                    "long a cache is: pass use_cache=False, or extract the subnet, which then keeps a cache"
                )
        return super().forward(*args, **kwargs)


class _Skippable:
    """A module of a block that a subnet may skip; returns its stand-in then."""

    _block: Key
    _stand_in: nn.Module
    _active: ActiveSubnet

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._active.skipped(self._block):
            return self._stand_in(*args, **kwargs)
        return super().forward(*args, **kwargs)  # type: ignore[misc]


def elastic_module(module: nn.Module, path: str, active: ActiveSubnet) -> nn.Module:
    """Return the elastic form of the module at `path`.

    Raises
    ------
    UserError
        If the module is elastic already, or its class has no elastic form.
    """
    if isinstance(module, _Elastic):
        raise UserError(f"{path} is elastic already: a model can be part of one supernet only")
    if type(module).__name__ in active.blueprint.family.follows:
        return following_module(module, path, active)
    if type(module) not in ELASTIC:
        raise UserError(f"{path} is a {type(module).__name__}, which has no elastic form; declare its dims not elastic")
    elastic: Any = adopt(ELASTIC[type(module)], module)
    elastic._path, elastic._active = path, active
    return elastic


def following_module(
    module: nn.Module, path: str, active: ActiveSubnet, base: type[_Following] = _Following
) -> nn.Module:
    """Return a form of the module at `path` whose code sees the parameters and attributes of the active subnet."""
    following: Any = adopt(type(f"Elastic{type(module).__name__}", (base, type(module)), {}), module)
    following._path, following._active, following._plain = path, active, type(module)
    following._leaves = tuple(module._parameters)
    return following


def skippable_module(module: nn.Module, block: Key, stand_in: nn.Module, active: ActiveSubnet) -> nn.Module:
    """Return a form of `module` that returns its stand-in while `block` is skipped."""
    cls = type(f"Skippable{type(module).__name__}", (_Skippable, type(module)), {})
    skippable: Any = adopt(cls, module)
    # A plain attribute, not a submodule: the stand-in has no parameters and must not appear in the model's names.
    object.__setattr__(skippable, "_stand_in", stand_in)
    object.__setattr__(skippable, "_block", block)
    object.__setattr__(skippable, "_active", active)
    return skippable


def make_elastic(model: nn.Module, blueprint: Blueprint) -> ActiveSubnet:
    """Replace, in place, every module with elastic axes and every module of a skippable block. Return the handle.

    Raises
    ------
    UserError
        If an elastic parameter belongs to a module without an elastic form; the model is unchanged then.
    """
    active = ActiveSubnet(blueprint)
    elastic = set(blueprint.elastic) - {key for key in blueprint.elastic if blueprint.is_block(key)}
    paths = {
        name.rpartition(".")[0]: None
        for name, parameter in blueprint.uses.items()
        if any(key in elastic for axis in parameter.axes for product in axis for key in product)
    }
    replacements = {path: elastic_module(model.get_submodule(path), path, active) for path in paths}
    for path, replacement in replacements.items():
        model.set_submodule(path, replacement)
    cached = {blueprint.layer_path(layer, blueprint.family.cache) for layer in blueprint.cache_places({})}
    for path in blueprint.attributes({}):
        if path not in replacements:
            base = _Cached if path in cached else _Following
            model.set_submodule(path, following_module(model.get_submodule(path), path, active, base))
    for layer in range(blueprint.num_layers):
        for block in blueprint.family.blocks:
            for module, stand_in in block.stand_ins.items():
                path = blueprint.layer_path(layer, module)
                old = model.get_submodule(path)
                model.set_submodule(path, skippable_module(old, Key(block.name, layer), STAND_INS[stand_in](), active))
    return active
