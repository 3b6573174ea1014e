"""The explanation of an NNCF config in words and tables, for a terminal of 80 columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bootstrapnas.nncf_config.implied import shape_of
from bootstrapnas.pipeline.config.facts import (
    ElasticGroup,
    Explanation,
    ModelFacts,
    MovementFacts,
    SearchFacts,
    SpaceSize,
    StageFacts,
    SubnetCosts,
)

UNKNOWN = "unknown"


def show(explanation: Explanation, console: Console) -> None:
    """Print an explanation."""
    with console.capture() as capture:
        console.print(Text(explanation.file, style="bold"), soft_wrap=True)
        for title, body in _sections(explanation):
            console.print()
            console.print(Text(title, style="bold"))
            console.print(Padding(body, (0, 0, 0, 2)))
    for line in capture.get().splitlines():  # tables are padded to the width of the terminal
        print(line.rstrip(), file=console.file)


def _sections(found: Explanation) -> Iterator[tuple[str, RenderableType]]:
    yield "Model and inputs", _lines([*_model(found.model), _inputs(found)])
    yield from _elastic(found)
    if found.stages:
        yield "Search space", _space(found)
        yield "Training", _lines(_training(found))
    yield "Search", _lines(_search(found.search))
    if found.movement_sparsity is None:
        yield "Movement sparsity", Text("no section: the config cannot train importance scores")
    else:
        yield "Movement sparsity", _lines(_movement(found.movement_sparsity))
    if found.ignored:
        yield "Ignored keys", _lines(f"{key}: {reason}" for key, reason in summarised(found.ignored))
    if found.unknown:
        yield "Unknown", _lines(found.unknown)
    if found.warnings:
        yield "Warnings", _lines(found.warnings)


def _lines(lines: Iterable[str]) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=1)
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row("-", Text(line))
    return table


# -- model and space ---------------------------------------------------------------------------------------------------


def _model(model: ModelFacts) -> Iterator[str]:
    sizes = shape_of(model.sizes)
    if model.source == "given":
        yield f"{model.name}: {model.architecture or 'no class named'}, {sizes}"
    elif model.source == "implied":
        name = model.name or f"no published model of this shape ({model.model_type or 'type unknown'})"
        yield f"{name}, {model.architecture}"
        yield f"{sizes}, as names and widths tell"
    else:
        yield UNKNOWN


def _inputs(found: Explanation) -> str:
    if found.sequence_length is None:
        return f"inputs: {UNKNOWN}"
    names = [str(entry["keyword"]) for entry in found.inputs if "keyword" in entry]
    return f"sequences of {found.sequence_length} tokens ({', '.join(names) or f'{len(found.inputs)} inputs'})"


def _elastic(found: Explanation) -> Iterator[tuple[str, RenderableType]]:
    if found.groups is None:
        yield "Elastic width", Text(f"groups and widths: {UNKNOWN}, they follow from the model")
    elif found.groups:
        cut = any(group.kept < len(group.channels) for group in found.groups)
        note = [Text("(in parentheses: cut by width_indicator, never taken)")] if cut else []
        yield f"Elastic width: {_count(len(found.groups), 'group')}", Group(*_widths(found.groups), *note)
    else:
        yield "Elastic width", Text("none")
    if found.blocks is None:
        yield "Elastic depth", Text("none")
    elif found.blocks.elastic is None:
        yield "Elastic depth", Text(f"blocks: {UNKNOWN}, they follow from the model")
    else:
        lines = [f"may be skipped: {_blocks(found.blocks.elastic)}"]
        if found.blocks.fixed:
            lines.append(f"always skipped: {_blocks(found.blocks.fixed)}")
        yield "Elastic depth", _lines(lines)


def _blocks(names: Sequence[str]) -> str:
    """Return ``mha_block[0]``, ``mha_block[1]``, ... as ``mha_block of layers 0-1``."""
    if any(not name.endswith("]") or "=" in name for name in names):
        return ", ".join(names)
    parts = sorted((name.partition("[")[0], int(name.partition("[")[2][:-1])) for name in names)
    kinds = [
        f"{kind} of {'layer' if len(layers) == 1 else 'layers'} {ranges(layers)}"
        for kind, run in groupby(parts, key=lambda part: part[0])
        for layers in [[layer for _, layer in run]]
    ]
    return "; ".join(kinds) or "none"


def _widths(groups: Sequence[ElasticGroup]) -> Iterator[RenderableType]:
    """Yield a table of widths per kind of group: layers with the same widths share a row."""
    kinds: dict[tuple[str, tuple[str, ...]], list[ElasticGroup]] = {}
    for group in groups:
        kinds.setdefault((group.name, group.modules), []).append(group)
    for (name, modules), members in kinds.items():
        per_unit = members[0].channels[0] // members[0].units[0] if members[0].units else 1
        title = f"{name} ({_short(modules)})" if modules else name
        yield Text(title + (f", {per_unit} channels each" if per_unit > 1 else ""))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2))
        for column in ("layers", *(("units",) if per_unit > 1 else ()), "channels"):
            table.add_column(column, overflow="fold", header_style="italic")
        for channels, run in groupby(members, key=lambda group: group.channels):
            same = list(run)
            cells = [_shown(same[0].units or (), same[0].kept)] if per_unit > 1 else []
            table.add_row(_of_layers(same), *cells, _shown(channels, same[0].kept))
        yield table


def _of_layers(groups: Sequence[ElasticGroup]) -> str:
    if any(group.layers is None for group in groups):
        return "every"
    if any(len(group.layers or ()) > 1 for group in groups):  # one width for several layers
        return "; ".join(f"{ranges(group.layers or ())} as one" for group in groups)
    return ranges(sorted(layer for group in groups for layer in group.layers or ())) or "-"


def _shown(sizes: Sequence[int], kept: int) -> str:
    """Return sizes, those that are never taken in parentheses; a long list by its ends."""

    def words(part: Sequence[int]) -> str:
        if len(part) <= 6:
            return " ".join(map(str, part))
        return f"{part[0]} {part[1]} ... {part[-1]} ({len(part)} widths)"

    taken, cut = sizes[:kept], sizes[kept:]
    return words(taken) + (f" ({words(cut)})" if cut else "")


def _short(modules: Sequence[str]) -> str:
    """Return module names joined, without what they repeat of the first one's path."""
    names = [module.removesuffix(".default") for module in modules]
    parent = names[0].rpartition(".")[0]
    while parent and not all(name.startswith(f"{parent}.") for name in names):
        parent = parent.rpartition(".")[0]
    return ", ".join([names[0], *(name.removeprefix(f"{parent}.") if parent else name for name in names[1:])])


