"""What evaluating a subnet of a super-adapter costs: the published loop against batches, as ratios from one run.

python benchmarks/adapter_evaluation.py [--rows 64] [--pool 16] [--repeats 5] [--tokens 32,8] [--clock cpu|wall]
                                        [--shape 512|small|7b] [--dtype float32|bfloat16] [--device cpu|cuda]

The published loop writes one prompt at a time, following 4 beams. The model is a LLaMA, by default of 8 layers x 512,
with random weights, so nothing ends a text: both sides write as many tokens. Prompts are random tokens as long as the
commonsense rows of LLM-Adapters (105 tokens on average, of which a data set's questions have 37 in common).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from adapters import SHAPES, TARGETS, elastic, random_subnet
from common import clock_of, interleaved, ratio, write_table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

from bootstrapnas.adapters import merged_adapters
from bootstrapnas.costs import count_macs
from bootstrapnas.evaluation import predict
from bootstrapnas.outputs import INDEX, MASK
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import Generation, generate
from bootstrapnas.tasks.instructions import INSTRUCTIONS

SHAPES["512"] = (512, 8, 8, 1376)
VOCABULARY = 4096
BEGINNING, REST = 37, (45, 90)
"""Tokens that all prompts begin with, and the fewest and the most that follow."""
CHOICES = 5
BEAMS = 4
SINGLE = 2
"""Prompts that the published loop is timed on."""


def batch_of(rows: int, pool: int) -> dict[str, torch.Tensor]:
    """Return the batch in the middle of `pool`: prompts padded on the right, and choices of a last token."""
    random = Random(0)
    beginning = [random.randrange(3, VOCABULARY) for _ in range(BEGINNING)]
    texts = [
        [*beginning, *(random.randrange(3, VOCABULARY) for _ in range(random.randint(*REST)))]
        for _ in range(rows * pool)
    ]
    middle = (len(texts) - rows) // 2
    texts = sorted(texts, key=len, reverse=True)[middle : middle + rows]
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    return {
        "input_ids": ids,
        MASK: (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        INDEX: torch.arange(rows),
        "start": lengths,
        "candidates": torch.arange(3, 3 + CHOICES).expand(rows, -1),
    }


def published(model: Any, batch: dict[str, torch.Tensor], tokens: int) -> None:
    """Write a few prompts of middle length as LoNAS's loop does."""
    config = GenerationConfig(
        max_new_tokens=tokens, num_beams=BEAMS, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None
    )
    middle = len(batch["input_ids"]) // 2
    with torch.inference_mode():
        for row in range(middle, middle + SINGLE):
            ids = batch["input_ids"][row : row + 1, : int(batch["start"][row])].to(model.device)
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)


def ways(
    supernet: Supernet, batch: dict[str, torch.Tensor], lengths: list[int]
) -> dict[str, tuple[Callable[[], object], int]]:
    """Return ways of evaluating by name, and how many rows each evaluates."""
    model, rows = supernet.model, len(batch["input_ids"])
    model.generation_config.eos_token_id = None
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), pad_token="w0")
    prompts = {name: batch[name] for name in ("input_ids", MASK, INDEX)}

    def merging(run: Callable[[], object], merge: bool) -> Callable[[], object]:
        def merged() -> None:
            with merged_adapters(supernet) if merge else nullcontext():
                run()

        return merged

    def writing(tokens: int, beams: int) -> Callable[[], object]:
        return lambda: generate(model, [prompts], tokenizer, Generation(tokens, beams))

    found: dict[str, tuple[Callable[[], object], int]] = {}
    for tokens in lengths:
        found[f"published loop, {tokens} tokens"] = (lambda tokens=tokens: published(model, batch, tokens)), SINGLE
        found[f"batch, {BEAMS} beams, {tokens} tokens"] = writing(tokens, BEAMS), rows
        for merge in (False, True):
            name = f"batch, likeliest tokens{', adapters merged' if merge else ''}, {tokens} tokens"
            found[name] = merging(writing(tokens, 1), merge), rows
    for merge in (False, True):
        name = f"batch, choices scored{', adapters merged' if merge else ''}"
        found[name] = merging(lambda: predict(model, [batch], INSTRUCTIONS.outputs), merge), rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="of a batch")
    parser.add_argument("--pool", type=int, default=16, help="batches that the one which is timed is the middle of")
    parser.add_argument("--ways", default="", help="what to time, by parts of names: published,scored; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", default="32,8", help="to write: the published limit, and about what an answer has")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="512")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--searched_rows", type=int, default=256, help="that a subnet of a search is evaluated on")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="wall", help="cpu: for a machine that others use")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    lengths = [int(part) for part in arguments.tokens.split(",")]
    supernet = elastic(SimpleNamespace(**vars(arguments), gradient_checkpointing=False))
    supernet.model.eval()
    subnet = random_subnet(supernet, 0)
    share = count_macs(supernet.blueprint, subnet, length=128) / count_macs(supernet.blueprint, length=128)
    clock = time.process_time if arguments.clock == "cpu" else clock_of(arguments.device)
    with supernet.activate(subnet):
        found = ways(supernet, batch_of(arguments.rows, arguments.pool), lengths)
        wanted = [part for part in arguments.ways.split(",") if part]
        found = {name: way for name, way in found.items() if not wanted or any(part in name for part in wanted)}
        times = interleaved({name: run for name, (run, _) in found.items()}, arguments.repeats, clock)
    each = {name: [seconds / found[name][1] for seconds in turns] for name, turns in times.items()}
    table = []
    for name, turns in each.items():
        against = [ratio(each, f"published loop, {tokens} tokens", name) for tokens in lengths]
        shown = [f"{median:.1f} ({least:.1f}-{most:.1f})" for median, least, most in against]
        apart = [f", {tokens} tokens" in name or "scored" in name for tokens in lengths]
        cells = [text if same else "" for text, same in zip(shown, apart, strict=True)]
        a_second = 1 / statistics.median(turns)
        table.append([name, f"{a_second:.2f}", f"{3600 * a_second / arguments.searched_rows:.1f}", *cells])
    hidden, layers, heads, ffn = SHAPES[arguments.shape]
    apart_from_default = [
        value
        for value in (arguments.shape, arguments.dtype, arguments.device)
        if value not in ("512", "float32", "cpu")
    ]
    seconds = "CPU seconds of one process" if arguments.clock == "cpu" else "wall-clock seconds"
    write_table(
        arguments.output / f"{'_'.join(['adapter_evaluation', *wanted, *apart_from_default])}.md",
        "Evaluating a subnet of a super-adapter: rows a second, and times the published loop's",
        [
            "what",
            f"rows a second ({arguments.clock})",
            f"subnets an hour, {arguments.searched_rows} rows each",
            *(f"times, {tokens} tokens" for tokens in lengths),
        ],
        table,
        f"LLaMA {layers} x {hidden} ({heads} heads, FFN {ffn}, {supernet.model.config.vocab_size} tokens), random "
        f"weights, {arguments.dtype}; adapters "
        f"of rank 32 on {', '.join(TARGETS)}; a random subnet of the published space, {share:.0%} of the MACs. "
        f"{arguments.rows} prompts of {BEGINNING} common tokens and {REST[0]} to {REST[1]} more, the middle one of "
        f"{arguments.pool} batches sorted by length; the published loop (a "
        f"prompt at a time, {BEAMS} beams) on {SINGLE} of middle length. No text ends before its last token. Medians "
        f"(least-most) of {arguments.repeats} interleaved turns, {seconds}; {os.cpu_count()} cores that other work may "
        f"share.",
    )


if __name__ == "__main__":
    main()
