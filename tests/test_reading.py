"""What the rows of a batch begin with is read once; nothing of what a model says changes by that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import ENCODER_ROWS, FAMILY_ROWS, Row
from torch import Tensor
from transformers import GenerationConfig

from bootstrapnas import reading
from bootstrapnas.dims import Key
from bootstrapnas.evaluation import predict
from bootstrapnas.outputs import INDEX, TOKENS, VOCABULARY, Output, Reduction
from bootstrapnas.reading import begin, left_padded, outputs_from, shared_beginning
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import Collator, batches
from bootstrapnas.tasks.generation import Generation, _likeliest_texts, _likeliest_tokens

DECODERS = tuple(row for row in FAMILY_ROWS if row not in ENCODER_ROWS)
every_decoder = pytest.mark.parametrize("row", DECODERS, ids=lambda row: row.name)
SHARED, NEW = [3, 9, 4, 7], 3
PROMPTS = [[*SHARED, 5], [*SHARED, 8, 2, 6], [*SHARED, 2, 2]]


@pytest.fixture(autouse=True)
def _short_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let beginnings count that a tiny model's window has room for."""
    monkeypatch.setattr(reading, "WORTHWHILE", len(SHARED))


def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ids and mask, padded on the right."""
    width = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
    mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
    return ids, mask


class Counted:
    """A model whose forward passes are counted in tokens."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.tokens += kwargs["input_ids"].numel()


@every_decoder
@pytest.mark.parametrize("num_beams", [1, 2])
@torch.no_grad()
def test_batches_write_what_transformers_writes(row: Row, num_beams: int) -> None:
    """Token for token, with prompts of several lengths; rows that end early included.

    Of beams the same batch is the measure, padded on the left: transformers goes on with all rows of a batch until the
    last one has ended, and may find a likelier text for the others.
    """
    model = row.build().eval()
    model.generation_config.eos_token_id = None
    ends: list[int] = []
    for _ in range(2):
        config = GenerationConfig(
            max_new_tokens=NEW, num_beams=num_beams, do_sample=False, pad_token_id=0, eos_token_id=ends or None
        )
        groups = [[prompt] for prompt in PROMPTS] if num_beams == 1 else [PROMPTS]
        wanted = []
        for group in groups:
            ids, mask = left_padded(*padded(group))
            said = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
            wanted += torch.nn.functional.pad(said, (0, NEW - said.shape[1])).tolist()
        write = _likeliest_tokens if num_beams == 1 else _likeliest_texts
        found = write(begin(model, *padded(PROMPTS), NEW), Generation(NEW, num_beams), ends, 0)
        assert torch.nn.functional.pad(found, (0, NEW - found.shape[1])).tolist() == wanted
        ends = [wanted[0][1]]  # what one of the rows writes second ends it


@every_decoder
@torch.no_grad()
def test_outputs_of_the_last_tokens_are_those_of_all(row: Row) -> None:
    model = row.build().eval()
    ids, mask = padded(PROMPTS)
    whole = model(input_ids=ids, attention_mask=mask).logits
    for first in (len(SHARED), 2, 0):
        found = outputs_from(model, {"input_ids": ids, "attention_mask": mask}, first).logits
        counts = mask[:, first:] != 0
        torch.testing.assert_close(found[counts], whole[:, first:][counts], atol=1e-5, rtol=1e-4)


def test_what_is_shared_is_read_once() -> None:
    """A pass of one row, and then the rest of each; the rows of an active subnet too."""
    row = DECODERS[0]
    ids, mask = padded(PROMPTS)
    with torch.no_grad():
        model = row.build().eval()
        counted = Counted(model)
        found = begin(model, ids, mask, NEW)
        assert counted.tokens == len(SHARED)
        found.read(ids.shape[1])
        assert counted.tokens == len(SHARED) + len(PROMPTS) * (ids.shape[1] - len(SHARED))
        before = counted.tokens
        outputs_from(model, {"input_ids": ids, "attention_mask": mask}, len(SHARED))
        assert counted.tokens == 2 * before


def test_a_subnet_without_any_attention_keeps_no_cache() -> None:
    """Its texts are read anew each time: nothing tells how many tokens a cache would hold."""
    supernet = Supernet(DECODERS[0].build().eval())
    ids, mask = padded(PROMPTS)
    none = {Key("mha_block", layer): 0 for layer in range(supernet.blueprint.num_layers)}
    with torch.no_grad(), supernet.activate(none):
        found = begin(supernet.model, ids, mask, NEW)
        assert found.ids.tolist() == left_padded(ids, mask)[0].tolist(), "parted nowhere"
        said = found.read(ids.shape[1])
        plain = supernet.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        torch.testing.assert_close(said, plain[torch.arange(3), mask.sum(1) - 1], atol=1e-5, rtol=1e-4)
        some = outputs_from(supernet.model, {"input_ids": ids, "attention_mask": mask}, 4).logits
        torch.testing.assert_close(some, plain[:, 4:], atol=1e-5, rtol=1e-4)


