"""Train a super-adapter: low-rank adapters of elastic rank on a frozen base model of elastic width."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from torch import Tensor
from transformers import PreTrainedModel

from bootstrapnas.artefacts import write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.distillation import Distillation
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.extraction import load_config
from bootstrapnas.families import family_of
from bootstrapnas.families.adapted import SCALINGS, Adapters, is_transposed
from bootstrapnas.importance import default_rule, order_scores, orders
from bootstrapnas.integers import WEIGHT_FORMATS, check_weight_format
from bootstrapnas.nncf_config import NNCFConfig, read_config
from bootstrapnas.pipeline.adapters import merge_adapter, put_adapter, read_adapter
from bootstrapnas.pipeline.arguments import (
    DistillationArguments,
    ModelArguments,
    StageTrainingArguments,
    TaskArguments,
    flag,
)
from bootstrapnas.pipeline.calibration import calibrated_scores
from bootstrapnas.pipeline.data import Rows, data_inputs, resolve_task, task_settings, with_fixed_data
from bootstrapnas.pipeline.models import (
    SPACE_FILE,
    check_evaluations,
    evaluate_model,
    fit_length,
    load_student,
    save_tokenizer,
    student_tokenizer,
    validate,
)
from bootstrapnas.pipeline.sampled import save_sampled
from bootstrapnas.pipeline.stages import begin, finish, report_config, resume_point, settle_best, tell_metrics
from bootstrapnas.pipeline.supernet_training import (
    build_trainer,
    check_search,
    measure_extremes,
    settle_sampling,
    settle_schedule,
)
from bootstrapnas.pipeline.supernets import (
    DTYPES,
    SuperAdapter,
    build_super_adapter,
    check_base,
    load_orders,
    read_super_adapter,
    read_trained,
    save_orders,
    save_super_adapter,
)
from bootstrapnas.pipeline.teacher import (
    OWN_TEACHER,
    Lesson,
    prepare_lesson,
    settle_distillation,
    supernet_lesson,
    warn_without_teacher,
)
from bootstrapnas.progress import warn
from bootstrapnas.schedule import StageSchedule
from bootstrapnas.tasks import TASK_FILE
from bootstrapnas.training import StageTrainer
from lonas.search_space import default_targets

# ruff: noqa: UP045

WITHOUT_EFFECT = {
    "lora": "adapters are all that is trained",
    "do_test": "lonas eval measures a subnet",
    "do_search": "lonas search searches",
    "to_onnx": "lonas export --format onnx writes a merged model as ONNX",
    "max_predict_samples": "nothing is predicted; --max_eval_samples of lonas eval --split test takes fewer test rows",
    "pad_to_max_length": "a batch is as long as its longest row",
    "overwrite_cache": "no tokenized rows are kept",
    "cache_dir": "the environment variable HF_HOME says where downloads are kept",
    "use_auth_token": "the environment variable HF_TOKEN says who asks the hub",
    "use_fast_tokenizer": "the fast tokenizer is taken where there is one",
    "config_name": "the model's own config is taken",
    "ignore_mismatched_sizes": "a head of other classes than the task's is refused",
    "dataset_name": "--task_name names the data sets that are known; others are files (--train_file)",
    "dataset_config_name": "--task_name names the data sets that are known; others are files (--train_file)",
}
"""Flags of the published scripts that change nothing here, and why."""
INSTEAD = {
    "lora_weights": "lonas import-adapter --adapter_dir {} takes over an adapter that is trained, for lonas eval and "
    "lonas search; lonas train trains a new one",
    "model_revision": "the hub's main revision is loaded; download {} (hf download --revision --local-dir) and pass "
    "its directory as --model_name_or_path",
}
"""Those whose result would be another one without them, and what to do."""
TASK_FLAGS = ("task_type", "dataset_path", "cutoff_len")
"""Flags that say by their published names what others say of the task."""
TASK_TYPES = ("commonsense", "math", "glue", "sft")
DRAWS = ("step", "batch")
"""What subnets may be drawn anew for."""


@dataclass
class AdapterArguments:
    """The super-adapter."""

    _argument_group_name = "super-adapter"

    nncf_config: Optional[str] = flag(None, "NNCF config with the search space; without one, an ordinary LoRA.")
    adapter_dir: Optional[str] = flag(
        None,
        "Output of lonas train to go on from, such as an ordinary LoRA: its adapters are as they were trained, and "
        "--reorder orders the units of the model with them.",
    )
    lora_r: int = flag(8, "The largest rank.")
    lora_alpha: float = flag(16.0, "Adapters are scaled by alpha / r.")
    lora_dropout: float = flag(0.1, "Dropout probability of the adapters' inputs.")
    target_modules: str = flag(
        "", "Linear layers with adapters, separated by commas: q_proj,v_proj; default: all but attention's output."
    )
    modules_to_save: str = flag(
        "", "Modules outside the layers that are trained whole, beside the task's head, separated by commas: pooler."
    )
    lora_scaling: str = flag("fixed", f"{listed(SCALINGS)}: by the largest rank (published), or by the active one.")
    base_dtype: str = flag("float32", f"What the frozen base model is in: {listed(DTYPES)}.")
    base_weight_format: Optional[str] = flag(
        None,
        f"{listed(WEIGHT_FORMATS)}: its linear layers as integers; then ranks and blocks alone are elastic.",
    )
    reorder: str = flag("none", "Criterion that puts the base model's units in order first, such as wanda; or none.")
    reorder_batches: int = flag(32, "Batches of training rows that the criterion sees.")
    task_type: Optional[str] = flag(
        None, f"{listed(TASK_TYPES)}: what --task_name says of language models, by its published name."
    )
    dataset_path: Optional[str] = flag(None, "Training rows, as --train_file, by its published name.")
    cutoff_len: Optional[int] = flag(None, "--max_seq_length by its published name.")
    kd_own: bool = flag(
        False,
        "Every step trains the largest subnet by the labels and distils the others from it; no other teacher.",
    )
    sampling: Optional[str] = flag(None, "Subnets of a step: random (one; the default) or sandwich.")
    draw_per: str = flag(
        "step",
        f"{listed(DRAWS)}: all batches of an accumulation window compute the same subnets, or each draws its own "
        "(published).",
    )


def without_effect(name: str, default: Any) -> Any:
    """Return the field of a flag that changes nothing."""
    return flag(default, f"No effect: {WITHOUT_EFFECT[name]}.")


@dataclass
class PublishedArguments:
    """Flags of the published scripts that have nothing to say here."""

    _argument_group_name = "of the published scripts"

    lora: bool = without_effect("lora", False)
    do_test: bool = without_effect("do_test", False)
    do_search: bool = without_effect("do_search", False)
    to_onnx: Optional[str] = without_effect("to_onnx", None)
    max_predict_samples: Optional[int] = without_effect("max_predict_samples", None)
    pad_to_max_length: bool = without_effect("pad_to_max_length", False)
    overwrite_cache: bool = without_effect("overwrite_cache", False)
    cache_dir: Optional[str] = without_effect("cache_dir", None)
    use_auth_token: bool = without_effect("use_auth_token", False)
    use_fast_tokenizer: bool = without_effect("use_fast_tokenizer", False)
    config_name: Optional[str] = without_effect("config_name", None)
    ignore_mismatched_sizes: bool = without_effect("ignore_mismatched_sizes", False)
    dataset_name: Optional[str] = without_effect("dataset_name", None)
    dataset_config_name: Optional[str] = without_effect("dataset_config_name", None)
    lora_weights: Optional[str] = flag(None, "Refused: lonas import-adapter takes over an adapter that is trained.")
    model_revision: str = flag("main", "Refused, but for main: pass the directory of another revision.")


GROUPS = (
    ModelArguments,
    AdapterArguments,
    TaskArguments,
    DistillationArguments,
    StageTrainingArguments,
    PublishedArguments,
)


def run(
    model_args: ModelArguments,
    arguments: AdapterArguments,
    task_args: TaskArguments,
    kd: DistillationArguments,
    training: StageTrainingArguments,
    published: PublishedArguments,
    *,
    typed: Mapping[str, Any],
) -> Path:
    """Train the super-adapter; return the output directory."""
    check_published(published, typed)
    if arguments.kd_own and kd.kd_teacher_model is not None:
        raise UserError("--kd_own and --kd_teacher_model both name a teacher; pass either")
    if arguments.kd_own and arguments.nncf_config is None:
        raise UserError("--kd_own needs --nncf_config: an ordinary LoRA has no smaller subnets to teach")
    if arguments.draw_per not in DRAWS:
        raise UserError(
            f"unknown --draw_per {arguments.draw_per!r} (known: {listed(DRAWS)}){near_miss(arguments.draw_per, DRAWS)}"
        )
    if arguments.nncf_config is None:
        for name in ("sampling", "draw_per"):
            if name in typed:
                raise UserError(f"--{name} needs --nncf_config: an ordinary LoRA has no subnets to draw")
    if arguments.base_weight_format is not None:
        check_weight_format(arguments.base_weight_format)
        if arguments.reorder != "none":
            raise UserError("--reorder is for elastic widths, which a base with --base_weight_format has not")
    source = model_args.model_name_or_path
    adapters = adapters_of(arguments, source) if arguments.adapter_dir is None else go_on_from(arguments, source, typed)
    check_dtype(arguments.base_dtype)
    dtype = DTYPES[arguments.base_dtype]
    config = None if arguments.nncf_config is None else read_config(arguments.nncf_config)
    if config is not None:
        report_config(config)
        settle_teacher(arguments, kd, typed, config)
    published_names(arguments, task_args, typed)
    spec = fit_length(resolve_task(task_args, arguments.adapter_dir, source, kd.kd_teacher_model), typed, source)
    if config is not None:
        check_search(config, spec)
    metrics = [spec.metric] if config is None else [f"{spec.metric}_{name}" for name in ("min", "max")]
    settle_best(training, typed, metrics, () if spec.maximise else metrics)
    stage = begin(
        "train",
        str(training.output_dir),
        typed,
        {
            "model": source,
            "adapter": arguments.adapter_dir,
            "teacher": kd.kd_teacher_model,
            "nncf_config": arguments.nncf_config,
            **data_inputs(spec),
        },
        overwrite=training.overwrite_output_dir,
        settings=task_settings(spec),
        incidental={*WITHOUT_EFFECT, *INSTEAD, *TASK_FLAGS},
    )
    if stage.finished:
        return stage.directory
    spec = with_fixed_data(spec, stage.directory)
    tokenizer = student_tokenizer(model_args, spec)
    rows = Rows(spec, tokenizer, training.per_device_eval_batch_size)
    integers = arguments.base_weight_format
    model = load_student(model_args, spec, training, tokenizer, dtype if integers is None else None)
    # Kept for a run that resumes: computed again, on another machine, an order might not be that of the checkpoint.
    found = load_orders(stage.directory) or orders_of(arguments, model, rows, training)
    save_orders(stage.directory, found)
    supernet = build_super_adapter(model, adapters, config, {}, integers, dtype)
    if arguments.adapter_dir is not None:
        put_adapter(model, read_adapter(arguments.adapter_dir), arguments.adapter_dir)
    supernet.reorder(found)
    if config is None:
        lesson = prepare_lesson(rows, rows.split("train"), kd, training, model)
        trainer = build_lora_trainer(supernet.model, training, rows, lesson)
    else:
        lesson = own_lesson(rows, kd) if arguments.kd_own else supernet_lesson(rows, config, kd, typed, training, model)
        schedule = settle_schedule(config, training, typed, len(lesson.rows))
        warn_of_orders(config, schedule)
        sampling = settle_sampling(config, typed, "random")
        per_batch = draws_per_batch(arguments.draw_per, config, schedule)
        trainer = build_trainer(
            supernet, config, schedule, sampling, training, rows, lesson, trained_only=True, draws_per_batch=per_batch
        )
    trainer.train(resume_from_checkpoint=resume_point(stage))
    measured = validate(model, rows) if config is None else measure_extremes(supernet, rows)
    tell_metrics(stage, measured)
    about = SuperAdapter(local_path(source), adapters, integers, arguments.base_dtype)
    save_super_adapter(stage.directory, supernet, about, found)
    save_tokenizer(stage.directory, tokenizer)
    spec.save(stage.directory / TASK_FILE)
    if config is not None:
        write_json(stage.directory / SPACE_FILE, config.raw)
        save_sampled(stage.directory, supernet.space, trainer.drawn())
    finish(stage, measured)
    return stage.directory


def check_published(published: PublishedArguments, typed: Mapping[str, Any]) -> None:
    """Warn of the published scripts' flags that change nothing; `UserError` for those that would change the result."""
    for name, instead in INSTEAD.items():
        value = getattr(published, name)
        if value not in (None, "main"):
            raise UserError(f"--{name}: {instead.format(value)}")
    for name, reason in WITHOUT_EFFECT.items():
        if name in typed:
            warn(f"--{name} has no effect: {reason}")


