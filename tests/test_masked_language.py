"""Masked language modelling: which tokens are hidden, and how well models tell them."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from command_line import eftnas, interrupted_at, metrics_of, succeed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from bootstrapnas.distillation import Distillation
from bootstrapnas.errors import UserError
from bootstrapnas.extraction import load_model
from bootstrapnas.outputs import IGNORED
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.models import evaluate_model, load_for_task, load_tokenizer
from bootstrapnas.tasks import TaskSpec, build_task_spec, predictions, tokenize, tokenize_to_measure
from bootstrapnas.tasks.language_modelling import blocks_of
from bootstrapnas.tasks.masked_language_modelling import HEAD, LOGITS, Masking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = "the cat sat on a mat and saw one old bird near two small trees by three rivers".split()
LENGTH = 24


@pytest.fixture(scope="session")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT trained from scratch on masked texts, and ``train.txt``, ``validation.txt`` beside. Read-only."""
    from transformers import BertConfig

    directory = tmp_path_factory.mktemp("masked")
    random = np.random.default_rng(0)
    for name, count in (("train", 40), ("validation", 10)):
        found = [" ".join(random.choice(WORDS, random.integers(3, 13))) for _ in range(count)]
        (directory / f"{name}.txt").write_text("\n\n".join(found))
    BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32
    ).save_pretrained(directory / "config")
    outcome = succeed(
        "finetune", model_name_or_path=directory / "config", from_scratch=True, output_dir=directory / "model",
        task_name="masked-text", train_file=directory / "train.txt", validation_file=directory / "validation.txt",
        max_seq_length=LENGTH, max_steps=12, learning_rate=0.01, per_device_train_batch_size=8, mask_draws=2,
    )  # fmt: skip
    assert "weights of BertForMaskedLM initialised at random" in " ".join(outcome.err.split())
    return directory / "model"


