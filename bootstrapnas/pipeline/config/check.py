"""What an NNCF config says, explained: what is elastic, what it costs, how it is trained and searched, what is ignored.

Works from the file alone, or for a model; imports neither torch nor transformers, unless the model is not a directory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bootstrapnas.artefacts import read_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs, count_params
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError, listed
from bootstrapnas.families import FAMILIES, Family
from bootstrapnas.nncf_config import (
    NNCFConfig,
    build_space,
    listed_space,
    read_config,
    sequence_length,
)
from bootstrapnas.nncf_config.implied import (
    Group,
    Implied,
    check_model,
    groups_of,
    implied_blueprint,
    implied_model,
    labels_of,
    labels_with,
    named_config,
    size_of,
)
from bootstrapnas.nncf_config.schema import COMMAND_LINE, SparseStructure, StageDescription
from bootstrapnas.pipeline.config.facts import (
    FORMAT,
    Blocks,
    ElasticGroup,
    Explanation,
    ModelFacts,
    MovementFacts,
    SearchFacts,
    SpaceSize,
    StageFacts,
    SubnetCosts,
)
from bootstrapnas.pipeline.search.settings import configured_search
from bootstrapnas.search import SearchSettings
from bootstrapnas.space import Gene, SearchSpace


def explain(path: str, model: str | None = None) -> Explanation:
    """Explain a config, for a model (directory or hub id) or for the one that it implies.

    Raises
    ------
    UserError
        If the file cannot be read, says what it may not, or is for another model.
    """
    config = read_config(path)
    return _Explainer(config, model).explain()


class _Explainer:
    def __init__(self, config: NNCFConfig, model: str | None) -> None:
        self.config = config
        self.warnings: list[str] = []
        self.unknown: list[str] = []
        self.elastic = config.document.bootstrap_nas.training is not None
        self.implied = implied_model(config) if self.elastic else Implied(None, None, None, {}, None)
        self.length = self._length()
        self.blueprint: Blueprint | None = None
        self.exact = True  # whether units and embeddings of the blueprint mean anything
        self.model = self._model_facts(model)

    def explain(self) -> Explanation:
        config, document = self.config, self.config.document
        groups: tuple[ElasticGroup, ...] | None = ()
        blocks: Blocks | None = None
        all_widths: SearchSpace | None = None
        space: SearchSpace | None = None
        stages: tuple[StageFacts, ...] = ()
        if self.elastic:
            if not config.training.stages:
                self.warnings.append("no stage trains width or depth: nothing is elastic")
            else:
                all_widths, space = self._space(-1, limited=False), self._space(-1)
                groups, blocks = self._groups(all_widths, space), self._blocks(all_widths)
                stages = tuple(self._stage(index) for index in range(len(config.training.stages)))
                self._warn_of_stages(all_widths, space)
        else:
            self.unknown.append("what is elastic: the config has no bootstrapNAS.training")
        search = self._search(space)
        movement = self._movement()
        training = document.bootstrap_nas.training
        return Explanation(
            format=FORMAT,
            file=config.path,
            sequence_length=self.length,
            inputs=tuple(entry.model_dump(exclude={"filler"}, exclude_none=True) for entry in document.input_info),
            model=self.model,
            groups=groups,
            blocks=blocks,
            listed=_size(all_widths),
            effective=_size(space),
            largest=self._costs(space, "max"),
            smallest=self._costs(space, "min"),
            stages=stages,
            lr_schedule=_lr_schedule(config),
            sandwich_rule=None if training is None else training.sandwich_rule,
            distillation=_distillation(config),
            search=search,
            movement_sparsity=movement,
            ignored=config.ignored,
            unknown=tuple(self.unknown),
            warnings=tuple(dict.fromkeys(self.warnings)),
        )

    # -- the model -----------------------------------------------------------------------------------------------------

    def _length(self) -> int | None:
        if not self.config.document.input_info:
            self.unknown.append("MACs: input_info is missing, which gives the sequence length")
            return None
        return sequence_length(self.config)

    def _model_facts(self, model: str | None) -> ModelFacts:
        implied = self.implied
        if model is not None:
            return self._given_model(model)
        if implied.architecture is None:
            self.unknown.append("groups, costs: no node names; pass --model_name_or_path")
            return ModelFacts("unknown", None, None, None, {}, None, None)
        widths = [w for group in groups_of(self.config) for w in group.widths if _is_attention(group)]
        self.blueprint = implied_blueprint(implied, widths)
        self.exact = implied.known is not None
        if self.blueprint is not None and self.implied.adapters is not None:
            self.unknown.append("adapters that no group names are not counted")
        if self.blueprint is None:
            self.unknown.append(f"costs: {self._why_no_costs(implied.model_type)}")
        elif not self.exact:
            self.unknown.append("head size and vocabulary: no published model has this shape")
        labels = None if self.blueprint is None else getattr(self.blueprint.config, "num_labels", 0) or None
        return ModelFacts(
            source="implied",
            name=None if implied.known is None else implied.known.name,
            architecture=implied.architecture,
            model_type=implied.model_type,
            sizes=dict(implied.sizes),
            vocabulary_of=implied.known.hub_id if implied.known is not None and self.blueprint is not None else None,
            labels=labels,
        )

    def _given_model(self, model: str) -> ModelFacts:
        given = _read_model_config(model)
        if self.elastic:
            check_model(self.config, given, model)
        family = FAMILIES.get(given.model_type)
        architecture = self.implied.architecture or next(iter(given.architectures or ()), None)
        if family is not None:
            if architecture is None or architecture not in family.architectures or _is_pretraining(architecture):
                architecture = family.bare
            self.blueprint = _blueprint(given, architecture, model, labels_with(family, self.implied.adapters))
        else:
            self.unknown.append(f"costs: {self._why_no_costs(given.model_type)}")
        labels = None
        if self.blueprint is not None and architecture in (given.architectures or ()):
            labels = self.blueprint.config.num_labels
        return ModelFacts(
            source="given",
            name=model,
            architecture=architecture,
            model_type=given.model_type,
            sizes={name: size for name in _SIZES if (size := size_of(given, name)) is not None},
            vocabulary_of=model if self.blueprint is not None else None,
            labels=labels,
        )

    def _why_no_costs(self, model_type: str | None) -> str:
        if model_type not in FAMILIES:
            return f"no axis labels for {model_type or self.implied.architecture} (known: {listed(FAMILIES)})"
        if self.implied.architecture not in FAMILIES[model_type].architectures:
            return f"no axis labels for {self.implied.architecture}"
        return "the groups do not tell the model's sizes; pass --model_name_or_path"

    # -- what is elastic -----------------------------------------------------------------------------------------------

    def _space(self, stage: int, *, limited: bool = True) -> SearchSpace | None:
        """Return the space of a stage, or without `limited` that of all widths which the config lists for it."""
        if self.blueprint is not None:
            warn = self.warnings.append if stage == -1 else _silent
            build = build_space if limited else listed_space
            return build(self.config, self.blueprint, stage=stage, warn=warn)
        training = self.config.training
        groups = groups_of(self.config)
        if training.is_elastic("depth", stage) and training.elasticity.depth.skipped_blocks != ():
            return None
        if not training.is_elastic("width", stage):
            return SearchSpace(())
        # Without labels each group is a dimension of its own.
        layers = self.model.sizes.get("num_hidden_layers")
        genes: list[Gene] = []
        for index, group in enumerate(groups):
            if _every_layer(group) and layers is None:
                return None
            copies = range(layers or 0) if _every_layer(group) else (None,)
            genes += [Gene((Key(f"group {index}", layer),), group.widths) for layer in copies]
        if not genes:
            return None
        space = SearchSpace(tuple(genes))
        return space.limited(training.stages[stage].width_indicator) if limited else space

    def _groups(self, listed_space: SearchSpace | None, space: SearchSpace | None) -> tuple[ElasticGroup, ...] | None:
        training = self.config.training
        if not training.is_elastic("width"):
            return ()
        groups = groups_of(self.config)
        if self.blueprint is None:
            if not groups:
                return None
            indicator = training.stages[-1].width_indicator
            return tuple(_plain_group(group, indicator) for group in groups)
        assert listed_space is not None
        assert space is not None
        found = []
        copies = [self.blueprint.num_layers if _every_layer(group) else 1 for group in groups]
        owners = [group for group, count in zip(groups, copies, strict=True) for _ in range(count)]
        for index, (gene, limited) in enumerate(zip(listed_space.genes, space.genes, strict=True)):
            key = gene.keys[0]
            if self.blueprint.is_block(key):
                continue
            per_unit = self.blueprint.channels_per_unit(key)
            found.append(
                ElasticGroup(
                    name=" and ".join(dict.fromkeys(key.dim.rpartition(".")[2] for key in gene.keys)),
                    modules=_modules(owners[index]) if groups else (),
                    layers=_layers(key.layer for key in gene.keys),
                    channels=tuple(size * per_unit for size in gene.choices),
                    units=gene.choices if self.exact else None,
                    kept=len(limited.choices),
                )
            )
        return tuple(found)

    def _blocks(self, space: SearchSpace | None) -> Blocks | None:
        training = self.config.training
        if not training.is_elastic("depth"):
            return None
        if space is None or self.blueprint is None:
            return Blocks(None, ())
        genes = [gene for gene in space.genes if self.blueprint.is_block(gene.keys[0])]
        return Blocks(
            elastic=tuple(gene.name for gene in genes if 1 in gene.choices),
            fixed=tuple(gene.name for gene in genes if gene.choices == (0,)),
        )

    def _costs(self, space: SearchSpace | None, which: str) -> SubnetCosts | None:
        if space is None or self.blueprint is None:
            return None
        subnet = space.subnet(space.max_genome if which == "max" else space.min_genome)
        return SubnetCosts(
            macs=None if self.length is None else count_macs(self.blueprint, subnet, length=self.length),
            params=count_params(self.blueprint, subnet) if self.exact else None,
            params_without_embeddings=count_params(self.blueprint, subnet, embeddings=False),
        )

    # -- training ------------------------------------------------------------------------------------------------------

    def _stage(self, index: int) -> StageFacts:
        stage: StageDescription = self.config.training.stages[index]
        overall = self.config.training.lr_schedule.params.base_lr is not None
        epochs = None if stage.epochs == COMMAND_LINE else stage.epochs
        epochs_lr = None if stage.epochs_lr == COMMAND_LINE else stage.epochs_lr or epochs
        return StageFacts(
            train_dims=stage.train_dims,
            epochs=epochs,
            learning_rate=None if stage.init_lr == COMMAND_LINE or overall else stage.init_lr,
            epochs_lr=epochs_lr,
            width_indicator=stage.width_indicator,
            depth_indicator=stage.depth_indicator,
            sample_rate=stage.sample_rate,
            reorders=stage.reorg_weights,
            reorg_interval=stage.reorg_interval,
            subnets=_size(self._space(index)),
        )

    def _warn_of_stages(self, all_widths: SearchSpace | None, space: SearchSpace | None) -> None:
        training = self.config.training
        stages, groups = training.stages, groups_of(self.config)
        if training.schedule.list_stage_descriptions is None:
            self.warnings.append(
                f"schedule.list_stage_descriptions is missing: NNCF's {len(stages)} stages are trained"
            )
        reach = max((s.width_indicator for s in stages if "width" in s.train_dims), key=_reach, default=1)
        last = stages[-1].width_indicator
        if training.is_elastic("width"):
            if all_widths is not None and space is not None:
                counts = [
                    len(gene.choices) for gene in all_widths.genes if self.blueprint is None or 0 not in gene.choices
                ]
            else:
                counts = [len(group.widths) for group in groups]
            cut = sum(count > _reach(last) for count in counts)
            if cut:
                fate = "neither trained nor searched" if _reach(reach) <= _reach(last) else "trained, yet not searched"
                self.warnings.append(
                    f"width_indicator {last} keeps only the largest {last} widths of a group: {cut} of {len(counts)} "
                    f"groups list more (up to {max(counts)}), whose smaller widths are {fate}; -1 keeps all"
                )
        elif groups:
            self.warnings.append(
                "overwrite_groups lists widths, but the last stage does not train width: none is searched"
            )
        if training.elasticity.depth.skipped_blocks and not training.is_elastic("depth"):
            self.warnings.append(
                "skipped_blocks lists blocks, but the last stage does not train depth: none is skipped"
            )
        overall = training.lr_schedule.params.base_lr is not None  # then no stage has a rate of its own
        for index, stage in enumerate(() if overall else stages):
            if stage.epochs_lr is not None and stage.epochs != COMMAND_LINE and stage.epochs_lr > stage.epochs:
                self.warnings.append(
                    f"stage {index}: the learning rate would reach zero after {stage.epochs_lr} epochs (epochs_lr), "
                    f"but the stage ends after {stage.epochs}"
                )
        if space is not None and space.num_subnets == 1:
            self.warnings.append("the space has one subnet: there is nothing to search")

    # -- search and importance -----------------------------------------------------------------------------------------

    def _search(self, space: SearchSpace | None) -> SearchFacts:
        settings = configured_search(self.config)
        floor = None
        if settings.ref_acc not in (None, -1):
            assert settings.ref_acc is not None
            fraction = settings.ref_acc / 100 if settings.ref_acc > 1 else settings.ref_acc
            floor = fraction - settings.acc_delta / 100
            self._warn_of_floor(settings, floor)
        if space is not None and 1 < space.num_subnets < settings.budget:
            self.warnings.append(
                f"the space has {space.num_subnets} subnets, fewer than the {settings.budget} evaluations of the search"
            )
        return SearchFacts(
            metric=self.config.search.eval_metric_name,
            settings=asdict(settings),
            generations=settings.generations,
            evaluations=settings.budget,
            rounded_away=settings.num_evals - settings.budget,
            floor=floor,
        )

    def _warn_of_floor(self, settings: SearchSettings, floor: float) -> None:
        assert settings.ref_acc is not None
        if settings.ref_acc == 1:
            self.warnings.append("ref_acc 1 is read as the fraction 1.0, which is 100 %; one percent would be 0.01")
        if floor >= 1:
            self.warnings.append(f"ref_acc {settings.ref_acc:g} less acc_delta asks for 100 %, which no subnet has")
        elif floor <= 0:
            self.warnings.append(f"ref_acc {settings.ref_acc:g} less acc_delta is not above 0: every subnet passes")
        given = self.config.search.acc_delta
        if given != settings.acc_delta and given > _MOST_TO_LOSE:
            self.warnings.append(
                f"acc_delta {given:g} beside ref_acc {settings.ref_acc:g} is a fraction, {settings.acc_delta:g} points "
                f"of a percent; {given:g} points would be {given / 100:g}"
            )
        known = self.implied.known
        if known is not None and known.name == "BERT-medium" and settings.ref_acc in _REF_ACC_OF_BERT_BASE:
            self.warnings.append(
                f"ref_acc {settings.ref_acc:g} is the value published for BERT-base, here on {known.name}: perhaps no "
                "subnet reaches it"
            )

    def _movement(self) -> MovementFacts | None:
        if not self.config.document.compression:
            return None
        section, total = self.config.movement, self.config.document.movement_sparsity_total_epochs
        params = section.params
        if total is not None and total < params.warmup_end_epoch:
            self.warnings.append(
                f"movement_sparsity_total_epochs {total:g} ends before the warm-up does ({params.warmup_end_epoch:g})"
            )
        if params.warmup_start_epoch == 0 and params.init_importance_threshold is None:
            self.warnings.append(
                "compression.params.warmup_start_epoch 0 begins with untrained scores, all 0, which would mask every "
                "weight; begin later or set init_importance_threshold"
            )
        return MovementFacts(
            structures=tuple(
                (_granularity(entry), tuple(entry.target_scopes)) for entry in section.sparse_structure_by_scopes
            ),
            ignored_scopes=section.ignored_scopes,
            target_scopes=section.target_scopes,
            params=params.model_dump(exclude={"steps_per_epoch"}) | ({} if total is None else {"total_epochs": total}),
        )


_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
_MOST_TO_LOSE = 0.1  # a larger fraction is hardly meant
# Of the configs published for BERT-base (nncf_configs/eftnas), whose values those for BERT-medium repeat.
_REF_ACC_OF_BERT_BASE = frozenset({56.23, 65.7, 77.9, 84.1, 88.5, 88.85, 90.66, 90.71, 92.32})


def _silent(text: str) -> None:
    """Take a warning that is given elsewhere."""


def _read_model_config(model: str) -> Any:
    """Return the Hugging Face config of a directory or hub id; a directory's is read without transformers."""
    path = Path(model)
    if not path.is_dir():
        from bootstrapnas.extraction import load_config

        return load_config(model)
    found = read_json(path / "config.json")
    if not isinstance(found, dict) or "model_type" not in found:
        raise UserError(f"{path / 'config.json'} is no model's config: it has no 'model_type'")
    if found.get("subnet") is not None:
        raise UserError(f"{model} is an extracted subnet; give the model that the supernet was made from")
    labels = len(found["id2label"]) if found.get("id2label") else 2  # as Hugging Face's configs have it
    return named_config({"architectures": None, "num_labels": labels, **found})


