"""What subnets take on one device: a table of the parts of a layer, measured once, that adds up to any subnet.

A layer falls into parts that no other part's sizes change: what elastic dimensions connect in the labels, for BERT the
attention with its heads and the FFN with its channels. Each state of a part is measured in the real model, in all
layers that are alike at once, with everything else at a middle size, and held against that middle subnet: the
difference, divided by the number of layers, is what the state adds in one layer. A language model without any attention
is never measured, as there is no IR of one: where a state skips it, the first layer keeps its own. Towards the ends of
a space sums may be off by a tenth, so its largest and its smallest subnets are measured as a whole, and what parts add
up to is corrected accordingly. Free of torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from bootstrapnas.artefacts import FORMAT, check_format, read_json, write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key, Subnet, subnet_from_json, subnet_to_json
from bootstrapnas.errors import UserError
from bootstrapnas.space import SearchSpace

KIND = "latency table"
STEPS = ("pass", "prefill", "token")
"""What a run is: of an encoder the one pass, of a causal language model reading the prompt, or one more token."""
DOUBTFUL_ERROR, DOUBTFUL_RANKS = 0.15, 0.8
"""Mean error from which, and rank correlation below which, predictions are doubtful; a quiet machine has half the error
and above 0.95."""
State: TypeAlias = tuple[int, ...]
"""Sizes of a part's dimensions, in the order of `Part.dims`."""
End: TypeAlias = tuple[tuple[Key, int], ...]
"""A complete subnet, as a key."""


class OtherTableError(UserError):
    """A latency table is of another device, version, setting or model."""

    def __init__(self, path: str | os.PathLike[str], difference: str) -> None:
        super().__init__(
            f"the latency table {path} is of another {difference}: choose another file, and a table is measured there"
        )
        self.difference = difference


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the layers that are alike.

    Attributes
    ----------
    layers
        Which layers.
    dims
        The names of its dimensions in a layer: widths, and blocks that skip it or some of it.
    whole_layer
        Whether it is the layer as a whole: then its one state that costs something else is the skipped one, and the
        other parts do not count.
    """

    layers: tuple[int, ...]
    dims: tuple[str, ...]
    whole_layer: bool = False

    def state(self, blueprint: Blueprint, complete: Subnet, layer: int) -> State:
        """Return the part's state in one layer of a subnet (a completed one, so that equal networks are equal)."""
        return tuple(blueprint.size(Key(dim, layer), complete) for dim in self.dims)

    def sizes(self, state: State, layers: Sequence[int] | None = None) -> dict[Key, int]:
        """Return the state as sizes, in all layers or only in some."""
        chosen = self.layers if layers is None else layers
        return {Key(dim, layer): size for layer in chosen for dim, size in zip(self.dims, state, strict=True)}

    def describe(self, state: State) -> str:
        """Return the state in words, for example ``"head 4, mha_block 1"``."""
        return ", ".join(f"{dim} {size}" for dim, size in zip(self.dims, state, strict=True))


def parts_of(blueprint: Blueprint) -> tuple[Part, ...]:
    """Return the parts of a model's layers that have a choice, as the labels show them.

    Dimensions of one layer that meet in a parameter, on its axes or as a block that contains it, belong to one part.
    Layers are alike if their parameters have the same names and shapes.
    """
    alike: dict[Any, list[int]] = {}
    for layer in range(blueprint.num_layers):
        stem = blueprint.layer_path(layer, "") + "."
        shapes = tuple(
            (name.removeprefix(stem), blueprint.shape(name, {})) for name in blueprint.uses if name.startswith(stem)
        )
        alike.setdefault(shapes, []).append(layer)
    found = []
    for layers in alike.values():
        found += [Part(tuple(layers), dims) for dims in _connected(blueprint, layers[0])]
        whole = tuple(k.dim for k in blueprint.elastic if k.layer == layers[0] and blueprint.is_whole_layer(k))
        found += [Part(tuple(layers), (dim,), whole_layer=True) for dim in whole]
    return tuple(found)