def settle_teacher(
    arguments: AdapterArguments, kd: DistillationArguments, typed: Mapping[str, Any], config: NNCFConfig
) -> None:
    """Take over what the config says of distillation; its teachers give way to ``--kd_own``, with a warning."""
    settle_distillation(kd, typed, config.document)
    if not arguments.kd_own:
        return
    teachers = {"kd_teacher_model": kd.kd_teacher_model, OWN_TEACHER: config.training.compression}
    for key, named in teachers.items():
        if named:
            warn(f"{config.path}: {key} has no effect: with --kd_own the largest subnet is the teacher")
    kd.kd_teacher_model = None


def warn_of_orders(config: NNCFConfig, schedule: StageSchedule) -> None:
    """Warn of what a config says of the order of units, which here is that of the base model or ``--reorder``'s."""
    key = "bootstrapNAS.training.elasticity.width.filter_importance"
    idle = ["reorg_weights and reorg_interval have"] if schedule.reorder_steps else []
    idle += [f"{key} has"] if config.names(key) else []
    for keys in idle:
        warn(f"{config.path}: {keys} no effect: --reorder orders the units of the base model, once")


def draws_per_batch(draw_per: str, config: NNCFConfig, schedule: StageSchedule) -> bool:
    """Return whether each batch of an accumulation window draws its own subnets.

    Raises
    ------
    UserError
        If the config keeps them for several steps.
    """
    rate = max(stage.sample_rate for stage in schedule.stages)
    if draw_per == "batch" and rate > 1:
        raise UserError(
            f"--draw_per batch contradicts sample_rate {rate} of {config.path}, which keeps the subnets of a step for "
            f"{rate} steps; remove either"
        )
    return draw_per == "batch"