def test_how_much_is_shared() -> None:
    ids, mask = padded(PROMPTS)
    assert shared_beginning(ids, mask, 9) == 4
    assert shared_beginning(ids, mask, 3) == 0, "fewer than are worthwhile"
    assert shared_beginning(ids[:1], mask[:1], 9) == 0, "a row alone shares nothing"
    same = torch.tensor([[1, 2, 3, 4, 0], [1, 2, 3, 4, 0]])
    assert shared_beginning(same, torch.tensor([[1, 1, 1, 1, 0]] * 2), 9) == 4, "padding is nothing to share"


def test_a_window_that_padding_would_narrow_is_left_alone() -> None:
    """Mistral's attention sees so many places: padding between the beginning and the rest would take some of them."""
    model = SimpleNamespace(config=next(row for row in DECODERS if "Mistral" in row.name).build().config)
    window = model.config.sliding_window
    width = max(map(len, PROMPTS))
    assert window is not None
    ids, mask = padded(PROMPTS)
    assert begin(model, ids, mask, window - width + 1).ids.tolist() == left_padded(ids, mask)[0].tolist()
    with pytest.raises(TypeError, match="not callable"):  # it would read
        begin(model, ids, mask, window - width)


def test_left_padding() -> None:
    """Rows keep their tokens and their order, whichever side they were padded on."""
    ids, mask = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 0]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    for _ in range(2):
        ids, mask = left_padded(ids, mask)
        assert ids.tolist() == [[0, 5, 6], [7, 8, 9]]
        assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_a_reduction_that_names_a_start_gets_the_last_tokens() -> None:
    """Others get all of them, as does the same one where a batch has no start."""
    seen: list[int] = []

    def last(logits: Tensor, batch: Any) -> dict[str, Tensor]:
        seen.append(logits.shape[1])
        return {"best": logits[:, -1].amax(dim=-1)}

    output = Output("logits", f"{TOKENS} {VOCABULARY}", Reduction(last, (Output("best", ""),), ("start",), "start"))
    model = DECODERS[0].build().eval()
    ids = torch.tensor([[*SHARED, 5], [*SHARED, 8]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), INDEX: torch.arange(2)}
    with_start = predict(model, [{**batch, "start": torch.tensor([5, 4])}], (output,))["best"]
    without = predict(model, [batch], (output,))["best"]
    assert seen == [2, 5]
    np.testing.assert_allclose(with_start, without, rtol=1e-4)


def test_rows_of_a_group_share_batches() -> None:
    """The group of the longest row first, and in each the longest rows first; without groups, by length alone."""
    lengths, groups = [3, 9, 5, 7, 4, 8], [0, 1, 0, 0, 1, 1]
    columns = {"input_ids": [[5] * n for n in lengths], "attention_mask": [[1] * n for n in lengths], "length": lengths}
    collator = Collator((("input_ids", 0), ("attention_mask", 0)), "right", 1, (), ())
    data = Dataset.from_dict(columns)
    assert [batch["index"].tolist() for batch in batches(data, collator, 2)] == [[1, 5], [3, 2], [4, 0]]
    grouped = Dataset.from_dict({**columns, "group": groups})
    assert [batch["index"].tolist() for batch in batches(grouped, collator, 2)] == [[1, 5], [4], [3, 2], [0]]


@pytest.mark.parametrize(
    ("most", "starts", "expected"),
    [
        (1000, None, [[1, 5, 3, 2], [4, 0]]),
        (18, None, [[1, 5], [3, 2], [4, 0]]),  # 9 tokens of the longest, twice; 7 of the next, twice
        (15, None, [[1], [5], [3, 2], [4, 0]]),
        (1, None, [[1], [5], [3], [2], [4], [0]]),
        (15, "start", [[1, 5, 3], [2, 4, 0]]),  # 9 - 5 + 1 of the longest, three times
        (1, "start", [[1], [5], [3], [2], [4], [0]]),
    ],
)
def test_batches_have_so_many_outputs(most: int, starts: str | None, expected: list[list[int]]) -> None:
    lengths = [3, 9, 5, 7, 4, 8]
    columns = {"input_ids": [[5] * n for n in lengths], "attention_mask": [[1] * n for n in lengths], "length": lengths}
    data = Dataset.from_dict({**columns, "start": [2, 8, 3, 5, 3, 6]})
    collator = Collator((("input_ids", 0), ("attention_mask", 0)), "right", 1, (), ())
    assert [batch["index"].tolist() for batch in batches(data, collator, 4, most, starts)] == expected
