"""What an NNCF config may say: the keys of NNCF 2.19's ``bootstrapNAS`` and ``movement_sparsity`` sections.

Names, nesting and, but for those of the search, defaults are NNCF's, with the keys that EFTNAS and LoNAS added. A key
that is accepted but changes nothing here carries the reason (`without_effect`), so that the reader can tell the user.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

REASON = "without_effect"
COMMAND_LINE = -1
"""A number that stands for "as the command line says"."""

Int: TypeAlias = Annotated[int, Field(strict=True)]
Number: TypeAlias = Annotated[float, Field(strict=True)]
Bool: TypeAlias = Annotated[bool, Field(strict=True)]
Text: TypeAlias = Annotated[str, Field(strict=True)]
Count: TypeAlias = Annotated[Int, Field(ge=1)]
NotNegative: TypeAlias = Annotated[Number, Field(ge=0)]
Positive: TypeAlias = Annotated[Number, Field(gt=0)]
Share: TypeAlias = Annotated[Number, Field(gt=0, le=1)]
Probability: TypeAlias = Annotated[Number, Field(ge=0, le=1)]
ElasticityDim: TypeAlias = Literal["width", "depth", "kernel"]
KDMode: TypeAlias = Literal["original", "hidden_states", "attention_relations", "self_attention_distillation"]
NodeGroup: TypeAlias = Annotated[tuple[Text, ...], Field(min_length=1)]


def as_list(value: Any) -> Any:
    """NNCF takes one object or string where it takes a list of them."""
    return [value] if isinstance(value, (dict, str)) else value


OneOrMore = BeforeValidator(as_list)
Scopes: TypeAlias = Annotated[tuple[Text, ...], OneOrMore]


def without_effect(default: Any, reason: str) -> Any:
    """Return a field that is accepted and changes nothing, and why."""
    return Field(default, json_schema_extra={REASON: reason})


class Section(BaseModel):
    """An object of the config: no other keys than its fields, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section that an annotation holds, possibly in a list or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part))), None)


NO_BATCH_NORM = "these models have no batch normalisation"
NO_KERNELS = "these models have no convolution kernels"
STRUCTURE_KNOWN = "blocks come from the model family"


class InputInfo(Section):
    """One input of the model; `sample_size` is its shape, for BERT [batch, tokens]."""

    sample_size: Annotated[tuple[Count, ...], Field(min_length=2)]
    type: Literal["float", "long"] = "float"
    keyword: Text | None = None
    filler: Text | None = without_effect(None, "nothing is traced with made-up inputs")


class BatchnormAdaptation(Section):
    num_bn_adaptation_samples: Int = without_effect(2000, NO_BATCH_NORM)


# -- bootstrapNAS.training ---------------------------------------------------------------------------------------------


WIDTH_RULE = ("min_width", "max_num_widths", "width_step", "width_multipliers")
"""The keys of `Width` that `overwrite_groups_widths` makes idle."""


class Width(Section):
    """Elastic width: the groups of layers that share a width, and the widths, in channels.

    Without `overwrite_groups` the groups are those of the model family, and their widths follow from `min_width`,
    `width_step`, `width_multipliers` and `max_num_widths`.
    """

    min_width: Count = 32
    max_num_widths: Int = -1
    width_step: Count = 32
    width_multipliers: Annotated[tuple[Share, ...], Field(min_length=1)] | None = None
    filter_importance: Literal["L1", "L2", "geometric_median", "external"] = "L1"
    external_importance_path: Text | None = None
    overwrite_groups: tuple[NodeGroup, ...] | None = None
    overwrite_groups_widths: tuple[Annotated[tuple[Int, ...], Field(min_length=1)], ...] | None = None
    add_dynamic_inputs: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Width:
        if self.max_num_widths != -1 and self.max_num_widths < 1:
            raise ValueError(f"max_num_widths must be -1 (no limit) or at least 1, not {self.max_num_widths}")
        if self.filter_importance == "external" and not self.external_importance_path:
            raise ValueError("filter_importance 'external' needs external_importance_path")
        groups, widths = self.overwrite_groups, self.overwrite_groups_widths
        if (groups is None) != (widths is None):
            given, absent = ("overwrite_groups", "overwrite_groups_widths")[:: 1 if widths is None else -1]
            raise ValueError(f"{given} needs {absent}: the two lists go together")
        if groups is not None and widths is not None and len(groups) != len(widths):
            raise ValueError(
                f"overwrite_groups has {len(groups)} groups, overwrite_groups_widths {len(widths)} lists; "
                "give one list of widths per group"
            )
        return self