def published_names(arguments: AdapterArguments, task: TaskArguments, typed: Mapping[str, Any]) -> None:
    """Put what the flags of the published scripts say where the project's own flags say it."""
    kind = arguments.task_type
    if kind is not None and kind not in TASK_TYPES:
        raise UserError(f"unknown --task_type {kind!r} (known: {listed(TASK_TYPES)}){near_miss(kind, TASK_TYPES)}")
    if kind == "glue" and task.task_name is None:
        raise UserError("--task_type glue needs the --task_name of a GLUE task, such as rte")
    same = {
        "task_name": None if kind == "glue" else kind,
        "train_file": arguments.dataset_path,
        "max_seq_length": arguments.cutoff_len,
    }
    for name, value in same.items():
        if value is None:
            continue
        if name in typed and typed[name] != value:
            raise UserError(f"--{name} {typed[name]} contradicts {value!r}, which another flag says; pass either")
        setattr(task, name, value)


def adapters_of(arguments: AdapterArguments, source: str) -> Adapters:
    """Return the adapters that the flags describe, for a model by hub id or directory."""
    named, whole = (
        tuple(part.strip() for part in text.split(",") if part.strip())
        for text in (arguments.target_modules, arguments.modules_to_save)
    )
    family = family_of(load_config(source))
    targets = named or default_targets(family)
    rank, alpha, dropout = arguments.lora_r, arguments.lora_alpha, arguments.lora_dropout
    transposed = is_transposed(family, targets)
    return Adapters(targets, rank, alpha, dropout, arguments.lora_scaling, whole, transposed)