def _space(found: Explanation) -> RenderableType:
    lines = [f"{_subnets(found.effective)} in all"]
    if found.effective != found.listed:
        lines = [f"{_subnets(found.listed)} listed", f"{_subnets(found.effective)} within the indicators"]
    parts: list[RenderableType] = [_lines(lines)]
    if found.largest is not None and found.smallest is not None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("", "MACs (M)", "parameters (M)", "without embeddings (M)"):
            table.add_column(name, justify="right" if name else "left", header_style="italic")
        for name, costs in (("largest", found.largest), ("smallest", found.smallest)):
            table.add_row(name, *_millions(costs, found.largest))
        parts.append(table)
        notes = []
        if found.model.vocabulary_of is not None and found.model.source == "implied":
            notes.append(f"embeddings are those of {found.model.vocabulary_of}")
        if found.model.labels is None and (found.model.architecture or "").endswith("Classification"):
            notes.append("without the classifier's last layer: how many labels it has is not told")
        if notes:
            parts.append(_lines(notes))
    else:
        parts.append(_lines([f"MACs and parameters: {UNKNOWN}"]))
    return Group(*parts)


def _millions(costs: SubnetCosts, full: SubnetCosts) -> Iterator[str]:
    values = (costs.macs, costs.params, costs.params_without_embeddings)
    tops = (full.macs, full.params, full.params_without_embeddings)
    for value, top in zip(values, tops, strict=True):
        if value is None or not top:
            yield UNKNOWN
        else:
            ratio = value / top
            share = "" if costs is full else f" ({ratio:.0%})" if ratio >= 0.01 else f" ({100 * ratio:.1g}%)"
            yield f"{value / 1e6:,.{0 if value >= 1e9 else 2}f}{share}"


def _subnets(size: SpaceSize | None) -> str:
    if size is None:
        return f"{UNKNOWN} number of subnets"
    if size.subnets < 1_000_000:
        return _count(size.subnets, "subnet")
    return f"10^{size.log10:.1f} ({size.subnets:.1e}) subnets" if size.log10 < 300 else f"10^{size.log10:.1f} subnets"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


# -- training, search, importance --------------------------------------------------------------------------------------


def _training(found: Explanation) -> Iterator[str]:
    for index, stage in enumerate(found.stages):
        yield f"stage {index}: {_stage(stage, found.lr_schedule is not None)}"
    if found.lr_schedule is not None:
        values = ", ".join(f"{name} {value:g}" for name, value in found.lr_schedule.items())
        yield f"one learning rate over all stages: {values}"
    sampling = {None: "as --sampling says (sandwich: largest, random, smallest)", True: "sandwich", False: "one random"}
    yield f"subnets of a step: {sampling[found.sandwich_rule]}"
    for name, value in found.distillation.items():
        if name == "model_before_training":
            terms = ", ".join(f"{key} {term}" for key, term in value.items())
            yield f"unless a teacher is named, it is the model before training: {terms}"
        else:
            yield f"{name}: {value}"


