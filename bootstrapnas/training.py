"""Training of a stage: Hugging Face's Trainer with several subnets a step, teacher outputs, and rates per step."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from bootstrapnas.artefacts import load_tensors, save_tensors, writing
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.distillation import Distillation, Said, Teacher
from bootstrapnas.errors import UserError
from bootstrapnas.intermediate import recording
from bootstrapnas.outputs import MASK, TEACHER
from bootstrapnas.progress import Ticker, warn
from bootstrapnas.sampling import LARGEST, SMALLEST
from bootstrapnas.supernet import Supernet

TRAINED_FILE, LOSSES_FILE = "trained.safetensors", "losses.safetensors"
_TAUGHT, _PLACES = "taught", ".places"


class StageTrainer(Trainer):
    """Hugging Face's Trainer for one stage.

    Parameters
    ----------
    model
        What is trained; for a supernet, ``supernet.model``.
    args
        All of Hugging Face's training arguments.
    train_dataset, data_collator
        Rows and how they become a batch. A batch may carry a teacher's outputs, each under its name with the prefix
        ``"teacher_"``.
    title
        Shown with the progress.
    describe
        A subnet in a few words, shown with the progress for those that were drawn at random.
    supernet, subnets
        With both, every optimiser step computes each of ``subnets(step, 0)`` forward and backward, inside its
        activation, on the same batch; the gradients add up. All micro-batches of an accumulation window use the same
        subnets.
    draws_per_batch
        Micro-batch ``i`` of an accumulation window computes ``subnets(step, i)`` instead.
    distillation
        How the task loss and the teacher's outputs combine.
    teacher
        Says of every batch, once for all subnets of a step, what the distillation compares; needed where that is more
        than the batch carries. Placed on the training device.
    in_place
        In-place distillation (Yu & Huang 2019): the subnet called `LARGEST`, the first of each step, learns from the
        labels alone, and what it says of the batch teaches the others. Instead of a teacher.
    penalty
        A term added to the loss of every pass, scalar.
    before_step
        Called with the number of the optimiser step about to start.
    orders
        New orders of the supernet's units before an optimiser step, by the number of the step; the optimiser's moments
        move along. Empty to leave them.
    trained_only
        Checkpoints hold the parameters that are trained, not those that are frozen: for a large frozen model.
    learning_rate
        Learning rate as a function of the optimiser step; instead of Hugging Face's schedules.
    score_learning_rate
        Learning rate of importance scores (parameters whose name ends in ``_importance``); default: that of the rest.
    stop_after
        Number of optimiser steps after which training ends, whatever the schedule says.
    eval_dataset, measure
        With both, evaluations that `args` ask for call ``measure()`` and log its metrics with the prefix ``eval_``.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: Any,
        data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
        title: str,
        describe: Callable[[Subnet], str] | None = None,
        supernet: Supernet | None = None,
        subnets: Callable[[int, int], Mapping[str, Subnet]] | None = None,
        draws_per_batch: bool = False,
        distillation: Distillation | None = None,
        teacher: Teacher | None = None,
        in_place: bool = False,
        penalty: Callable[[], Tensor] | None = None,
        before_step: Callable[[int], None] | None = None,
        orders: Callable[[int], Mapping[Key, Tensor]] | None = None,
        trained_only: bool = False,
        learning_rate: Callable[[int], float] | None = None,
        score_learning_rate: float | None = None,
        stop_after: int | None = None,
        eval_dataset: Any = None,
        measure: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        args.remove_unused_columns = False  # the collator decides what reaches the model
        if args.dataloader_num_workers and "openvino" in sys.modules:
            # Processes forked beside OpenVINO's threads were seen to crash; a batch is padded in no time anyway.
            warn("--dataloader_num_workers has no effect in a process in which OpenVINO was loaded")
            args.dataloader_num_workers, args.dataloader_prefetch_factor = 0, None
            args.dataloader_persistent_workers = False
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=data_collator,
            eval_dataset=eval_dataset if measure is not None else None,
        )
        self._supernet, self._subnets, self._draws_per_batch = supernet, subnets, draws_per_batch
        self._distillation, self._teacher, self._penalty = distillation, teacher, penalty
        self._in_place = in_place
        self._said: dict[str, Tensor] = {}
        if teacher is not None:
            teacher.model.to(args.device)
        if distillation is not None:
            for module in model.modules():  # ModernBERT may give logits of hidden tokens alone, a teacher does of all
                if getattr(module, "sparse_prediction", False):
                    module.sparse_prediction = False  # type: ignore[assignment]
        self._step_learning_rate, self._score_learning_rate = learning_rate, score_learning_rate
        self._before_step, self._orders, self._measure = before_step, orders, measure
        # Every loss here is a mean over the batch, which the Trainer must divide by the accumulation steps; it leaves
        # that to models whose forward takes **kwargs, and those of classification do not.
        self.model_accepts_loss_kwargs = False
        self.pop_callback(ProgressCallback)
        self.pop_callback(PrinterCallback)
        self._progress = _Progress(title, stop_after)
        self._describe, self._trained_only = describe, trained_only
        self._losses: dict[str, Any] = {}
        self._loss_steps: set[int] = set()
        self._history = _Losses()
        self._place = (-1, -1)
        self.add_callback(self._progress)
        self.add_callback(_Steps(self._prepare_step, stop_after))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; the progress bar goes away whatever happens."""
        self._history = _Losses()
        if isinstance(resume_from_checkpoint, str) and (Path(resume_from_checkpoint) / LOSSES_FILE).is_file():
            self._history = _Losses.load(Path(resume_from_checkpoint) / LOSSES_FILE)
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        finally:
            self._progress.close()

    # -- one step ------------------------------------------------------------------------------------------------------

    def _prepare_step(self, step: int) -> None:
        if self._before_step is not None:
            self._before_step(step)
        orders = self._orders(step) if self._orders is not None else {}
        if orders and self._supernet is not None:
            self._supernet.reorder(orders, self.optimizer)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward of every subnet of this step. Returns the mean of their losses."""
        inputs = self._prepare_inputs(inputs)
        inputs[_TAUGHT] = self._taught(inputs)
        if self._supernet is None or self._subnets is None:
            return super().training_step(model, inputs, num_items_in_batch)
        losses = {}
        step, batch = self.state.global_step, self._batch_of_window()
        draw = batch if self._draws_per_batch else 0
        for name, subnet in self._subnets(step, draw).items():
            if self._in_place:
                inputs[_TAUGHT] = self._said if name != LARGEST else None
            with self._supernet.activate(subnet):
                losses[name] = super().training_step(model, dict(inputs), num_items_in_batch)
            # As the Trainer's own: parts of an accumulation window add up. A number would wait for the GPU.
            loss = losses[name].detach()
            self._losses[name] = self._losses.get(name, 0.0) + loss
            whole = loss * self.current_gradient_accumulation_steps if self._draws_per_batch else loss
            self._history.add(name, step, draw, whole)
        self._loss_steps.add(step)
        return torch.stack(list(losses.values())).mean()

    def _batch_of_window(self) -> int:
        """Return the number of the present micro-batch in its accumulation window."""
        step = self.state.global_step
        self._place = (step, self._place[1] + 1) if self._place[0] == step else (step, 0)
        return self._place[1]

    def drawn(self) -> Iterator[tuple[str, Subnet, float]]:
        """Yield what was computed: the name of a subnet in its step, the subnet, its loss (of a resumed run, all)."""
        assert self._subnets is not None
        for step, draw, name, loss in self._history.entries():
            yield name, self._subnets(step, draw)[name], loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the task loss, combined with distillation and penalty where they apply."""
        taught, distillation = inputs.pop(_TAUGHT, None), self._distillation
        terms = tuple(distillation.terms) if distillation is not None and taught else ()
        with recording(self.model, terms) as inner:
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if distillation is not None and taught:
            loss = distillation(loss, {**outputs, **inner}, taught, inputs.get(MASK), inputs.get("labels"))
        elif distillation is not None and self._in_place:
            self._said = {output.name: outputs[output.name].detach() for output in distillation.outputs}
        if self._penalty is not None:
            loss = loss + self._penalty()
        if self._supernet is not None and not loss.requires_grad:
            loss = self._without_gradients(loss)
        return (loss, outputs) if return_outputs else loss

    def _without_gradients(self, loss: Tensor) -> Tensor:
        """Return what can go backward for a subnet that skips all layers with adapters: nothing of it is trained.

        The scaler of float16 refuses steps without any gradient: it gets zeros.
        """
        if self.accelerator.scaler is None:
            return loss.requires_grad_()
        trained = next(parameter for parameter in self.model.parameters() if parameter.requires_grad)
        return loss + 0 * trained.sum()

    def _taught(self, inputs: dict[str, Any]) -> Said:
        """Return what the teacher says of a batch, if anything, and take out of it what was computed beforehand."""
        cached = {key.removeprefix(TEACHER): inputs.pop(key) for key in list(inputs) if key.startswith(TEACHER)}
        if self._teacher is None:
            return cached
        with self.accelerator.autocast():
            return self._teacher(inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; beside the loss, that of each subnet since the last time, as ``loss_<name>``."""
        if "loss" in logs and self._losses:
            steps = len(self._loss_steps)
            logs = logs | {f"loss_{name}": float(total) / steps for name, total in self._losses.items()}
        if "loss" in logs:
            self._losses, self._loss_steps = {}, set()
            self._progress.state = self._shown(logs)
        super().log(logs, start_time)

    def _shown(self, logs: Mapping[str, float]) -> str:
        """Return the state of training in a few words."""
        parts = [f"loss {logs['loss']:.4f}"]
        each = [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in logs.items() if name.startswith("loss_")]
        if len(each) > 1:
            parts[0] += f" ({', '.join(each)})"
        if self._describe is not None and self._subnets is not None:
            last = self._subnets(max(self.state.global_step - 1, 0), 0)
            parts += [
                f"{name} {self._describe(subnet)}" for name, subnet in last.items() if name not in (LARGEST, SMALLEST)
            ]
        return ", ".join([*parts, f"lr {logs['learning_rate']:.2e}"])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure, log, and return the metrics."""
        if self._measure is None:
            raise RuntimeError("this trainer was given nothing to measure")
        self._progress.show(self.state.global_step, "evaluating")
        metrics = {f"eval_{name}": value for name, value in self._measure().items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint; what a full disk leaves of it is deleted, so that the one before counts."""
        directory = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            with writing(directory):
                super()._save_checkpoint(model, trial)
        except UserError:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the weights of a checkpoint, and the losses so far of the subnets of each step."""
        if self._history and output_dir is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            self._history.save(Path(output_dir) / LOSSES_FILE)
        if not self._trained_only:
            super()._save(output_dir, state_dict)
            return
        directory = Path(output_dir or str(self.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        save_tensors(directory / TRAINED_FILE, {name: tensor.detach() for name, tensor in self._trained()}, {})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read the weights of a checkpoint."""
        if not self._trained_only:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        tensors = load_tensors(Path(resume_from_checkpoint) / TRAINED_FILE)[0]
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(tensors[name])

    def _load_best_model(self) -> None:
        if not self._trained_only:
            super()._load_best_model()
        elif self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    # -- what a run is made of -----------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make Hugging Face's optimiser; scores get a group of their own when their learning rate differs."""
        optimizer = super().create_optimizer(model)
        rate = self._score_learning_rate
        scores = {id(p) for name, p in self.model.named_parameters() if name.endswith("_importance")}
        if rate is not None and scores:
            scored = [p for group in optimizer.param_groups for p in group["params"] if id(p) in scores]
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in scores]
            optimizer.add_param_group({"params": scored, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Use the given learning rate per step, else Hugging Face's schedule."""
        rate = self._step_learning_rate
        if rate is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        base = self.args.learning_rate
        scheduler = LambdaLR(optimizer or self.optimizer, lambda step: rate(step) / base if base else 0.0)
        self.lr_scheduler: LRScheduler | None = scheduler
        return scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        # Hugging Face's sampler draws from the global generator: a resumed epoch would see other batches.
        if self.args.train_sampling_strategy == "group_by_length" and "length" in self.train_dataset.column_names:
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return LengthGrouped(list(self.train_dataset["length"]), batch, self.args.data_seed or self.args.seed)
        return super()._get_train_sampler(train_dataset)


class _Losses:
    """The losses of the subnets of each step so far, by step, draw within the step, and name; as tensors until asked.

    A number would wait for the GPU.
    """

    def __init__(self) -> None:
        self._found: dict[str, dict[tuple[int, int], Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, name: str, step: int, draw: int, loss: Tensor) -> None:
        """Keep a loss; that of a later part of an accumulation window adds to what is there."""
        losses = self._found.setdefault(name, {})
        losses[step, draw] = losses[step, draw] + loss if (step, draw) in losses else loss

    def entries(self) -> Iterator[tuple[int, int, str, float]]:
        """Yield step, draw, name and loss, in the order of computation."""
        values = {name: iter(self._stacked(name).tolist()) for name in self._found}
        places = {(*place, index): name for index, name in enumerate(self._found) for place in self._found[name]}
        for (step, draw, _), name in sorted(places.items()):
            yield step, draw, name, next(values[name])

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([loss.float().cpu() for loss in self._found[name].values()])

    def save(self, path: Path) -> None:
        """Write, per name, the losses [draws] and where each was drawn, step and draw, [draws, 2]."""
        losses = {name: self._stacked(name) for name in self._found}
        places = {f"{name}{_PLACES}": torch.tensor(list(found)) for name, found in self._found.items()}
        save_tensors(path, losses | places, {})

    @classmethod
    def load(cls, path: Path) -> _Losses:
        """Read what `save` wrote."""
        kept, losses = load_tensors(path)[0], cls()
        for name in (name for name in kept if not name.endswith(_PLACES)):
            for (step, draw), loss in zip(kept[f"{name}{_PLACES}"].tolist(), kept[name], strict=True):
                losses.add(name, step, draw, loss)
        return losses


class LengthGrouped(Sampler[int]):
    """Batches of rows of similar length, in an order that depends on seed and epoch alone.

    The batch of the longest row is the first, so that memory that does not suffice is told at once. The others are in
    random order: Hugging Face's sampler goes from long rows to short ones, again and again.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        first, *batches = (indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size))
        last = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        order = torch.randperm(len(batches), generator=generator).tolist()
        return chain(first, *(batches[i] for i in order), *last)


class _Progress(TrainerCallback):
    """Shows steps, and the state that the trainer describes."""

    def __init__(self, title: str, stop_after: int | None = None) -> None:
        self.title, self.stop_after = title, stop_after
        self.state = ""
        self._ticker: Ticker | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Training that ends before its learning rate does has fewer steps to go.
        total = state.max_steps if self.stop_after is None else min(self.stop_after, state.max_steps)
        self._ticker = Ticker(self.title, total).__enter__()
        self._ticker.update(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.show(state.global_step)

    def show(self, step: int, instead: str = "") -> None:
        """Show the state, or something else for the time being."""
        if self._ticker is not None:
            self._ticker.update(step, instead or self.state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._ticker is not None:
            self._ticker.__exit__(None, None, None)
            self._ticker = None


class _Steps(TrainerCallback):
    """Calls a function before each optimiser step and ends training after the last one wanted."""

    def __init__(self, before_step: Callable[[int], None], stop_after: int | None) -> None:
        self.before_step, self.stop_after = before_step, stop_after

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.before_step(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stop_after is not None and state.global_step >= self.stop_after:
            control.should_training_stop = True


# -- checkpoints -------------------------------------------------------------------------------------------------------


def last_checkpoint(directory: str | Path) -> Path | None:
    """Return the newest whole checkpoint below `directory`; cut-off ones are deleted.

    The Trainer writes ``trainer_state.json`` last, so a checkpoint with a readable one is whole.
    """
    found = sorted(Path(directory).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
        else:
            return path
    return None


def delete_checkpoints(directory: str | Path) -> None:
    """Delete all checkpoints below `directory`; the finished artefact replaces them."""
    for path in Path(directory).glob("checkpoint-*"):
        shutil.rmtree(path)
