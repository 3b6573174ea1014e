"""From an NNCF config to a search space and back: node names to dimensions, channels to units."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from bootstrapnas import progress
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError, near_miss
from bootstrapnas.families.adapted import is_rank
from bootstrapnas.families.base import Block
from bootstrapnas.nncf_config.node_names import EVERY_LAYER, NodeNames, module_path, operation
from bootstrapnas.nncf_config.reading import NNCFConfig, check_config
from bootstrapnas.nncf_config.schema import WIDTH_RULE, Depth, Width
from bootstrapnas.space import Gene, SearchSpace

_ELASTICITY = "bootstrapNAS.training.elasticity"
_ADAPTER = re.compile(r"\.(?:base_layer|lora_[AB]\.\w+)$")
"""What the path of an adapted layer's frozen part, or of one of its adapter's matrices, ends with."""
Warn = Callable[[str], None]


def build_space(
    config: NNCFConfig, blueprint: Blueprint, *, stage: int = -1, warn: Warn = progress.warn
) -> SearchSpace:
    """Build the search space that a config describes for a model, as a stage of training leaves it.

    Genes are in the order of the groups, then of the blocks. Width or depth that the stage does not train has none,
    but for blocks that are always skipped, and the stage's indicators hold.

    Parameters
    ----------
    config, blueprint
        What is elastic, and the model.
    stage
        Index into ``config.training.stages``; the last stage's space is the one that is searched.
    warn
        Told of what a user may not have meant.

    Raises
    ------
    UserError
        If the config names what the model does not have, or sizes that it cannot take.
    """
    space = listed_space(config, blueprint, stage=stage, warn=warn)
    return space.limited(config.training.stages[stage].width_indicator) if space.genes else space


def listed_space(
    config: NNCFConfig, blueprint: Blueprint, *, stage: int = -1, warn: Warn = progress.warn
) -> SearchSpace:
    """Build the space of `build_space` with all widths of each group, whatever the stage's ``width_indicator``."""
    training = config.training
    genes: list[Gene] = []
    try:
        if training.is_elastic("width", stage):
            genes += _width_genes(training.elasticity.width, blueprint, warn)
        if training.is_elastic("depth", stage):
            genes += _depth_genes(training.elasticity.depth, blueprint, training.stages[stage].depth_indicator, warn)
        elif training.is_elastic("depth"):  # by a later stage: what is never there is not there before either
            fixed = _fixed_blocks(training.elasticity.depth, blueprint, _Bounds(blueprint))
            genes += [Gene(keys, (0,)) for keys in fixed]
    except UserError as error:
        raise UserError(f"{config.path}: {_ELASTICITY}.{error}") from None
    return SearchSpace(tuple(genes))