def _stage(stage: StageFacts, overall: bool) -> str:
    parts = [" and ".join(stage.train_dims) or "nothing elastic"]
    parts.append("epochs as --num_train_epochs says" if stage.epochs is None else _count(stage.epochs, "epoch"))
    if not overall:
        rate = "as --learning_rate says" if stage.learning_rate is None else f"{stage.learning_rate:g}"
        until = "" if stage.epochs_lr is None else f" to zero over {_count(stage.epochs_lr, 'epoch')}"
        parts.append(f"learning rate {rate}{until}")
    if "width" in stage.train_dims:
        all_widths = stage.width_indicator == -1
        parts.append("all widths" if all_widths else f"the largest {_count(stage.width_indicator, 'width')} of a group")
    if "depth" in stage.train_dims:
        last = "block" if stage.depth_indicator == 1 else f"{stage.depth_indicator:,} blocks"
        parts.append(f"of blocks that follow each other the last {last} may be skipped")
    if stage.sample_rate > 1:
        parts.append(f"new subnets every {stage.sample_rate} steps")
    if stage.reorders:
        parts.append("reorg_weights (units are put in order by filter_importance when it begins)")
    if stage.reorg_interval is not None:
        parts.append(f"reorg_interval (the same every {_count(stage.reorg_interval, 'epoch')})")
    if stage.subnets is not None:
        parts.append(_subnets(stage.subnets))
    return "; ".join(parts)


def _search(search: SearchFacts) -> Iterator[str]:
    settings = search.settings
    yield (
        f"{settings['algorithm']}, {search.generations} generations of {settings['population']} = "
        f"{search.evaluations} evaluations"
        + (f"; {search.rounded_away} of num_evals are rounded away" if search.rounded_away else "")
    )
    mutation = settings["mutation_prob"]
    yield (
        f"crossover {settings['crossover_prob']:g} (eta {settings['crossover_eta']:g}); "
        + ("every offspring mutates" if mutation is None else f"{mutation:.0%} of the offspring mutate")
        + f" (eta {settings['mutation_eta']:g}); seed {settings['seed']}"
    )
    if settings["algorithm"] == "RNSGA2":
        points = settings["aspiration_points"]
        yield f"near {'; '.join(f'{macs / 1e6:,.0f} M MACs, {abs(metric):.2%}' for macs, metric in points)}"
    if search.metric is not None:
        yield f"metric: {search.metric}"
    if search.floor is None:
        floor = "the largest subnet's own"
        if settings["acc_delta"]:
            floor += f" less {_points(settings['acc_delta'])} (acc_delta)"
    else:
        floor = f"{search.floor:.2%} (ref_acc {settings['ref_acc']:g} less acc_delta {_points(settings['acc_delta'])})"
    yield f"the best subnet: the fewest MACs with a metric of at least {floor}"


def _points(delta: float) -> str:
    return f"{delta:g} {'point' if delta == 1 else 'points'}"


def _movement(movement: MovementFacts) -> Iterator[str]:
    params = movement.params
    yield (
        f"the threshold rises from epoch {params['warmup_start_epoch']:g} to {params['warmup_end_epoch']:g}, to "
        f"{params['final_importance_threshold']:g}; penalty {params['importance_regularization_factor']:g}, "
        f"power {params['power']:g}"
    )
    if "total_epochs" in params:
        yield f"the learning rate falls over {params['total_epochs']:g} epochs"
    for granularity, scopes in movement.structures:
        yield f"scores of {granularity}: {', '.join(scopes)}"
    yield "scores of single entries: all other linear layers"
    if movement.target_scopes is not None:
        yield f"only: {', '.join(movement.target_scopes)}"
    if movement.ignored_scopes:
        yield f"no scores: {', '.join(movement.ignored_scopes)}"


def ranges(numbers: Sequence[int]) -> str:
    """Return numbers in ascending order as ranges: ``"0-3, 7"``."""
    text, start = [], None
    for position, number in enumerate(numbers):
        if start is None:
            start = number
        if position + 1 == len(numbers) or numbers[position + 1] != number + 1:
            text.append(str(start) if start == number else f"{start}-{number}")
            start = None
    return ", ".join(text)


def summarised(ignored: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return (keys, reason): keys that differ in an index only stand together, with how many they are."""
    counts = Counter((re.sub(r"\[\d+\]", "[]", key), reason) for key, reason in ignored)
    return [(f"{key} ({count} times)" if count > 1 else key, reason) for (key, reason), count in counts.items()]