def go_on_from(arguments: AdapterArguments, source: str, typed: Mapping[str, Any]) -> Adapters:
    """Return the adapters of ``--adapter_dir``, with the dropout that was typed.

    Raises
    ------
    UserError
        If there are none, they are of another base model, or a flag describes others.
    """
    directory = str(arguments.adapter_dir)
    read_trained(directory)
    about = read_super_adapter(directory, source)
    check_base(directory, source)
    found = about.adapters
    lists = {"target_modules": ",".join(found.targets), "modules_to_save": ",".join(found.whole)}
    own = {"lora_r": found.rank, "lora_alpha": found.alpha, "lora_scaling": found.scaling, **lists}
    for name, value in own.items():
        if name in typed and typed[name] != value:
            raise UserError(f"--{name} {typed[name]}: the adapters in {directory} have {value}")
    if arguments.base_weight_format != about.weight_format:
        raise UserError(
            f"--base_weight_format {arguments.base_weight_format}: the adapters in {directory} were trained on a base "
            f"in {about.weight_format or 'floating point'}"
        )
    return replace(found, dropout=arguments.lora_dropout if "lora_dropout" in typed else found.dropout)


def check_dtype(name: str, flag: str = "base_dtype") -> None:
    """Raise `UserError` if a model cannot be in a dtype of that name."""
    if name not in DTYPES:
        raise UserError(f"unknown --{flag} {name!r} (known: {listed(DTYPES)}){near_miss(name, DTYPES)}")