def config_with_space(
    raw: Mapping[str, Any], blueprint: Blueprint, names: NodeNames, space: SearchSpace
) -> dict[str, Any]:
    """Return a copy of a config whose groups, widths and skipped blocks are those of `space`.

    `build_space` reads the same genes from it, cut by the ``width_indicator`` of its last stage: widths of attention in
    all layers, then of the FFN in all layers, then blocks in the same way. Where NNCF would then take two blocks for a
    chain, of which it skips the last one only, blocks are listed from the last to the first. The rule that derives
    widths goes, being idle; other keys stay as they are.

    Raises
    ------
    UserError
        If the config does not train what the space varies, or NNCF has no words for a gene.
    """
    config = check_config(raw)
    training = config.training
    order = list(blueprint.dims)
    genes = sorted(space.genes, key=lambda gene: (order.index(gene.keys[0].dim), gene.keys[0].layer or 0))
    widths = [gene for gene in genes if not blueprint.is_block(gene.keys[0])]
    blocks = [gene for gene in genes if blueprint.is_block(gene.keys[0]) and 1 in gene.choices[:-1]]
    fixed = [gene for gene in genes if gene.choices == (0,)]
    for dim, found in (("width", widths), ("depth", [*blocks, *fixed])):
        if found and not training.is_elastic(dim):
            raise UserError(
                f"the space varies {found[0].name}, but {dim!r} is not both in {_ELASTICITY}."
                "available_elasticity_dims and in train_dims of the last stage"
            )
    bounds = _Bounds(blueprint)
    if len(list(_chains([gene.keys for gene in blocks], bounds))) < len(blocks):
        blocks.sort(key=lambda gene: (gene.keys[0].layer or 0, order.index(gene.keys[0].dim)), reverse=True)
    result = copy.deepcopy(dict(raw))
    elasticity = result["bootstrapNAS"]["training"].setdefault("elasticity", {})
    if training.is_elastic("width"):
        width = elasticity.setdefault("width", {})
        for name in WIDTH_RULE:
            width.pop(name, None)
        width["overwrite_groups"] = [
            [names.linears[path] for key in gene.keys for path in _modules(blueprint, key, outputs=True)]
            for gene in widths
        ]
        width["overwrite_groups_widths"] = [_channels(blueprint, gene) for gene in widths]
        heads = {dim for attention in blueprint.family.attention for dim in attention.heads.split()}
        width["add_dynamic_inputs"] = [
            names.linears[path]
            for gene in widths
            for key in gene.keys
            if key.dim in heads
            for path in _modules(blueprint, key, outputs=False)
        ]
    if training.is_elastic("depth"):
        depth = elasticity.setdefault("depth", {})
        depth["skipped_blocks"] = [_nodes(bounds, names, gene) for gene in blocks]
        depth.pop("fixed_skipped_blocks", None)
        if fixed:
            depth["fixed_skipped_blocks"] = [_nodes(bounds, names, gene) for gene in fixed]
    return result


