"""What the tests share: no network, no telemetry, one thread per process, a tiny BERT and a tiny task.

The environment is set before anything imports torch or the Hugging Face libraries, which read it once.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread costs more than it brings

import gc
import json
import random
import string
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import BertConfig, BertForSequenceClassification

# As in the commands. OpenVINO would start a process for each of the three dozen events of a conversion.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported, half a million objects: every training has it look at all."""
    gc.collect()
    gc.freeze()


SIGNALS = {"red": "stop", "green": "go", "yellow": "wait"}  # the word that decides the label
FILLERS = (
    "the a an one two some many old new big small long short slow fast quiet loud early late lamp street car bus train "
    "house door river bridge garden tree bird dog cat child teacher man woman friend is was looks turns stays near far "
    "under over behind today again"
).split()
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *string.ascii_lowercase,
    *(f"##{letter}" for letter in string.ascii_lowercase),
    ".",
    *SIGNALS,
    *(word for word in FILLERS if len(word) > 1),
]


class TaskFiles(NamedTuple):
    """JSON-lines files with the columns ``text`` and ``label`` (go, stop or wait; one word of the text decides)."""

    train: Path
    validation: Path
    test: Path


def tiny_bert_config() -> BertConfig:
    """Return the configuration of the tiny BERT: 2 layers, hidden 64, 4 heads of 16, FFN 128, 3 labels."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=len(SIGNALS),
        pad_token_id=VOCABULARY.index("[PAD]"),
    )


def build_tiny_bert(seed: int = 0) -> BertForSequenceClassification:
    """Build a randomly initialised tiny BERT in evaluation mode; the same seed gives the same weights."""
    import torch
    from transformers import BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(tiny_bert_config()).eval()


@pytest.fixture
def tiny_bert() -> BertForSequenceClassification:
    """A fresh tiny BERT, the test's own to change."""
    return build_tiny_bert()


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of `tiny_bert` as a Hugging Face directory with a WordPiece tokenizer. Read-only."""
    from transformers import BertTokenizerFast

    directory = tmp_path_factory.mktemp("tiny_bert")
    build_tiny_bert().save_pretrained(directory)
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=64).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_task_files(tmp_path_factory: pytest.TempPathFactory) -> TaskFiles:
    """96 rows to train on and 48 each to validate and test on, balanced, no text twice. Read-only."""
    directory = tmp_path_factory.mktemp("tiny_task")
    rng = random.Random(0)
    seen: set[str] = set()

    def write(name: str, rows: int) -> Path:
        path = directory / f"{name}.jsonl"
        lines: list[str] = []
        while len(lines) < rows:
            signal = list(SIGNALS)[len(lines) % len(SIGNALS)]
            words = [*rng.choices(FILLERS, k=rng.randint(4, 12)), signal]
            rng.shuffle(words)
            text = " ".join(words) + "."
            if text not in seen:
                seen.add(text)
                lines.append(json.dumps({"text": text, "label": SIGNALS[signal]}))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return TaskFiles(write("train", 96), write("validation", 48), write("test", 48))


@pytest.fixture
def macs_as_ms(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Latency tables are of MACs, a million of which take a millisecond. What measures them so is returned."""
    from bootstrapnas.costs import count_macs
    from bootstrapnas.pipeline import latency_table

    @contextmanager
    def stopwatch(model: Any, blueprint: Any, circumstances: Any) -> Iterator[Any]:
        def measure(subnets: list[Any]) -> list[list[float]]:
            return [[count_macs(blueprint, subnet, length=circumstances.length) / 1e6] * 3 for subnet in subnets]

        yield measure

    monkeypatch.setattr(latency_table, "openvino_timer", stopwatch)
    return stopwatch
