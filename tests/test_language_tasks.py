"""Tasks of language models: texts and how well they are foretold."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from command_line import eftnas
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bootstrapnas.distillation import Distillation
from bootstrapnas.errors import UserError
from bootstrapnas.evaluation import collect, predict
from bootstrapnas.outputs import IGNORED
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.models import evaluate_model, load_for_task, load_tokenizer
from bootstrapnas.tasks import TaskSpec, build_task_spec, load_task, tokenize
from bootstrapnas.tasks.files import read_table
from bootstrapnas.tasks.next_token import LOGITS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = "the cat sat on a mat and saw one old bird near two small trees by three rivers".split()


def write_texts(path: Path, count: int, seed: int) -> Path:
    """Write texts of 3 to 12 words, parted by blank lines."""
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS, random.integers(3, 13))) + "." for _ in range(count)]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``train.txt`` (60 texts) and ``validation.txt`` (12). Read-only."""
    directory = tmp_path_factory.mktemp("texts")
    write_texts(directory / "train.txt", 60, 0)
    write_texts(directory / "validation.txt", 12, 1)
    return directory


@pytest.fixture(scope="session")
def config_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a tiny LLaMA, no weights, no tokenizer. Read-only."""
    from transformers import LlamaConfig

    directory = tmp_path_factory.mktemp("config")
    LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory, texts: Path, config_dir: Path) -> Path:
    """A tiny LLaMA trained from scratch on the texts by the command, with the tokenizer made of them. Read-only."""
    directory = tmp_path_factory.mktemp("llama") / "model"
    outcome = eftnas(
        "finetune", model_name_or_path=config_dir, from_scratch=True, output_dir=directory,
        train_file=texts / "train.txt", validation_file=texts / "validation.txt", max_seq_length=24,
        max_steps=6, learning_rate=0.01, per_device_train_batch_size=8, load_best_model_at_end=True,
        eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    said = " ".join(outcome.err.split())
    assert "has no tokenizer: made one of " in said
    assert "weights of LlamaForCausalLM initialised at random" in said
    return directory


def test_a_model_from_scratch(llama_dir: Path) -> None:
    """What finetune measured is what evaluate prints, and the mean of what it writes of each block."""
    spec = TaskSpec.load(llama_dir / "task.json")
    tokenizer = load_tokenizer(str(llama_dir))
    assert (spec.problem_type, spec.metric, spec.maximise) == ("language_modelling", "perplexity", False)
    written = json.loads((llama_dir / "eval_results.json").read_text())
    assert list(written) == ["perplexity", "loss", "token_accuracy"]
    assert written["perplexity"] == pytest.approx(math.exp(written["loss"]))
    assert written["perplexity"] < len(tokenizer) / 2, "learned more than that all tokens are equally likely"
    printed = json.loads(eftnas("evaluate", model_dir=llama_dir, predict=llama_dir.parent / "p.jsonl").out)
    assert printed == pytest.approx(written, abs=1e-5)
    blocks = [json.loads(line) for line in (llama_dir.parent / "p.jsonl").read_text().splitlines()]
    total = sum(math.log(block["prediction"]) * block["tokens"] for block in blocks)
    assert total / sum(block["tokens"] for block in blocks) == pytest.approx(written["loss"], abs=1e-4)
    state = json.loads((llama_dir / "config.json").read_text())
    assert state["vocab_size"] == len(tokenizer)
    assert state["eos_token_id"] == tokenizer.eos_token_id


def test_metrics_are_those_of_the_models_own_loss(llama_dir: Path) -> None:
    """Batches of any size and their padding change nothing; every token but a block's first counts once."""
    spec = TaskSpec.load(llama_dir / "task.json")
    model = load_for_task(str(llama_dir), spec)
    tokenizer = load_tokenizer(str(llama_dir))
    tokenizer.padding_side = "left"  # of no matter to a causal task
    rows = Rows(spec, tokenizer, batch_size=5)
    found = evaluate_model(model, rows, "validation")
    losses, tokens, hits = 0.0, 0, 0
    for block in rows.features("validation"):
        ids = torch.tensor([block["input_ids"]])
        with torch.no_grad():
            said = model(input_ids=ids, labels=ids)
        losses += float(said.loss) * (ids.shape[1] - 1)
        hits += int((said.logits[:, :-1].argmax(-1) == ids[:, 1:]).sum())
        tokens += ids.shape[1] - 1
    assert found["loss"] == pytest.approx(losses / tokens, rel=1e-5)
    assert found["token_accuracy"] == pytest.approx(hits / tokens)
    arrays = collect(
        lambda batch: {"logits": model(**batch).logits.detach().numpy()}, rows.batches("validation"), (LOGITS,)
    )
    for name, kept in predict(model, rows.batches("validation"), (LOGITS,)).items():
        for first, second in zip(kept, arrays[name], strict=True):
            np.testing.assert_allclose(first, second, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), min_size=1, max_size=6),
    st.integers(min_value=2, max_value=20),
)
def test_blocks_hold_every_token_once(tokenizer_of_texts: PreTrainedTokenizerBase, documents: Any, length: int) -> None:
    """Blocks are the documents one after the other, each with an end; only a last lone token may be missing."""
    from datasets import Dataset

    spec = TaskSpec("text", ("text",), (), "language_modelling", "loss", length, "")
    joined = [" ".join(words) for words in documents]
    features = tokenize(Dataset.from_dict({"text": joined}), tokenizer_of_texts, spec)
    expected = [
        token for text in joined for token in [*tokenizer_of_texts(text)["input_ids"], tokenizer_of_texts.eos_token_id]
    ]
    found = [token for block in features["input_ids"] for token in block]
    assert len(expected) - len(found) <= 1
    assert found == expected[: len(found)]
    assert all(size == length for size in features["length"][:-1])
    assert features["labels"][:] == features["input_ids"][:]


