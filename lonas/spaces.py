"""Search spaces of super-adapters from labels: which adapters share a rank, and which widths are tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bootstrapnas.adapters import adapter_modules
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.families.adapted import is_rank
from bootstrapnas.space import Gene, SearchSpace
from bootstrapnas.space_generation import DEPTHS


def adapter_space(
    blueprint: Blueprint,
    *,
    ranks: Sequence[int],
    ffn_shares: Sequence[float] = (1.0,),
    head_shares: Sequence[float] = (1.0,),
    depth: str = "none",
    multiple: int = 8,
) -> SearchSpace:
    """Return a space with a rank for each group of adapters, and widths for the layers of the base model.

    As published, adapters that read the same activations (those of q, k and v; of gate and up) share a rank, and those
    that read what is elastic itself (down) keep the full one.

    Parameters
    ----------
    blueprint
        Of a model with adapters.
    ranks
        Ranks to choose from.
    ffn_shares, head_shares
        Shares of the full widths and of the heads (or key-value heads) to choose from.
    depth
        What may be skipped, one of `DEPTHS`: any half-block or any layer, each by itself.
    multiple
        FFN widths are rounded down to a multiple of it.

    Raises
    ------
    UserError
        If a share is not above 0 and at most 1, a rank exceeds the full one, or `depth` or fewer heads are not possible
        in the family.
    """
    for name, shares in (("ffn_shares", ffn_shares), ("head_shares", head_shares)):
        for share in shares:
            if not 0 < share <= 1:
                raise UserError(f"{name} must lie above 0 and at most 1, not {share:g}")
    genes = [Gene(keys, _descending(ranks)) for keys in rank_groups(blueprint)]
    heads = {keys[0] for keys, _ in blueprint.attentions}
    for key in blueprint.widths:
        full = blueprint.full[key]
        if key.layer is None or is_rank(key.dim):
            continue
        if key in heads:
            sizes = _descending(max(1, int(share * full + 1e-9)) for share in head_shares)
        else:
            rounded = (max(1, int(share * full / multiple + 1e-9)) * multiple for share in ffn_shares if share < 1)
            whole = [full for share in ffn_shares if share == 1]
            sizes = _descending([*whole, *(min(full, size) for size in rounded)])
        if sizes != (full,):
            genes.append(Gene((key,), sizes))
    if min(head_shares) < 1 and not any(heads.intersection(gene.keys) for gene in genes):
        raise UserError(
            f"head_shares: family {blueprint.family.model_type!r} has no heads here that can be left out, only 1 is "
            "possible"
        )
    genes += [Gene((block,), (1, 0)) for block in blocks_of(blueprint, depth)]
    space = SearchSpace(tuple(genes))
    space.check(blueprint)
    return space


def blocks_of(blueprint: Blueprint, depth: str) -> list[Key]:
    """Return the blocks that a depth, one of `DEPTHS`, lets be skipped; `UserError` if there is none."""
    if depth not in DEPTHS:
        raise UserError(f"unknown depth {depth!r} (known: {listed(DEPTHS)}){near_miss(depth, DEPTHS)}")
    if depth == "none":
        return []
    blocks = [key for key in blueprint.elastic if blueprint.is_block(key)]
    found = [key for key in blocks if blueprint.is_whole_layer(key) == (depth == "layers")]
    if not found:
        raise UserError(f"family {blueprint.family.model_type!r} has no {depth} that can be skipped")
    return found


def rank_groups(blueprint: Blueprint) -> Iterator[tuple[Key, ...]]:
    """Yield the ranks that are chosen together, layer by layer."""
    groups: dict[tuple[str, object], list[Key]] = {}
    for module in adapter_modules(blueprint):
        down = blueprint.parameters[f"{module}.lora_A.default.weight"]
        (rank,), inputs = down.axes[0][0], down.axes[1]
        if any(key.layer is not None and blueprint.dims[key.dim].elastic for product in inputs for key in product):
            continue
        groups.setdefault((module.rpartition(".")[0], inputs), []).append(rank)
    yield from (tuple(keys) for keys in groups.values())


def _descending(sizes: Sequence[int] | Iterator[int]) -> tuple[int, ...]:
    return tuple(sorted(set(sizes), reverse=True))