def _connected(blueprint: Blueprint, layer: int) -> list[tuple[str, ...]]:
    """Return the dimensions of one layer, connected by its parameters; without blocks that are the whole layer."""
    order = [key for key in blueprint.elastic if key.layer == layer and not blueprint.is_whole_layer(key)]
    groups: list[set[Key]] = []
    for parameter in blueprint.parameters.values():
        carried = {key for axis in parameter.axes for product in axis for key in product}.union(parameter.blocks)
        met = carried.intersection(order)
        if met:
            touching = [group for group in groups if group & met]
            groups = [group for group in groups if not group & met] + [met.union(*touching)]
    found = [tuple(key.dim for key in order if key in group) for group in groups]
    return sorted(found, key=lambda dims: order.index(Key(dims[0], layer)))


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a table is of: a table holds for these and no others.

    Attributes
    ----------
    device
        Full name.
    openvino
        Version.
    threads
        Number of threads.
    precision
        What is computed in; of quantised encoders one of `bootstrapnas.export.runtime.INT8`.
    batch, length
        Shape of the input; of the prompt, for a causal language model.
    step
        What is timed, one of `STEPS`.
    model
        Digest of the model's architecture and shapes; how many classes a head has does not matter.
    weight_format
        How weights are stored.
    target
        OpenVINO's name of the device.
    """

    device: str
    openvino: str
    threads: int
    precision: str
    batch: int
    length: int
    step: str
    model: str
    weight_format: str = "fp32"
    target: str = "CPU"


def shape_digest(blueprint: Blueprint) -> str:
    """Return a digest of what makes two models alike to a latency table: architecture and shapes, apart from heads'."""
    stem = f"{blueprint.prefix}{blueprint.family.stack}."
    shapes = [
        f"{name}: {blueprint.shape(name, {})}"
        for name, parameter in sorted(blueprint.uses.items())
        if parameter.embedding or name.startswith(stem)
    ]
    text = "\n".join([blueprint.family.model_type, blueprint.architecture, *shapes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Predictions held against measurements of the same subnets.

    Attributes
    ----------
    predicted_ms, measured_ms
        One for each subnet.
    """

    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]

    @property
    def mean_error(self) -> float:
        """The mean absolute error, as a share of what was measured."""
        pairs = zip(self.predicted_ms, self.measured_ms, strict=True)
        return statistics.fmean(abs(predicted / measured - 1) for predicted, measured in pairs)

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's rank correlation; `None` if there are fewer than three subnets, or all are alike."""
        if min(len(set(self.predicted_ms)), len(set(self.measured_ms))) < 3:
            return None
        from scipy.stats import spearmanr

        return float(spearmanr(self.predicted_ms, self.measured_ms).statistic)

    @property
    def doubtful(self) -> bool:
        """Whether subnets are hardly told apart by these predictions: of a machine that did other things as well."""
        ranks = self.rank_correlation
        return self.mean_error > DOUBTFUL_ERROR or (ranks is not None and ranks < DOUBTFUL_RANKS)

    def __str__(self) -> str:
        ranks = "" if self.rank_correlation is None else f", rank correlation {self.rank_correlation:.3f}"
        count = len(self.measured_ms)
        return f"mean error {self.mean_error:.1%}{ranks} over {count} {'subnet' if count == 1 else 'subnets'}"

    def to_json(self) -> dict[str, Any]:
        """Return the figures and what they are made of."""
        return {"mean_error": self.mean_error, "rank_correlation": self.rank_correlation, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Place:
    """What one measurement is of: a state of a part, in a model whose model-wide dimensions have these sizes."""

    wide: tuple[int, ...]
    part: Part
    state: State


class LatencyTable:
    """What the parts of a model's layers take on one device.

    Parameters
    ----------
    blueprint
        The model.
    circumstances
        What the table is of.
    reference
        The subnet that every state is held against: all per-layer sizes, in the middle of the space it was made for.

    Attributes
    ----------
    base_ms
        By the sizes of the model-wide dimensions: milliseconds of the reference, once for every group of states that
        was measured beside it.
    ratios
        By place: the time of the reference with the part in this state in its `measured_layers`, over the reference's
        own.
    ends
        The time of the largest subnet of every space it was made for, of the smallest, and of the smallest that skips
        nothing, over the reference's.
    """

    def __init__(self, blueprint: Blueprint, circumstances: Circumstances, reference: Subnet) -> None:
        self.blueprint, self.circumstances, self.reference = blueprint, circumstances, dict(reference)
        self.parts = parts_of(blueprint)
        self.base_ms: dict[tuple[int, ...], list[float]] = {}
        self.ratios: dict[Place, float] = {}
        self.ends: dict[End, float] = {}
        self.accuracy: Accuracy | None = None
        self._lines: dict[tuple[int, ...], tuple[tuple[float, ...], tuple[float, ...]]] = {}
        self._wide = tuple(key for key in blueprint.elastic if key.layer is None)

    def needed(self, space: SearchSpace, wide: tuple[int, ...]) -> list[Place]:
        """Return the places that a prediction for a subnet of `space` may need, the reference's own states left out."""
        found: dict[Place, None] = {}
        for part in self.parts:
            for layer in part.layers:
                keys = tuple(Key(dim, layer) for dim in part.dims)
                for sizes in _choices(keys, space, self.blueprint):
                    complete = self.blueprint.complete(dict(zip(keys, sizes, strict=True)))
                    place = Place(wide, part, part.state(self.blueprint, complete, layer))
                    if not self._is_reference(place):
                        found[place] = None
        return list(found)

    def missing(self, space: SearchSpace) -> dict[tuple[int, ...], list[Place]]:
        """Return the needed places that are not measured yet, by the sizes of the model-wide dimensions.

        Sizes whose reference was never measured are there even where nothing else is needed of them.
        """
        found: dict[tuple[int, ...], list[Place]] = {}
        for wide in _choices(self._wide, space, self.blueprint):
            places = [place for place in self.needed(space, wide) if place not in self.ratios]
            if places or wide not in self.base_ms:
                found[wide] = places
        return found

    def missing_ends(self, space: SearchSpace) -> dict[tuple[int, ...], list[End]]:
        """Return the ends of a space that are not measured yet, by the sizes of the model-wide dimensions."""
        found: dict[tuple[int, ...], list[End]] = {}
        largest, smallest = space.subnet(space.max_genome), space.subnet(space.min_genome)
        narrowest = {key: (largest if self.blueprint.is_block(key) else smallest)[key] for key in smallest}
        for wide in _choices(self._wide, space, self.blueprint):
            known = {*self.ends, self._end(self.middle(wide))}
            for subnet in (largest, narrowest, smallest):
                end = self._end({**self._with_attention(subnet), **self.wide_sizes(wide)})
                if end not in known:
                    found.setdefault(wide, []).append(end)
                    known.add(end)
        return found

    def is_measurable(self, subnet: Subnet) -> bool:
        """Return whether there is an IR of a subnet: of a language model's only if it has attention."""
        return self.circumstances.step == STEPS[0] or bool(self.blueprint.cache_places(subnet))

    def _with_attention(self, subnet: Subnet) -> Subnet:
        """Return a subnet that is measurable: this one, or that with the blocks of its first layer."""
        if self.is_measurable(subnet):
            return subnet
        return {**subnet, **{key: 1 for key in subnet if key.layer == 0 and self.blueprint.is_block(key)}}

    def measured_layers(self, place: Place) -> tuple[int, ...]:
        """Return the layers that are in a place's state where its ratio is measured: all, or all but the first."""
        layers = place.part.layers
        everywhere = {**self.middle(place.wide), **place.part.sizes(place.state)}
        return layers if self.is_measurable(everywhere) or len(layers) == 1 else layers[1:]

    def _end(self, subnet: Subnet) -> End:
        return tuple(self.blueprint.complete(subnet).items())

    def middle(self, wide: tuple[int, ...]) -> dict[Key, int]:
        """Return the reference at some sizes of the model-wide dimensions."""
        return {**self.reference, **self.wide_sizes(wide)}

    def subnet(self, place: Place) -> dict[Key, int]:
        """Return the subnet whose time, over that of the reference, is a place's ratio."""
        return {**self.middle(place.wide), **place.part.sizes(place.state, self.measured_layers(place))}

    def wide(self, subnet: Subnet) -> tuple[int, ...]:
        """Return the sizes of the model-wide dimensions in a subnet."""
        return tuple(self.blueprint.size(key, subnet) for key in self._wide)

    def wide_sizes(self, wide: tuple[int, ...]) -> dict[Key, int]:
        """Return the sizes of the model-wide dimensions by key."""
        return dict(zip(self._wide, wide, strict=True))

    def add(self, wide: tuple[int, ...], base_ms: float, ratios: Mapping[Place, float]) -> None:
        """Record one group of measurements."""
        self.base_ms.setdefault(wide, []).append(base_ms)
        self.ratios.update(ratios)

    def add_ends(self, ratios: Mapping[End, float]) -> None:
        """Record the times of subnets at the ends of a space, over the reference's."""
        self.ends.update(ratios)
        self._lines.clear()

    def predict(self, subnet: Subnet) -> float:
        """Return what a subnet takes, in milliseconds.

        Of two subnets of the same model-wide sizes, the one whose parts add up to less never takes more.

        Raises
        ------
        UserError
            If the subnet has a size that the table was not measured at.
        """
        complete = self.blueprint.complete(subnet)
        added, wide = self.added_up(complete), self.wide(complete)
        return statistics.median(self.base_ms[wide]) * self._corrected(added, wide)

    def _corrected(self, added: float, wide: tuple[int, ...]) -> float:
        """Return what parts that add up to `added` take, as a share of the reference's time: on a line through ends."""
        if wide not in self._lines:
            ends = [(dict(end), ratio) for end, ratio in self.ends.items()]
            points = [(self.added_up(end), ratio) for end, ratio in ends if self.wide(end) == wide]
            sums, ratios = zip(*sorted([(1.0, 1.0), *points]), strict=True)
            self._lines[wide] = sums, tuple(itertools.accumulate(ratios, max))
        sums, measured = self._lines[wide]
        inside = min(max(added, sums[0]), sums[-1])
        return float(np.interp(inside, sums, measured)) + added - inside

    def added_up(self, subnet: Subnet) -> float:
        """Return what the parts of a subnet add up to, as a share of the reference's time: `predict`, uncorrected."""
        complete = self.blueprint.complete(subnet)
        wide = self.wide(complete)
        if wide not in self.base_ms:
            raise self._unknown(", ".join(f"{key} {size}" for key, size in self.wide_sizes(wide).items()) or "all")
        kept = set(self.blueprint.kept_layers(complete))
        total = 1.0
        for part in self.parts:
            for layer in part.layers:
                if part.whole_layer or layer in kept:
                    place = Place(wide, part, part.state(self.blueprint, complete, layer))
                    total += self._added(place)
        return total

    def _added(self, place: Place) -> float:
        """Return what a place adds in one layer to the time of the reference, as a share of it."""
        if self._is_reference(place):
            return 0.0
        if place not in self.ratios:
            raise self._unknown(place.part.describe(place.state))
        return (self.ratios[place] - 1) / len(self.measured_layers(place))

    def _is_reference(self, place: Place) -> bool:
        return place.part.sizes(place.state).items() <= self.reference.items()

    def _unknown(self, what: str) -> UserError:
        return UserError(
            f"the latency table was not measured at {what}: the search space it was made for has no such size"
        )

    def summary(self) -> dict[str, Any]:
        """Return what the table is of, and how near its predictions came to measurements (JSON-able)."""
        accuracy = None if self.accuracy is None else self.accuracy.to_json()
        return {**asdict(self.circumstances), "accuracy": accuracy}

    # -- on disk -------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, atomically."""
        states = [
            {
                **self._named(place.wide),
                "layers": list(place.part.layers),
                "sizes": dict(zip(place.part.dims, place.state, strict=True)),
                "ratio": ratio,
                "ms_per_layer": statistics.median(self.base_ms[place.wide]) * self._added(place),
            }
            for place, ratio in self.ratios.items()
        ]
        document = {
            "format": FORMAT,
            "kind": KIND,
            "circumstances": asdict(self.circumstances),
            "reference": subnet_to_json(self.reference),
            "base": [{**self._named(wide), "ms": ms} for wide, ms in self.base_ms.items()],
            "states": states,
            "ends": [{"sizes": subnet_to_json(dict(end)), "ratio": ratio} for end, ratio in self.ends.items()],
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
        }
        write_json(path, document)

    def _named(self, wide: tuple[int, ...]) -> dict[str, Any]:
        return {"wide": {str(key): size for key, size in self.wide_sizes(wide).items()}} if wide else {}

    @classmethod
    def load(cls, path: str | os.PathLike[str], blueprint: Blueprint, circumstances: Circumstances) -> LatencyTable:
        """Read a table that holds for a model and circumstances.

        Raises
        ------
        OtherTableError
            If the table is of another device, version, setting or model.
        UserError
            If the file is no table, or is damaged.
        """
        document = _read_document(path)
        damaged = "delete it and make it again"
        try:
            found = Circumstances(**document["circumstances"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: it does not say what it is of; {damaged}") from error
        _refuse_others(path, found, circumstances)
        try:
            table = cls(blueprint, circumstances, subnet_from_json(document["reference"]))
            parts = {(part.layers, part.dims): part for part in table.parts}
            for entry in document["base"]:
                table.base_ms[tuple(entry.get("wide", {}).values())] = [float(ms) for ms in entry["ms"]]
            for entry in document["states"]:
                part = parts[tuple(entry["layers"]), tuple(entry["sizes"])]
                wide = tuple(entry.get("wide", {}).values())
                table.ratios[Place(wide, part, tuple(entry["sizes"].values()))] = float(entry["ratio"])
            for entry in document.get("ends", ()):  # tables made before had none
                table.ends[table._end(subnet_from_json(entry["sizes"]))] = float(entry["ratio"])
            accuracy = document["accuracy"]
            if accuracy is not None:
                table.accuracy = Accuracy(tuple(accuracy["predicted_ms"]), tuple(accuracy["measured_ms"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); {damaged}") from error
        return table


def extends(path: str | os.PathLike[str], known: str | os.PathLike[str]) -> bool:
    """Return whether the table in a file has all the times of another one, and is of the same model and circumstances.

    Raises
    ------
    UserError
        If a file is missing or holds no table.
    """
    found, wanted = _read_document(path), _read_document(known)
    alike = all(found.get(name) == wanted.get(name) for name in ("circumstances", "reference"))
    return alike and _times(found).items() >= _times(wanted).items()


def _read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise UserError(f"{path} is no latency table; make one with bootstrapnas latency-table")
    check_format(path, document)
    return document


def _times(document: Mapping[str, Any]) -> dict[str, float]:
    """Return what was measured for a table, as its file has it, by what it is of."""
    found: dict[str, float] = {}
    for kind, key in (("base", "ms"), ("states", "ratio"), ("ends", "ratio")):
        for entry in document.get(kind, ()):
            place = {name: value for name, value in entry.items() if name not in ("ms", "ratio", "ms_per_layer")}
            for index, time in enumerate(entry[key] if kind == "base" else (entry[key],)):
                found[json.dumps([kind, place, index], sort_keys=True)] = time
    return found


def middle_subnet(blueprint: Blueprint, space: SearchSpace) -> dict[Key, int]:
    """Return what a table for a space holds its states against: nothing skipped, of each width the middle choice.

    Layers that are alike get the same widths, in the middle of what any of them may choose.
    """
    chosen: dict[Key, int] = {}
    choices = {key: gene.choices for gene in space.genes for key in gene.keys}
    for part in parts_of(blueprint):
        for dim in part.dims:
            keys = [Key(dim, layer) for layer in part.layers]
            sizes = sorted({size for key in keys for size in choices.get(key, (blueprint.full[key],))})
            middle = 1 if blueprint.is_block(keys[0]) else sizes[len(sizes) // 2]
            chosen.update(dict.fromkeys(keys, middle))
    return chosen


def _choices(keys: Sequence[Key], space: SearchSpace, blueprint: Blueprint) -> Iterator[tuple[int, ...]]:
    """Yield the sizes that `keys` can have together in a space; keys without a gene are at full size."""
    genes = [gene for gene in space.genes if not set(keys).isdisjoint(gene.keys)]
    for sizes in itertools.product(*(gene.choices for gene in genes)):
        chosen = {key: size for gene, size in zip(genes, sizes, strict=True) for key in gene.keys}
        yield tuple(blueprint.size(key, chosen) for key in keys)


def _refuse_others(path: str | os.PathLike[str], found: Circumstances, wanted: Circumstances) -> None:
    """Raise `OtherTableError`, which names what a table is of and what it should be of, if they differ."""
    there, here = asdict(found), asdict(wanted)
    different = [name for name in here if there[name] != here[name]]
    if different:
        told = "; ".join(f"{name} {there[name]} there, {here[name]} here" for name in different)
        raise OtherTableError(path, f"{' and '.join(different)} ({told})")