class Depth(Section):
    """Elastic depth: blocks as [start node, end node]; what follows the start up to the end is skipped."""

    skipped_blocks: tuple[Annotated[tuple[Text, ...], Field(min_length=2, max_length=2)], ...] | None = None
    fixed_skipped_blocks: tuple[Annotated[tuple[Text, ...], Field(min_length=2, max_length=2)], ...] = ()
    min_block_size: Int = without_effect(5, STRUCTURE_KNOWN)
    max_block_size: Int = without_effect(50, STRUCTURE_KNOWN)
    hw_fused_ops: Bool = without_effect(True, STRUCTURE_KNOWN)


class Kernel(Section):
    max_num_kernels: Int = without_effect(-1, NO_KERNELS)


class Elasticity(Section):
    available_elasticity_dims: tuple[ElasticityDim, ...] = ("width", "kernel", "depth")
    width: Width = Width()
    depth: Depth = Depth()
    kernel: Kernel = Kernel()
    ignored_scopes: Scopes = without_effect((), "overwrite_groups says which layers are elastic")
    target_scopes: Scopes = without_effect((), "overwrite_groups says which layers are elastic")


class StageDescription(Section):
    """One stage of supernet training. `epochs`, `init_lr` and `epochs_lr` of -1, or no `init_lr`, leave it to the
    command line.

    NNCF would train kernels where `train_dims` is missing; there are none here, so it is required.
    """

    train_dims: tuple[ElasticityDim, ...]
    epochs: Int = 1
    depth_indicator: Count = 1
    width_indicator: Int = 1
    reorg_weights: Bool = False
    bn_adapt: Bool = without_effect(False, NO_BATCH_NORM)
    init_lr: Number | None = None
    epochs_lr: Int | None = None
    sample_rate: Count = 1
    reorg_interval: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> StageDescription:
        for name, epochs in (("epochs", self.epochs), ("epochs_lr", self.epochs_lr)):
            if epochs is not None and epochs != COMMAND_LINE and epochs < 1:
                raise ValueError(f"{name} must be at least 1, or -1 for the command line's, not {epochs}")
        if self.init_lr is not None and self.init_lr != COMMAND_LINE and self.init_lr <= 0:
            raise ValueError(f"init_lr must be positive, or -1 for the command line's, not {self.init_lr}")
        if self.width_indicator != -1 and self.width_indicator < 1:
            raise ValueError(f"width_indicator must be -1 (all widths) or at least 1, not {self.width_indicator}")
        return self


DEFAULT_STAGES = (
    StageDescription(train_dims=("kernel",)),
    StageDescription(train_dims=("kernel", "depth")),
    StageDescription(train_dims=("kernel", "depth"), depth_indicator=2),
    StageDescription(train_dims=("kernel", "depth", "width")),
    StageDescription(train_dims=("kernel", "depth", "width"), width_indicator=2, reorg_weights=True),
)
"""NNCF's stages when the config names none (Once-for-All's order)."""


class StageList(Section):
    list_stage_descriptions: Annotated[tuple[StageDescription, ...], Field(min_length=1)] | None = None


class LRParams(Section):
    """The learning rate of all stages together, instead of one per stage."""

    base_lr: Positive | None = None
    num_epochs: Positive | None = None
    warmup_epochs: NotNegative = 0.0
    warmup_lr: Positive = 3.4e-4

    @model_validator(mode="after")
    def _check(self) -> LRParams:
        if self.model_fields_set and self.base_lr is None:
            raise ValueError("base_lr is missing: without it every stage has a learning rate of its own")
        return self


class LRSchedule(Section):
    params: LRParams = LRParams()