@pytest.fixture(scope="session")
def tokenizer_of_texts(llama_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer made of the texts. Read-only."""
    tokenizer = load_tokenizer(str(llama_dir))
    assert tokenizer.decode(tokenizer("seen: 1,024 Bäume\n", add_special_tokens=False)["input_ids"]) == (
        "seen: 1,024 Bäume\n"
    )
    assert len(tokenizer("907", add_special_tokens=False)["input_ids"]) == 3
    return tokenizer


def test_documents_of_a_file(tmp_path: Path) -> None:
    """Rows of WikiText are lines; a text file is parted at blank lines; JSON may be an array."""
    lines = ["", " = One = \n", " text of one\n", "", " = = Part = = \n", " more\n", " = Two = \n", " text of two\n"]
    for split in ("train", "validation"):
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    spec = build_task_spec("wikitext2", dataset_dir=tmp_path)
    assert list(load_task(spec).train["text"]) == [
        " = One = \n text of one\n = = Part = = \n more\n",
        " = Two = \n text of two\n",
    ]
    text = tmp_path / "a.txt.gz"
    text.write_bytes(gzip.compress(b"one\ntwo\n\n \nthree\r\n\r\n\r\nfour"))
    assert read_table(text) == {"text": ["one\ntwo", "three", "four"]}
    array = tmp_path / "a.json"
    array.write_text('[{"text": "a", "x": 1},\n {"text": "b"}]')
    assert read_table(array, ["text"]) == {"text": ["a", "b"]}
    with pytest.raises(UserError, match=r"no column 'x' \(row 1\)"):
        read_table(array, ["x"])


def test_held_out_texts(texts: Path) -> None:
    """Without texts to validate on some of the training ones are, the same ones each time, and none is in both."""
    spec = build_task_spec(train_file=texts / "train.txt", val_set_size=7)
    data, again = load_task(spec), load_task(spec)
    assert (len(data.train), len(data.validation)) == (53, 7)
    assert data.validation["text"][:] == again.validation["text"][:]
    assert len(load_task(build_task_spec(train_file=texts / "train.txt")).validation) == 6, "a tenth"


def test_distillation_of_a_vocabulary() -> None:
    """The divergence is averaged over the tokens that have one after them to foretell, and nothing else."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    targets = torch.tensor([[IGNORED, IGNORED, 3, 4, 5], [1, 2, 3, IGNORED, IGNORED]])
    distillation = Distillation(temperature=2.0, task_weight=0.0, teacher_weight=1.0, outputs=(LOGITS,))
    found = distillation(torch.zeros(()), {"logits": student}, {"logits": teacher}, mask, targets)
    places = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    expected = [
        F.kl_div(
            F.log_softmax(student[place] / 2, -1), F.log_softmax(teacher[place] / 2, -1), log_target=True,
            reduction="sum",
        )
        for place in places
    ]  # fmt: skip
    torch.testing.assert_close(found, 4 * torch.stack(expected).mean())


def test_a_student_follows_a_teacher(llama_dir: Path, tmp_path: Path) -> None:
    """The teacher is asked once a batch and nothing is kept; a student that is its own teacher has nothing to learn."""
    outcome = eftnas(
        "finetune", model_name_or_path=llama_dir, output_dir=tmp_path / "student", kd_teacher_model=llama_dir,
        kd_cache_dir=tmp_path / "cache", max_steps=2, kd_task_weight=0.0, kd_teacher_weight=1.0, logging_steps=1,
        max_train_samples=20,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    said = " ".join(outcome.err.split())
    assert (
        "compares a vocabulary at every token and runs the teacher once a batch: --kd_cache_dir keeps nothing" in said
    )
    assert "loss 0.0000" in said
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"train_file": "{texts}/train.txt", "val_set_size": 60}, "60 rows: holding out 60 .* leaves none"),
        (
            {"train_file": "{texts}/train.txt", "validation_file": "{texts}/validation.txt", "val_set_size": 6},
            "--val_set_size 6: there are rows to validate on already",
        ),
        ({"task_name": "text"}, "task text needs either --train_file or --dataset_dir"),
        ({"task_name": "math"}, "task math has no source on the hub: pass --train_file, --dataset_dir or both"),
        ({"task_name": "text", "train_file": "{texts}/train.txt", "label_column": "x"}, "takes no --label_column"),
        ({"task_name": "text", "train_file": "{texts}/train.txt", "text_columns": "words"}, "no column 'words'"),
        ({"task_name": "wikitext"}, "unknown task 'wikitext'; did you mean 'wikitext2'"),
        ({"task_name": "text", "train_file": "{texts}/train.txt", "metric": "accuracy"}, "it has: loss, perplexity"),
        ({"train_file": "{texts}/train.txt", "max_seq_length": 1}, "max_seq_length must be at least 2"),
        ({"train_file": "{texts}/train.txt", "from_scratch": False}, "has no tokenizer files"),
        (
            {"train_file": "{texts}/train.txt", "from_scratch": False, "tokenizer_name": "{llama}"},
            "has no weights; pass --from_scratch True",
        ),
        (
            {"train_file": "{texts}/train.txt", "save_strategy": "best", "eval_strategy": "epoch",
             "greater_is_better": True},
            "less of perplexity is better",
        ),
    ],
)  # fmt: skip
def test_mistakes(
    flags: dict[str, Any], message: str, texts: Path, config_dir: Path, llama_dir: Path, tmp_path: Path
) -> None:
    """Each is told in a line."""
    filled = {
        name: value.format(texts=texts, llama=llama_dir) if isinstance(value, str) else value
        for name, value in flags.items()
    }
    source = {"model_name_or_path": config_dir, "from_scratch": True, "output_dir": tmp_path / "out", "max_steps": 1}
    outcome = eftnas("finetune", **{**source, **filled})
    assert outcome.status == 2
    assert re.search(message, " ".join(outcome.err.split())), outcome.err