@pytest.fixture(scope="session")
def tokenizer(bert_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer made of the texts, which has a token for masks. Read-only."""
    return load_tokenizer(str(bert_dir))


def test_metrics_are_those_of_the_models_own_loss(bert_dir: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    spec = TaskSpec.load(bert_dir / "task.json")
    assert (spec.problem_type, spec.metric, spec.maximise) == ("masked_language_modelling", "perplexity", False)
    model = load_for_task(str(bert_dir), spec)
    rows = Rows(spec, tokenizer, batch_size=5)
    losses, hits, told = 0.0, 0, 0
    for block in rows.features("validation"):
        ids, labels = torch.tensor([block["input_ids"]]), torch.tensor([block["labels"]])
        with torch.no_grad():
            said = model(input_ids=ids, labels=labels)
        count = int((labels != IGNORED).sum())
        losses += float(said.loss) * count
        hits += int((said.logits.argmax(-1) == labels).sum())
        told += count
    found = evaluate_model(model, rows, "validation")
    assert found["loss"] == pytest.approx(losses / told, rel=1e-5)
    assert found["token_accuracy"] == pytest.approx(hits / told)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found == pytest.approx(json.loads((bert_dir / "eval_results.json").read_text()), abs=1e-5)
    assert found["perplexity"] < len(tokenizer) / 2, "learned more than that all tokens are equally likely"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 49), min_size=1, max_size=40), st.floats(0.01, 0.99), st.tuples(*[st.integers(0, 9)] * 3)
)
def test_what_is_hidden(tokens: list[int], share: float, seed: tuple[int, ...]) -> None:
    """A share of the tokens that are not special, at least one; the labels say what stood there; a seed decides."""
    masking = Masking(mask=4, special=np.arange(5), words=np.arange(5, 50), share=share)
    block = np.array(tokens, np.int32)
    hidden = masking.hide(block, np.random.default_rng(seed))
    ordinary = block >= 5
    if not ordinary.any():
        assert hidden is None
        return
    assert hidden is not None
    seen, labels = hidden
    told = labels != IGNORED
    assert told.sum() == max(1, round(share * ordinary.sum()))
    assert not (told & ~ordinary).any()
    np.testing.assert_array_equal(labels[told], block[told])
    np.testing.assert_array_equal(seen[~told], block[~told])
    assert ((seen[told] == 4) | (seen[told] >= 5)).all()
    again = masking.hide(block, np.random.default_rng(seed))
    assert again is not None
    np.testing.assert_array_equal(again, hidden)


def test_shares_of_masks_and_others() -> None:
    """Of the hidden tokens 80 % are masks, 10 % others, 10 % stay."""
    masking = Masking(mask=4, special=np.arange(5), words=np.arange(5, 10_000), share=0.5)
    block = np.random.default_rng(0).integers(5, 10_000, 20_000)
    hidden = masking.hide(block, np.random.default_rng(1))
    assert hidden is not None
    seen, labels = hidden
    told = labels != IGNORED
    assert (seen[told] == 4).mean() == pytest.approx(0.8, abs=0.02)
    assert (seen[told] == block[told]).mean() == pytest.approx(0.1, abs=0.02)


def test_draws_are_for_training_alone(bert_dir: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Each block comes once a draw, other tokens hidden; what models are measured with is the first draw."""
    from datasets import Dataset

    spec = TaskSpec.load(bert_dir / "task.json")
    rows = Dataset.from_dict({"text": [" ".join(WORDS)] * 5})
    to_learn, to_measure = (make(rows, tokenizer, spec)[:] for make in (tokenize, tokenize_to_measure))
    count = len(to_measure["input_ids"])
    assert len(to_learn["input_ids"]) == 2 * count
    for name in ("input_ids", "labels"):
        assert to_learn[name][:count] == to_measure[name]
        assert to_learn[name][count:] != to_measure[name]

    def whole(found: dict[str, Any], index: int) -> list[int]:
        pairs = zip(found["input_ids"][index], found["labels"][index], strict=True)
        return [seen if label == IGNORED else label for seen, label in pairs]

    assert [whole(to_learn, count + i) for i in range(count)] == [whole(to_measure, i) for i in range(count)]


def test_blocks_keep_their_numbers_where_others_hold_nothing_to_hide(
    bert_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    from datasets import Dataset

    spec = TaskSpec.load(bert_dir / "task.json")
    rows = Dataset.from_dict({"text": [" ".join(WORDS), "<s>" * 3 * LENGTH, " ".join(WORDS)]})
    features = tokenize_to_measure(rows, tokenizer, spec)
    ones = [np.ones(length) for length in features["length"]]
    numbers = [entry["index"] for entry in predictions(spec, {"loss": ones, "hit": ones}, rows, features)]
    blocks = blocks_of(spec, rows, tokenizer)
    special = set(tokenizer.all_special_ids)
    assert numbers == [number for number, block in enumerate(blocks) if not set(block) <= special]
    assert 0 in numbers
    assert len(blocks) - 1 in numbers
    assert len(numbers) < len(blocks)


def test_distillation_of_masked_tokens() -> None:
    """The divergence is averaged over the tokens that are to be told, at their own places."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 7, generator=generator) for _ in range(2))
    targets = torch.full((2, 4), IGNORED)
    places = [(0, 0), (0, 3), (1, 1)]
    for place in places:
        targets[place] = 1
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    distillation = Distillation(temperature=2.0, task_weight=0.0, teacher_weight=1.0, outputs=(LOGITS,))
    found = distillation(torch.zeros(()), {"logits": student}, {"logits": teacher}, mask, targets)
    log = partial(F.log_softmax, dim=-1)
    expected = [
        F.kl_div(log(student[place] / 2), log(teacher[place] / 2), log_target=True, reduction="sum") for place in places
    ]
    torch.testing.assert_close(found, 4 * torch.stack(expected).mean())


def test_a_student_that_tells_hidden_tokens_alone_follows_a_teacher(
    bert_dir: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """ModernBERT's `sparse_prediction` is off while it learns; one that is its own teacher has nothing to learn."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    ids = {f"{name}_token_id": tokenizer.pad_token_id for name in ("pad", "bos", "eos", "cls", "sep")}
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        sparse_prediction=True, **ids,
    )  # fmt: skip
    ModernBertForMaskedLM(config).save_pretrained(tmp_path / "sparse")
    tokenizer.save_pretrained(tmp_path / "sparse")
    outcome = succeed(
        "finetune", model_name_or_path=tmp_path / "sparse", kd_teacher_model=tmp_path / "sparse",
        output_dir=tmp_path / "student", task_name="masked-text", train_file=bert_dir.parent / "train.txt",
        validation_file=bert_dir.parent / "validation.txt", max_seq_length=LENGTH, max_steps=2, logging_steps=1,
        kd_task_weight=0.0, kd_teacher_weight=1.0,
    )  # fmt: skip
    assert "loss 0.0000" in " ".join(outcome.err.split())
    assert json.loads((tmp_path / "student" / "config.json").read_text())["sparse_prediction"]


@pytest.mark.parametrize(
    ("criterion", "chosen"),
    [("l1", {"subnet": "min"}), ("taylor", {"subnet": "min"}), ("movement", {"max_macs_ratio": 0.8})],
)
def test_from_importance_to_an_ir(criterion: str, chosen: dict[str, Any], bert_dir: Path, tmp_path: Path) -> None:
    """All stages: a subnet is smaller, its decoder is tied to its embeddings, and its IRs say what it says."""
    steps = {"max_steps": 2} if criterion == "movement" else {}
    succeed(
        "importance", model_name_or_path=bert_dir, output_dir=tmp_path / "importance", criterion=criterion,
        criterion_batches=2, per_device_train_batch_size=8, **steps,
    )  # fmt: skip
    scores = load_file(tmp_path / "importance" / "importance.safetensors")
    assert {name.rpartition(".layer.")[0] for name in scores} == {"bert.encoder"}, "the head for masks has no units"
    succeed(
        "search-space", model_name_or_path=bert_dir, importance_weight_dir=tmp_path / "importance",
        lowest_macs_ratio=0.5, target_config=tmp_path / "space.json", max_seq_length=LENGTH,
    )  # fmt: skip
    succeed(
        "train", model_name_or_path=bert_dir, kd_teacher_model=bert_dir, nncf_config=tmp_path / "space.json",
        importance_weight_dir=tmp_path / "importance", max_steps=2, output_dir=tmp_path / "supernet",
        per_device_train_batch_size=8,
    )  # fmt: skip
    if "subnet" not in chosen:
        succeed("search", supernet_dir=tmp_path / "supernet", output_dir=tmp_path / "search", num_evals=6, population=3)
        chosen = {"search_dir": tmp_path / "search", **chosen}
    succeed("extract", supernet_dir=tmp_path / "supernet", output_dir=tmp_path / "small", **chosen)
    small = load_model(str(tmp_path / "small"), HEAD.load_class())
    assert small.num_parameters() < load_model(str(bert_dir), HEAD.load_class()).num_parameters()
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
    own = metrics_of(model_dir=tmp_path / "small")
    succeed("export", model_dir=tmp_path / "small", output_dir=tmp_path / "ir")
    assert metrics_of(ir_dir=tmp_path / "ir") == pytest.approx(own, rel=1e-4)
    written = json.loads((tmp_path / "ir" / "export.json").read_text())
    assert written["metric"]["name"] == "perplexity"
    assert written["metric"]["ir"] == pytest.approx(written["metric"]["torch"], rel=1e-4)


def test_an_interrupted_training_ends_the_same(bert_dir: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "model_name_or_path": bert_dir, "max_steps": 4, "save_strategy": "steps", "save_steps": 1,
        "per_device_train_batch_size": 8, "kd_teacher_model": bert_dir,
    }  # fmt: skip
    succeed("finetune", output_dir=tmp_path / "whole", **flags)
    with interrupted_at(2):
        assert eftnas("finetune", output_dir=tmp_path / "resumed", **flags).status != 0
    succeed("finetune", output_dir=tmp_path / "resumed", **flags)
    whole, resumed = (json.loads((tmp_path / name / "eval_results.json").read_text()) for name in ("whole", "resumed"))
    assert whole == pytest.approx(resumed, rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"mlm_probability": 1.0}, "mlm_probability must lie above 0 and below 1, not 1"),
        ({"mlm_probability": 0.0}, "mlm_probability must lie above 0 and below 1, not 0"),
        ({"mask_draws": 0}, "mask_draws must be positive, not 0"),
        ({"task_name": "text", "mlm_probability": 0.2}, "--mlm_probability is for masked language modelling"),
        ({"task_name": "text"}, "is no model for the task text, .*; tasks for its BertForMaskedLM: masked-text"),
        ({"train_file": "{short}"}, "the texts hold special tokens alone, and nothing to hide"),
        ({"tokenizer_name": "{maskless}"}, "has no token for masks, which task masked-text hides words by"),
    ],
)
def test_mistakes(flags: dict[str, Any], message: str, bert_dir: Path, tmp_path: Path) -> None:
    """Each is told in a line."""
    (tmp_path / "short.txt").write_text("<s>")
    tokenizer = load_tokenizer(str(bert_dir))
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "maskless")
    places = {"short": tmp_path / "short.txt", "maskless": tmp_path / "maskless"}
    filled = {name: value.format(**places) if isinstance(value, str) else value for name, value in flags.items()}
    source = {
        "model_name_or_path": bert_dir, "task_name": "masked-text", "train_file": bert_dir.parent / "train.txt",
        "validation_file": bert_dir.parent / "validation.txt", "output_dir": tmp_path / "out", "max_steps": 1,
        "max_seq_length": LENGTH,
    }  # fmt: skip
    outcome = eftnas("finetune", **{**source, **filled})
    assert outcome.status == 2
    assert re.search(message, " ".join(outcome.err.split())), outcome.err


def test_a_causal_model_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    spec = build_task_spec("masked-text", train_file=tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"needs AutoModelForMaskedLM: .*; tasks for its LlamaForCausalLM: .*text"):
        load_for_task(str(tmp_path), spec)