def one_stage_config(dims: Sequence[str], length: int, search: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of one stage, epochs and rate the command line's, without groups, which `config_with_space` adds.

    Parameters
    ----------
    dims
        What is elastic: ``"width"``, ``"depth"``.
    length
        Tokens of the sequence that costs are counted for.
    search
        The section ``bootstrapNAS.search``.
    """
    stage = {"train_dims": list(dims), "epochs": -1, "init_lr": -1, "width_indicator": -1}
    names = ("input_ids", "attention_mask")
    return {
        "input_info": [{"sample_size": [1, length], "type": "long", "keyword": name} for name in names],
        "bootstrapNAS": {
            "training": {
                "algorithm": "progressive_shrinking",
                "progressivity_of_elasticity": list(dims),
                "schedule": {"list_stage_descriptions": [stage]},
                "elasticity": {"available_elasticity_dims": list(dims)},
            },
            "search": dict(search),
        },
    }


# -- width -------------------------------------------------------------------------------------------------------------


def _width_genes(width: Width, blueprint: Blueprint, warn: Warn) -> Iterator[Gene]:
    for index, node in enumerate(width.add_dynamic_inputs):
        # Attention's output follows its heads by itself; what cannot follow anything is a mistake.
        if not any(True for _ in _followed(blueprint, f"width.add_dynamic_inputs[{index}]", node)):
            raise UserError(f"width.add_dynamic_inputs[{index}]: no elastic dimension reaches the input of {node!r}")
    if width.overwrite_groups is None or width.overwrite_groups_widths is None:
        order = list(blueprint.dims)
        elastic = blueprint.widths
        channels = {key: blueprint.full[key] * blueprint.channels_per_unit(key) for key in elastic}
        widest = max(elastic, key=lambda key: channels[key])
        if "min_width" in width.model_fields_set and width.min_width > channels[widest]:
            raise UserError(
                f"width.min_width {width.min_width} exceeds the largest width of the model, "
                f"{channels[widest]} channels of {widest}"
            )
        for key in sorted(elastic, key=lambda key: order.index(key.dim)):
            yield Gene((key,), derived_sizes(width, blueprint.full[key], blueprint.channels_per_unit(key)))
        return
    owner: dict[Key, int] = {}
    for group, nodes, widths in _groups(width.overwrite_groups, width.overwrite_groups_widths, blueprint.num_layers):
        keys = tuple(dict.fromkeys(_group_key(blueprint, f"width.overwrite_groups[{group}]", node) for node in nodes))
        for key in keys:
            if key in owner:
                raise UserError(f"width.overwrite_groups[{group}] and [{owner[key]}] both hold {key}")
            owner[key] = group
        sizes = {
            tuple(_units(blueprint, key, channels, f"width.overwrite_groups_widths[{group}]") for channels in widths)
            for key in keys
        }
        if len(sizes) > 1:
            units = " and ".join(f"{blueprint.channels_per_unit(key)} for {key}" for key in keys)
            raise UserError(f"width.overwrite_groups[{group}] joins units of different widths: {units} channels")
        full = blueprint.full[keys[0]] * blueprint.channels_per_unit(keys[0])
        if max(widths) < full:
            warn(
                f"width.overwrite_groups_widths[{group}]: the largest width {max(widths)} is below the full {full}, "
                "so the space does not contain the full network"
            )
        yield Gene(keys, tuple(sorted(set(sizes.pop()), reverse=True)))


def _groups(
    groups: Sequence[Sequence[str]], widths: Sequence[Sequence[int]], num_layers: int
) -> Iterator[tuple[int, list[str], Sequence[int]]]:
    """Yield number, nodes and widths of every group; one written for every layer (Shears) is a group of each layer."""
    for number, (nodes, sizes) in enumerate(zip(groups, widths, strict=True)):
        every = [EVERY_LAYER in node for node in nodes]
        if any(every) and not all(every):
            node = nodes[every.index(False)]
            raise UserError(f"width.overwrite_groups[{number}]: {node!r} is one layer's, others have {EVERY_LAYER}")
        for layer in range(num_layers) if any(every) else (0,):
            yield number, [_of_layer(node, layer) for node in nodes], sizes


def _of_layer(node: str, layer: int) -> str:
    """Return the name of a node that is written once for all layers, with regex marks or without, in one of them."""
    if EVERY_LAYER not in node:
        return node
    return node.removeprefix("{re}").replace("\\", "").replace(EVERY_LAYER, str(layer))


def derived_sizes(width: Width, full: int, channels_per_unit: int) -> tuple[int, ...]:
    """Return the sizes, in units, of a group of `full` units by NNCF's rule for groups without a list of widths.

    The rule counts channels: down from the maximum in steps of ``width_step``, or the maximum times each of
    ``width_multipliers``, floored to a multiple of 8, never below ``min_width``. Here a width that cuts a unit is
    floored to whole units, and left out if that goes below ``min_width``.
    """
    top = full * channels_per_unit
    if top <= width.min_width:
        return (full,)
    if width.width_multipliers is None:
        widths = list(range(top, width.min_width - 1, -width.width_step))
    else:
        shares = sorted(width.width_multipliers, reverse=True)
        widths = [max(int(top * share) // 8 * 8, width.min_width) for share in shares if share < 1]
    sizes = dict.fromkeys(channels // channels_per_unit for channels in widths)
    smaller = [size for size in sizes if size < full and size * channels_per_unit >= width.min_width]
    kept = (full, *smaller)
    return kept if width.max_num_widths == -1 else kept[: width.max_num_widths]


def _keys_of(blueprint: Blueprint, where: str, node: str) -> tuple[Key, ...]:
    """Return the elastic dimensions on the output of the module that a node belongs to.

    Raises
    ------
    UserError
        If the model has no such module, or it has an adapter where the config takes it to have none, or none.
    """
    path = module_path(node)
    layer = _ADAPTER.sub("", path)
    if layer != path and f"{layer}.weight" in blueprint.uses:
        raise UserError(f"{where}: the config takes {layer!r} to have an adapter, but it has none (--target_modules)")
    if layer == path and f"{path}.base_layer.weight" in blueprint.uses:
        raise UserError(f"{where}: the config takes {path!r} to have no adapter, but it has one (--target_modules)")
    try:
        return blueprint.keys_of_module(path)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _group_key(blueprint: Blueprint, where: str, node: str) -> Key:
    """Return the elastic dimension on the output of a node."""
    keys = _keys_of(blueprint, where, node)
    if len(keys) != 1:
        found = " and ".join(map(str, keys)) if keys else "none"
        raise UserError(f"{where}: {node!r} must have one elastic dimension on its output, it has {found}")
    return keys[0]


def _units(blueprint: Blueprint, key: Key, channels: int, where: str) -> int:
    per_unit = blueprint.channels_per_unit(key)
    if channels < 1 or channels > blueprint.full[key] * per_unit:
        whose = ", the rank of the adapters" if is_rank(key.dim) else ""
        most = blueprint.full[key] * per_unit
        raise UserError(f"{where}: width {channels} of {key} must be from 1 to {most}{whose}")
    if channels % per_unit:
        raise UserError(f"{where}: width {channels} of {key} is not a multiple of {per_unit}, the channels of one unit")
    return channels // per_unit


def _channels(blueprint: Blueprint, gene: Gene) -> list[int]:
    widths = {tuple(size * blueprint.channels_per_unit(key) for size in gene.choices) for key in gene.keys}
    if len(widths) > 1:
        raise UserError(f"NNCF cannot express {gene.name}: their units differ in channels")
    return list(widths.pop())


def _modules(blueprint: Blueprint, key: Key, *, outputs: bool) -> list[str]:
    """Return the paths of the linear layers that carry `key` on their outputs, or on their inputs."""
    return [
        parameter.name.rpartition(".")[0]
        for parameter, axis in blueprint.members(key)
        if parameter.applied and axis == (parameter.output if outputs else parameter.input)
    ]


def _followed(blueprint: Blueprint, where: str, node: str) -> Iterator[Key]:
    """Yield the elastic dimensions on the input of a linear layer."""
    _keys_of(blueprint, where, node)
    weight = blueprint.uses[f"{module_path(node)}.weight"]
    for product in weight.axes[weight.input]:
        yield from (key for key in product if blueprint.dims[key.dim].elastic)


# -- depth -------------------------------------------------------------------------------------------------------------


def _depth_genes(depth: Depth, blueprint: Blueprint, indicator: int, warn: Warn) -> Iterator[Gene]:
    bounds = _Bounds(blueprint)
    fixed = _fixed_blocks(depth, blueprint, bounds)
    if depth.skipped_blocks is None:
        chains: list[list[tuple[Key, ...]]] = [[(key,)] for key in _left(blueprint, bounds, fixed)]
    else:
        blocks = [
            bounds.between(*map(operation, nodes), where=f"depth.skipped_blocks[{index}]")
            for index, nodes in enumerate(depth.skipped_blocks)
        ]
        twice = [key for key, count in Counter(key for keys in [*blocks, *fixed] for key in keys).items() if count > 1]
        if twice:
            raise UserError(f"depth: {twice[0]} is in two of the skipped blocks")
        chains = list(_chains(blocks, bounds))
    for chain in chains:
        follow = f"depth.skipped_blocks: {' and '.join(str(key) for keys in chain for key in keys)} follow each other; "
        if len(chain) > indicator:
            warn(f"{follow}depth_indicator {indicator} lets only the last {indicator} of them be skipped")
        if len(chain) > 1 and indicator > 1:
            warn(f"{follow}NNCF skips one only together with the later ones, here each is skipped on its own")
        yield from (Gene(keys, (1, 0)) for keys in chain[-indicator:])
    yield from (Gene(keys, (0,)) for keys in fixed)


def _fixed_blocks(depth: Depth, blueprint: Blueprint, bounds: _Bounds) -> list[tuple[Key, ...]]:
    """Return the blocks that are always skipped."""
    fixed = [
        bounds.between(*map(operation, nodes), where=f"depth.fixed_skipped_blocks[{index}]")
        for index, nodes in enumerate(depth.fixed_skipped_blocks)
    ]
    if fixed and not _left(blueprint, bounds, fixed):
        raise UserError("depth.fixed_skipped_blocks skips every block of the model: nothing would be left of it")
    return fixed


def _left(blueprint: Blueprint, bounds: _Bounds, fixed: Sequence[tuple[Key, ...]]) -> list[Key]:
    """Return the blocks of a model, whole layers aside, that are not always skipped."""
    always = {key for keys in fixed for key in keys}
    always |= {inside for key in always for inside in blueprint.inside(key)}
    return [key for key in bounds.keys if not blueprint.is_whole_layer(key) and key not in always]


def _chains(blocks: Sequence[tuple[Key, ...]], bounds: _Bounds) -> Iterator[list[tuple[Key, ...]]]:
    """Split the blocks where one does not begin at the end of the one before it in the list (NNCF's groups)."""
    if not blocks:
        return
    chain = [blocks[0]]
    for before, keys in pairwise(blocks):
        if bounds.end(before[-1]) != bounds.start(keys[0]):
            yield chain
            chain = []
        chain.append(keys)
    yield chain


class _Bounds:
    """Where the blocks of a model start and end, as operations: ``"<module path>/<operator>_<call>"``."""

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint
        self._blocks = {block.name: block for block in blueprint.family.blocks}
        self.keys = [Key(name, layer) for name in self._blocks for layer in range(blueprint.num_layers)]

    def _of(self, key: Key) -> tuple[Block, int]:
        assert key.layer is not None
        return self._blocks[key.dim], key.layer

    def start(self, key: Key) -> str:
        """Return the operation whose output a skipped block hands on."""
        block, layer = self._of(key)
        if not block.nncf_start.startswith("<"):
            return self._blueprint.layer_path(layer, block.nncf_start)
        if layer == 0:
            first = block.nncf_first
            return self._blueprint.prefix + (first if isinstance(first, str) else first(self._blueprint.config))
        return self._blueprint.layer_path(layer - 1, block.nncf_start[1:])

    def end(self, key: Key) -> str:
        """Return the last operation of a block."""
        block, layer = self._of(key)
        return self._blueprint.layer_path(layer, block.nncf_end)

    def between(self, start: str, end: str, *, where: str) -> tuple[Key, ...]:
        """Return the blocks, one after the other, from an operation to another; as few as possible: whole layers."""
        starts, ends = {self.start(key) for key in self.keys}, {self.end(key): key for key in reversed(self.keys)}
        for name, known, word in ((start, starts, "starts after"), (end, ends, "ends with")):
            if name not in known:
                raise UserError(f"{where}: no block of the model {word} {name!r}{near_miss(name, known)}")
        reached: dict[str, tuple[Key, ...]] = {start: ()}
        for before in (queue := [start]):  # grows; the operations of a network have no cycle
            for key in self.keys:
                if self.start(key) == before and self.end(key) not in reached:
                    reached[self.end(key)] = (*reached[before], key)
                    queue.append(self.end(key))
        if end not in reached:
            right = self.start(ends[end])
            raise UserError(f"{where}: the block that ends with {end!r} starts after {right!r}, not {start!r}")
        return reached[end]


def _nodes(bounds: _Bounds, names: NodeNames, gene: Gene) -> list[str]:
    if any(bounds.end(key) != bounds.start(following) for key, following in pairwise(gene.keys)):
        raise UserError(f"NNCF cannot express {gene.name}: the blocks do not follow each other")
    return [names.node(bounds.start(gene.keys[0])), names.node(bounds.end(gene.keys[-1]))]
