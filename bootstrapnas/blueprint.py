"""A family's labels resolved against one model: what every axis of every parameter is. Free of torch.

Grouping, reduction of scores, reordering, slicing, counting and extraction are folds over the table built here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bootstrapnas.dims import Axis, Dim, Key, Labels, Product, Subnet, parse_axis
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.families import Family, family_of
from bootstrapnas.families.base import STAND_INS, Block


@dataclass(frozen=True, slots=True)
class Parameter:
    """One labelled parameter.

    Attributes
    ----------
    name
        Its name in the model's ``named_parameters()``.
    axes
        Per axis, the concatenated products of keys.
    applied
        As in `Labels.applied`.
    embedding
        Whether it counts as part of the embeddings.
    blocks
        The skippable blocks that contain it: it exists in a subnet only if all of them do.
    transposed
        As in `Labels.transposed`.
    """

    name: str
    axes: tuple[Axis, ...]
    applied: str
    embedding: bool
    blocks: tuple[Key, ...]
    transposed: bool = False

    @property
    def output(self) -> int:
        """The position of the axis of outputs."""
        return len(self.axes) - 1 if self.transposed else 0

    @property
    def input(self) -> int:
        """The position of the axis of inputs."""
        return 0 if self.transposed else len(self.axes) - 1


class Blueprint:
    """The labelled parameters of one model and the sizes of its dimensions.

    Parameters
    ----------
    config
        A Hugging Face config (only the attributes that the family's dimensions read are used).
    architecture
        Class name of the model, for example ``"BertForSequenceClassification"``.
    family
        Its labels. Default: the registered family of the config's model type.

    Attributes
    ----------
    parameters
        What the model owns, by name: what is counted, reordered and stored, each tensor once.
    tied
        Further name of a parameter -> that parameter (a decoder that is the embedding table).
    uses
        All names, as labelled where they are used: what a tied one computes costs MACs, and an elastic axis is sliced
        there too.

    Raises
    ------
    UserError
        If the family or the architecture has no labels.
    """

    def __init__(self, config: Any, architecture: str, family: Family | None = None) -> None:
        self.config = config
        self.family: Family = family or family_of(config)
        self.architecture = architecture
        if architecture not in self.family.architectures:
            raise UserError(
                f"no axis labels for {architecture!r} in family {self.family.model_type!r} "
                f"(known: {listed(self.family.architectures)}){near_miss(architecture, self.family.architectures)}"
            )
        self.prefix = "" if architecture == self.family.bare else f"{self.family.base}."
        layers = self.family.num_layers
        self.num_layers = int(getattr(config, layers) if isinstance(layers, str) else layers(config))
        self.dims: dict[str, Dim] = {dim.name: dim for dim in self.family.dims}
        self.dims.update({block.name: Dim(block.name, lambda _: 1) for block in self.family.blocks})
        for block in self.family.blocks:
            for stand_in in block.stand_ins.values():
                if stand_in not in STAND_INS:
                    raise UserError(
                        f"family {self.family.model_type!r}: block {block.name!r} has an unknown stand-in {stand_in!r} "
                        f"(known: {'; '.join(STAND_INS)})"
                    )
        self.full: dict[Key, int] = {
            Key(dim.name, layer): dim.size(config)
            for dim in self.dims.values()
            for layer in (range(self.num_layers) if dim.per_layer else (None,))
        }
        self.parameters: dict[str, Parameter] = {}
        self.tied: dict[str, Parameter] = {}
        self.uses: dict[str, Parameter] = {}
        for parameter, labels in self._parameters():
            self.uses[parameter.name] = parameter
            owner = self._owner(parameter, labels)
            if owner is None:
                self.parameters[parameter.name] = parameter
            else:
                self.tied[parameter.name] = owner

    @classmethod
    def of(cls, model: Any, family: Family | None = None) -> Blueprint:
        """Build the blueprint of a ``PreTrainedModel`` and check it against the model's parameters.

        Raises
        ------
        UserError
            If a parameter has no labels or its labels do not multiply to its size.
        """
        family = family or family_of(model.config)
        known = family.architectures
        architecture = next((c.__name__ for c in type(model).__mro__ if c.__name__ in known), type(model).__name__)
        blueprint = cls(model.config, architecture, family)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        blueprint.check_shapes({name: tuple(p.shape) for name, p in parameters.items()})
        for name, owner in blueprint.tied.items():
            if parameters[name] is not parameters[owner.name]:
                raise UserError(
                    f"family {family.model_type!r}, {architecture}: {name!r} should be the same tensor as "
                    f"{owner.name!r} (config.tie_word_embeddings), but the model holds two; call model.tie_weights()"
                )
        return blueprint

    # -- building ------------------------------------------------------------------------------------------------------

    def _parameters(self) -> Iterator[tuple[Parameter, Labels]]:
        base = {name.split(".")[0] for name in self.family.architectures[self.family.bare]}
        for name, labels in self._present(self.family.embeddings):
            yield self._parameter(self.prefix + name, labels, None, embedding=True), labels
        for layer in range(self.num_layers):
            for name, labels in self._present(self.family.layer):
                if labels.layers is None or labels.layers(layer):
                    yield self._parameter(self.layer_path(layer, name), labels, layer, embedding=False), labels
        for name, labels in self._present(self.family.architectures[self.architecture]):
            prefix = self.prefix if name.split(".")[0] in base else ""
            yield self._parameter(prefix + name, labels, None, embedding=False), labels

    def _owner(self, parameter: Parameter, labels: Labels) -> Parameter | None:
        """Return the parameter that this one is tied to, which comes before it, or None if it is one of its own."""
        if not labels.tied or not self.config.tie_word_embeddings:
            return None
        owner = self.parameters.get(self.prefix + labels.tied) or self.parameters.get(labels.tied)
        if owner is None or owner.axes != parameter.axes:
            raise UserError(
                f"family {self.family.model_type!r}: {parameter.name!r} is tied to {labels.tied!r}, "
                f"which {'does not come before it' if owner is None else 'has other labels'}"
            )
        return owner

    def _present(self, labelled: Mapping[str, Labels]) -> Iterator[tuple[str, Labels]]:
        for name, labels in labelled.items():
            if labels.present is None or labels.present(self.config):
                yield name, labels

    def _parameter(self, name: str, labels: Labels, layer: int | None, *, embedding: bool) -> Parameter:
        axes = tuple(self._axis(axis, layer, name) for axis in labels.parse())
        blocks = () if layer is None else tuple(Key(b.name, layer) for b in self._blocks_of(name, layer))
        return Parameter(name, axes, labels.applied, embedding, blocks, labels.transposed)

    def _axis(self, products: list[list[str]], layer: int | None, name: str) -> Axis:
        return tuple(tuple(self._key(dim, layer, name) for dim in product) for product in products)

    def _key(self, dim: str, layer: int | None, name: str) -> Key:
        if dim not in self.dims:
            raise UserError(
                f"family {self.family.model_type!r}: {name!r} is labelled with an unknown dimension {dim!r}"
            )
        if self.dims[dim].per_layer and layer is None:
            raise UserError(
                f"family {self.family.model_type!r}: {name!r} lies outside the layers, but {dim!r} is per layer"
            )
        return Key(dim, layer if self.dims[dim].per_layer else None)

    def _blocks_of(self, name: str, layer: int) -> Iterator[Block]:
        for block in self.family.blocks:
            if any(name.startswith(f"{self.layer_path(layer, module)}.") for module in block.stand_ins):
                yield block

    def layer_path(self, layer: int, name: str) -> str:
        """Return the path in the model of a module or parameter named inside a layer; the empty name is the layer's."""
        dot = "" if not name or name.startswith("/") else "."  # "/<operator>" is an operator of the layer itself
        return f"{self.prefix}{self.family.stack}.{layer}{dot}{name}"

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise `UserError` unless `shapes` are those of the labelled parameters, all of them."""
        where = f"family {self.family.model_type!r}, {self.architecture}"
        for name, shape in shapes.items():
            if name not in self.uses:
                raise UserError(f"{where}: no axis labels for parameter {name!r} of shape {shape}")
            axes = self.uses[name].axes
            if len(axes) != len(shape):
                raise UserError(f"{where}: {name!r} has {len(shape)} axes, its labels {len(axes)}")
            for position, (axis, size) in enumerate(zip(axes, shape, strict=True)):
                if self.extent(axis, {}) != size:
                    text = " + ".join(" ".join(str(key) for key in product) for product in axis)
                    raise UserError(
                        f"{where}: axis {position} of {name!r} is labelled {text!r}, "
                        f"which is {self.extent(axis, {})}, but the tensor has {size}"
                    )
        missing = self.uses.keys() - shapes.keys()
        if missing:
            raise UserError(f"{where}: the model has no parameter {min(missing)!r}, which the labels name")

    # -- sizes ---------------------------------------------------------------------------------------------------------

    @cached_property
    def elastic(self) -> tuple[Key, ...]:
        """The keys that a subnet may choose, layer by layer."""
        keys = [key for key in self.full if self.dims[key.dim].elastic]
        return tuple(sorted(keys, key=lambda key: (key.layer is None, key.layer or 0)))

    @cached_property
    def widths(self) -> tuple[Key, ...]:
        """The elastic widths inside layers: what is scored, ordered and varied unless more is asked for.

        A model-wide one (the hidden size) changes every layer at once, and what a teacher's hidden states mean.
        """
        return tuple(key for key in self.elastic if key.layer is not None and not self.is_block(key))

    def size(self, key: Key, subnet: Subnet) -> int:
        """Return the size of a dimension in a subnet, in units."""
        return subnet.get(key, self.full[key])

    def product(self, product: Product, subnet: Subnet) -> int:
        """Return the number of entries along a product of dimensions in a subnet."""
        return math.prod(self.size(key, subnet) for key in product)

    def extent(self, axis: Axis, subnet: Subnet) -> int:
        """Return the length of an axis in a subnet."""
        return sum(self.product(product, subnet) for product in axis)

    def exists(self, parameter: Parameter, subnet: Subnet) -> bool:
        """Return whether a parameter is part of a subnet (no block that contains it is skipped)."""
        return all(self.size(block, subnet) for block in parameter.blocks)

    def shape(self, name: str, subnet: Subnet) -> tuple[int, ...]:
        """Return a parameter's shape in a subnet."""
        return tuple(self.extent(axis, subnet) for axis in self.uses[name].axes)

    def channels_per_unit(self, key: Key) -> int:
        """Return how many channels of a weight one unit of `key` spans, e.g. head_dim for a head.

        Where tensors differ in that (a key-value head has several query heads), it is what the first one has: queries.
        """
        for parameter in self.parameters.values():
            for axis in parameter.axes:
                if any(key in product for product in axis):
                    return self.channels_along(axis, key)
        raise UserError(f"{key} occurs in no label of family {self.family.model_type!r}")

    def channels_along(self, axis: Axis, key: Key) -> int:
        """Return how many channels in a row one unit of `key` spans along an axis that carries it."""
        product = next(product for product in axis if key in product)
        return math.prod(self.full[k] for k in product[product.index(key) + 1 :])

    def members(self, key: Key) -> Iterator[tuple[Parameter, int]]:
        """Yield the coupled group of `key`: every (parameter, axis position) that carries it."""
        for parameter in self.parameters.values():
            for position, axis in enumerate(parameter.axes):
                if any(key in product for product in axis):
                    yield parameter, position

    def inside(self, block: Key) -> tuple[Key, ...]:
        """Return the elastic keys that matter only while `block` is kept.

        A skipped FFN has no width, and a skipped layer neither widths nor an FFN that could be skipped.
        """
        return self._inside[block]

    @cached_property
    def _inside(self) -> dict[Key, tuple[Key, ...]]:
        owners: dict[Key, list[Parameter]] = {key: [] for key in self.full}
        for parameter in self.parameters.values():
            carried = {key for axis in parameter.axes for product in axis for key in product}
            for key in carried.union(parameter.blocks):
                owners[key].append(parameter)

        def is_inside(key: Key, block: Key) -> bool:
            smaller = not self.is_block(key) or len(owners[key]) < len(owners[block])
            return smaller and bool(owners[key]) and all(block in parameter.blocks for parameter in owners[key])

        blocks = [key for key in self.elastic if self.is_block(key)]
        return {block: tuple(key for key in self.elastic if is_inside(key, block)) for block in blocks}

    @cached_property
    def attentions(self) -> tuple[tuple[Product, tuple[Key, ...]], ...]:
        """The attention products: per layer and product its heads times head size, and the blocks that contain it."""
        found = []
        for layer in range(self.num_layers):
            for attention in self.family.attention:
                dims = f"{attention.heads} {attention.head_dim}".split()
                keys = tuple(self._key(dim, layer, "attention") for dim in dims)
                path = self.layer_path(layer, "") + "."
                carriers = [set(p.blocks) for p, _ in self.members(keys[0]) if p.name.startswith(path)]
                found.append((keys, tuple(sorted(set.intersection(*carriers)))))
        return tuple(found)

    def has_module(self, layer: int, module: str, subnet: Subnet) -> bool:
        """Return whether a subnet keeps a module named inside a layer."""
        return all(
            self.size(Key(b.name, layer), subnet) for b in self._blocks_of(self.layer_path(layer, f"{module}."), layer)
        )

    def layer_kinds(self, subnet: Subnet) -> tuple[str, ...]:
        """Return the kind of attention of every layer, as the places of a cache for `subnet` have to be.

        What a layer without attention says does not matter to it. The length of a cache is that of its first place; so
        where no attention of that kind is left, the place is of the kind of the first attention that is.
        """
        kinds = list(self._kinds)
        left = [kinds[layer] for layer in range(self.num_layers) if self._is_cached(layer, subnet)]
        if left and kinds[0] not in left:
            kinds[0] = left[0]
        return tuple(kinds)

    def cache_places(self, subnet: Subnet, kinds: Sequence[str] | None = None) -> dict[int, int]:
        """Return layer -> its place in a cache of keys and values, for the layers whose attention `subnet` keeps.

        Those of a kind take the first places of that kind, so that what is read from the first place, such as the
        number of tokens so far, is there. `kinds` are those of the places (default: the model's).
        """
        kinds = kinds or self._kinds
        places = {kind: iter([place for place, other in enumerate(kinds) if other == kind]) for kind in kinds}
        return {
            layer: next(places[self._kinds[layer]])
            for layer in range(self.num_layers)
            if self._is_cached(layer, subnet)
        }

    @cached_property
    def _kinds(self) -> tuple[str, ...]:
        if not self.family.layer_types:
            return ("",) * self.num_layers
        return tuple(getattr(self.config, self.family.layer_types))

    def _is_cached(self, layer: int, subnet: Subnet) -> bool:
        return bool(self.family.cache) and self.has_module(layer, self.family.cache, subnet)

    def attributes(self, subnet: Subnet, kinds: Sequence[str] | None = None) -> dict[str, dict[str, int]]:
        """Return module path -> attribute -> its value, for what the code of the modules of a subnet reads.

        `kinds` as in `cache_places`.
        """
        found: dict[str, dict[str, int]] = {}
        for layer, place in self.cache_places(subnet, kinds).items():
            found[self.layer_path(layer, self.family.cache)] = {"layer_idx": place}
        for layer in range(self.num_layers):
            for module, constants in self.family.constants.items():
                if self.has_module(layer, module, subnet):
                    path = self.layer_path(layer, module)
                    values = {
                        name: self.extent(self._axis(parse_axis(text), layer, path), subnet)
                        for name, text in constants.items()
                    }
                    found.setdefault(path, {}).update(values)
        return found

    def check(self, subnet: Subnet) -> None:
        """Raise `UserError` unless every key of `subnet` is elastic and its size is reachable."""
        for key, size in subnet.items():
            if key not in self.full:
                names = [str(k) for k in self.elastic]
                raise UserError(f"the model has no dimension {key}{near_miss(str(key), names)}")
            if not self.dims[key.dim].elastic and size != self.full[key]:
                raise UserError(f"dimension {key} is not elastic in family {self.family.model_type!r}")
            smallest = 0 if self.is_block(key) else 1
            if not isinstance(size, int) or not smallest <= size <= self.full[key]:
                raise UserError(f"size {size!r} of {key} is not an integer between {smallest} and {self.full[key]}")

    def is_block(self, key: Key) -> bool:
        """Return whether `key` is a skippable block (size 1 or 0)."""
        return any(block.name == key.dim for block in self.family.blocks)

    def is_whole_layer(self, key: Key) -> bool:
        """Return whether `key` is a block that is a layer."""
        return any(block.name == key.dim and block.whole_layer for block in self.family.blocks)

    def kept_layers(self, subnet: Subnet) -> tuple[int, ...]:
        """Return the layers of which a subnet keeps anything."""
        skipped = {key.layer for key, size in subnet.items() if size == 0 and self.is_whole_layer(key)}
        return tuple(layer for layer in range(self.num_layers) if layer not in skipped)

    def complete(self, subnet: Subnet) -> dict[Key, int]:
        """Return the subnet with every elastic key spelt out; what is inside a skipped block is at full size.

        Two mappings that mean the same network have the same completion.
        """
        full = {key: self.size(key, subnet) for key in self.elastic}
        for block, size in list(full.items()):
            if size == 0:
                full.update({key: self.full[key] for key in self.inside(block)})
        return full

    def keys_of_module(self, path: str) -> tuple[Key, ...]:
        """Return the elastic keys on the output axis of the module at `path`, outermost first.

        Raises
        ------
        UserError
            If no labelled module has that path.
        """
        names = (f"{path}.weight", f"{path}.bias")
        parameter = next((self.uses[name] for name in names if name in self.uses), None)
        if parameter is None:
            modules = {name.rpartition(".")[0] for name in self.uses}
            raise UserError(f"the model has no labelled module {path!r}{near_miss(path, modules)}")
        keys: Iterable[Key] = (key for product in parameter.axes[parameter.output] for key in product)
        return tuple(key for key in dict.fromkeys(keys) if self.dims[key.dim].elastic)