def local_path(source: str) -> str:
    """Return a directory's absolute path; a hub id stays."""
    return str(Path(source).absolute()) if Path(source).is_dir() else source


def orders_of(
    arguments: AdapterArguments, model: PreTrainedModel, rows: Rows, training: StageTrainingArguments
) -> dict[Key, Tensor]:
    """Return the orders of the base model's units by the criterion that the flags name; none of one unit alone.

    With adapters to go on from, the units are scored as those adapters have them, and without a criterion their order
    is the one in which they were trained.
    """
    start = arguments.adapter_dir
    if arguments.reorder == "none":
        return {} if start is None else load_orders(start)
    if start is not None:
        model = merge_adapter(copy.deepcopy(model), start)
    blueprint = Blueprint.of(model)
    scores = calibrated_scores(arguments.reorder, model, rows, arguments.reorder_batches, training)
    found = orders(order_scores(blueprint, scores, default_rule(arguments.reorder)))
    return {key: order.cpu() for key, order in found.items() if len(order) > 1}


def own_lesson(rows: Rows, kd: DistillationArguments) -> Lesson:
    """Return the training rows with the largest subnet as the teacher of the others."""
    warn_without_teacher(kd)
    outputs = rows.spec.kind.outputs
    distillation = Distillation(kd.kd_temperature, kd.kd_task_weight, kd.kd_teacher_weight, outputs)
    return Lesson(rows.split("train"), distillation, in_place=True)


def build_lora_trainer(
    model: PreTrainedModel, training: StageTrainingArguments, rows: Rows, lesson: Lesson
) -> StageTrainer:
    """Return the trainer of an ordinary LoRA, with Hugging Face's schedule."""
    check_evaluations(rows, training)
    return StageTrainer(
        model=model,
        args=training,
        train_dataset=lesson.rows,
        data_collator=rows.collator,
        title="LoRA",
        distillation=lesson.distillation,
        teacher=lesson.teacher,
        trained_only=True,
        eval_dataset=lesson.rows,
        measure=lambda: evaluate_model(model, rows, "validation"),
    )