class KnowledgeDistillation(Section):
    algorithm: Literal["knowledge_distillation"]
    type: Literal["mse", "softmax"] = "softmax"
    scale: Positive = 1.0
    temperature: Positive = 1.0

    @model_validator(mode="after")
    def _check(self) -> KnowledgeDistillation:
        if self.type == "mse" and "temperature" in self.model_fields_set:
            raise ValueError("temperature belongs to type 'softmax', not to 'mse'")
        return self


class Training(Section):
    """How the supernet is trained, and what of it is elastic."""

    algorithm: Literal["progressive_shrinking"] = "progressive_shrinking"
    progressivity_of_elasticity: tuple[ElasticityDim, ...] = ("kernel", "depth", "width")
    batchnorm_adaptation: BatchnormAdaptation = BatchnormAdaptation()
    schedule: StageList = StageList()
    elasticity: Elasticity = Elasticity()
    lr_schedule: LRSchedule = LRSchedule()
    compression: Annotated[tuple[KnowledgeDistillation, ...], Field(max_length=1), OneOrMore] = ()
    train_steps: Count | None = without_effect(None, "the rows of an epoch are set on the command line")
    frozen_layers_allowed: Bool = without_effect(False, "frozen layers are always allowed")
    sandwich_rule: Bool | None = None

    @property
    def available(self) -> tuple[str, ...]:
        """The elasticity dimensions that exist here: kernels do not."""
        return tuple(dim for dim in self.elasticity.available_elasticity_dims if dim != "kernel")

    @property
    def stages(self) -> tuple[StageDescription, ...]:
        """The stages, NNCF's if the config names none; kernels, and stages that train nothing else, are left out."""
        stages = self.schedule.list_stage_descriptions
        named = DEFAULT_STAGES if stages is None else stages
        wanted = self.available if stages is None else ("width", "depth")
        return tuple(
            stage.model_copy(update={"train_dims": tuple(dim for dim in stage.train_dims if dim in wanted)})
            for stage in named
            if not stage.train_dims or set(stage.train_dims).intersection(wanted)
        )

    def is_elastic(self, dim: str, stage: int = -1) -> bool:
        """Return whether subnets differ in ``"width"`` or ``"depth"`` in a stage (the last one: in the search too)."""
        return dim in self.available and bool(self.stages) and dim in self.stages[stage].train_dims

    @model_validator(mode="after")
    def _check(self) -> Training:
        order = [dim for dim in self.progressivity_of_elasticity if dim in self.available]
        for dim in self.available:
            if dim not in order:
                raise ValueError(f"progressivity_of_elasticity lacks {dim!r}, which available_elasticity_dims has")
        highest = -1
        for index, stage in enumerate(self.schedule.list_stage_descriptions or ()):
            where = f"schedule.list_stage_descriptions[{index}]"
            dims = [dim for dim in stage.train_dims if dim != "kernel"]
            for dim in dims:
                if dim not in self.available:
                    raise ValueError(f"{where}.train_dims has {dim!r}, which available_elasticity_dims lacks")
            reached = max((order.index(dim) for dim in dims), default=-1)
            if reached < highest:
                raise ValueError(f"{where}.train_dims drops {order[highest]!r}, which an earlier stage trained")
            skipped = [dim for dim in order[: reached + 1] if dim not in dims]
            if skipped:
                raise ValueError(
                    f"{where}.train_dims has {order[reached]!r} but not {skipped[0]!r}, which comes before it in "
                    "progressivity_of_elasticity; train both, or take it out of available_elasticity_dims"
                )
            highest = reached
            if stage.init_lr not in (None, COMMAND_LINE) and self.lr_schedule.params.base_lr is not None:
                raise ValueError(f"{where}.init_lr contradicts lr_schedule.params.base_lr; keep one of the two")
        return self


# -- bootstrapNAS.search -----------------------------------------------------------------------------------------------


RNSGA2_KEYS = ("aspiration_points", "epsilon", "weights", "extreme_points_as_ref_points")
"""The keys of `Search` that algorithms other than RNSGA2 do not read."""