def _blueprint(given: Any, architecture: str, model: str, family: Family) -> Blueprint:
    """Return the blueprint of a given model; labels of a head that the checkpoint does not have are not counted."""
    if architecture not in (given.architectures or ()):
        given = SimpleNamespace(**{**_attributes(given), "num_labels": labels_of(architecture)})
    try:
        return Blueprint(given, architecture, family)
    except AttributeError:  # a default that the file leaves to transformers, or an attribute under another name
        from bootstrapnas.extraction import load_config

        return Blueprint(load_config(model), architecture, family)


def _attributes(config: Any) -> dict[str, Any]:
    return dict(vars(config)) if isinstance(config, SimpleNamespace) else dict(config.to_dict())


def _is_pretraining(architecture: str) -> bool:
    return architecture.endswith(("ForMaskedLM", "ForPreTraining"))


def _is_attention(group: Group) -> bool:
    return any("self" in member.module or "attention" in member.module for member in group.members)


def _every_layer(group: Group) -> bool:
    return any(member.layer == -1 for member in group.members)


def _reach(width_indicator: int) -> float:
    return math.inf if width_indicator == -1 else width_indicator


def _modules(group: Group) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member.module for member in group.members))


def _layers(layers: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(sorted({layer for layer in layers if layer is not None}))


def _plain_group(group: Group, indicator: int) -> ElasticGroup:
    return ElasticGroup(
        name="rank" if all(member.is_rank for member in group.members) else "width",
        modules=_modules(group),
        layers=None if _every_layer(group) else _layers(member.layer for member in group.members),
        channels=group.widths,
        units=group.widths if all(member.is_rank for member in group.members) else None,
        kept=int(min(len(group.widths), _reach(indicator))),
    )


def _size(space: SearchSpace | None) -> SpaceSize | None:
    if space is None:
        return None
    return SpaceSize(space.num_subnets, round(sum(math.log10(count) for count in space.cardinalities), 2))


def _distillation(config: NNCFConfig) -> dict[str, Any]:
    """Return what the config says of a teacher: its own, and NNCF's section, whose teacher is the model itself."""
    document, training = config.document, config.document.bootstrap_nas.training
    names = ("kd_teacher_model", "kd_mode", "kd_temperature")
    found = {name: value for name in names if (value := getattr(document, name)) is not None}
    if training is not None and training.compression:
        found["model_before_training"] = training.compression[0].model_dump(exclude={"algorithm"})
    return found


def _lr_schedule(config: NNCFConfig) -> dict[str, Any] | None:
    training = config.document.bootstrap_nas.training
    if training is None or training.lr_schedule.params.base_lr is None:
        return None
    return training.lr_schedule.params.model_dump(exclude_none=True)


def _granularity(entry: SparseStructure) -> str:
    if entry.mode == "block":
        assert entry.sparse_factors is not None
        return f"blocks of {entry.sparse_factors[0]} x {entry.sparse_factors[1]}"
    if entry.mode == "per_dim":
        return "output channels" if entry.axis == 0 else "input channels"
    return "single entries"