class Search(Section):
    """How subnets are searched. Defaults are those of the search here, not NNCF's."""

    algorithm: Text = "NSGA2"
    num_evals: Count = 200
    population: Count = 20
    num_constraints: Int = without_effect(0, "no constraint is defined")
    seed: Annotated[Int, Field(ge=0)] = 0
    crossover_prob: Probability = 0.9
    crossover_eta: NotNegative = 10.0
    mutation_prob: Probability | None = None
    mutation_eta: NotNegative = 3.0
    acc_delta: NotNegative = 1.0
    ref_acc: Number = -1.0
    batchnorm_adaptation: BatchnormAdaptation = BatchnormAdaptation()
    aspiration_points: Annotated[tuple[tuple[Number, Number], ...], Field(min_length=1)] = ((0.0, 0.0),)
    epsilon: NotNegative = 0.001
    weights: tuple[Positive, Positive] | None = None
    extreme_points_as_ref_points: Bool = False
    eval_metric_name: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> Search:
        if self.population > self.num_evals:
            raise ValueError(f"population {self.population} exceeds num_evals {self.num_evals}")
        for index, (macs, metric) in enumerate(self.aspiration_points):
            if macs < 0 or metric > 0:
                raise ValueError(
                    f"aspiration_points[{index}] must be [MACs in millions, metric with a minus sign], as both are "
                    f"minimised, not [{macs:g}, {metric:g}]"
                )
        return self


class BootstrapNAS(Section):
    training: Training | None = None
    search: Search = Search()


# -- compression: movement sparsity ------------------------------------------------------------------------------------


class MovementParams(Section):
    """The schedule of movement sparsity, in epochs."""

    warmup_start_epoch: NotNegative
    warmup_end_epoch: Positive
    importance_regularization_factor: NotNegative
    enable_structured_masking: Bool = True
    power: Positive = 3.0
    init_importance_threshold: Number | None = None
    final_importance_threshold: Number = 0.0
    steps_per_epoch: Count | None = without_effect(None, "the number of steps is known from the data")

    @model_validator(mode="after")
    def _check(self) -> MovementParams:
        if self.warmup_start_epoch >= self.warmup_end_epoch:
            raise ValueError(
                f"warmup_start_epoch {self.warmup_start_epoch:g} is not before "
                f"warmup_end_epoch {self.warmup_end_epoch:g}"
            )
        return self


class SparseStructure(Section):
    """How finely the layers of `target_scopes` are scored."""

    mode: Literal["fine", "block", "per_dim"]
    sparse_factors: tuple[Count, Count] | None = None
    axis: Literal[0, 1] | None = None
    target_scopes: Scopes

    @model_validator(mode="after")
    def _check(self) -> SparseStructure:
        for name, mode in (("sparse_factors", "block"), ("axis", "per_dim")):
            given = getattr(self, name) is not None
            if given and self.mode != mode:
                raise ValueError(f"{name} belongs to mode {mode!r}, not to {self.mode!r}")
            if not given and self.mode == mode:
                raise ValueError(f"mode {mode!r} needs {name}")
        return self


class MovementSparsity(Section):
    """Movement sparsity: which linear layers get importance scores, and when the threshold rises."""

    algorithm: Literal["movement_sparsity"]
    params: MovementParams
    sparse_structure_by_scopes: tuple[SparseStructure, ...] = ()
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    compression_lr_multiplier: Positive = 1.0


# -- the whole file ----------------------------------------------------------------------------------------------------


class Document(Section):
    """A whole NNCF config."""

    editor_schema: Text | None = Field(None, alias="$schema")
    input_info: Annotated[tuple[InputInfo, ...], OneOrMore] = ()
    bootstrap_nas: BootstrapNAS = Field(BootstrapNAS(), alias="bootstrapNAS")
    compression: Annotated[tuple[MovementSparsity, ...], Field(max_length=1), OneOrMore] = ()
    log_dir: Text = without_effect(".", "every stage writes to its output_dir")
    target_device: Text = without_effect("ANY", "the exported model runs on any device of OpenVINO")
    disable_shape_matching: Bool = without_effect(False, "nothing is traced")
    ignored_scopes: Scopes = without_effect((), "name them in the section that they belong to")
    target_scopes: Scopes = without_effect((), "name them in the section that they belong to")
    model_name_or_path: Text | None = without_effect(None, "the model is named on the command line")
    kd_teacher_model: Text | None = None
    kd_mode: KDMode | None = None
    kd_temperature: Positive | None = None
    movement_sparsity_total_epochs: Count | None = None
