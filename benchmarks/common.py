"""Interleaved timing and tables for the benchmarks."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification


def machine() -> str:
    """Return processor, core count, GPU (one that torch sees) and library versions in one line."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        name = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), name
        )
    flags = [flag for flag, there in torch.cpu.get_capabilities().items() if there is True and flag in _SHOWN]
    gpu = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    return (
        f"{gpu}{name}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads, "
        f"{' '.join(sorted(flags))}; torch {torch.__version__}, transformers {transformers.__version__}"
    )


_SHOWN = {"amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512_f", "avx2"}


def build_bert(layers: int = 6, hidden: int = 384) -> BertForSequenceClassification:
    """Return a BERT with random weights, 12 heads, an FFN of four times the hidden size and 8 labels."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=4 * hidden, num_labels=8
    )
    return BertForSequenceClassification(config)


def random_batch(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Return token ids, a mask without padding and labels, shapes [batch, length] and [batch]."""
    return {
        "input_ids": torch.randint(1000, 30000, (batch, length)),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
        "labels": torch.randint(8, (batch,)),
    }


def autocast(dtype: str, device: str = "cpu") -> AbstractContextManager[object]:
    """Return a context that computes in ``"bfloat16"`` where that is safe, or changes nothing."""
    return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def clock_of(device: str) -> Callable[[], float]:
    """Return a wall clock that waits for what a GPU has still to do."""

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised if device == "cuda" else time.perf_counter


def interleaved(
    functions: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time each function `repeats` times and return its seconds by name.

    The functions take turns, in an order that rotates, so that drift of the machine hits all alike. Each runs twice in
    its turn and the second run counts: the first finds the caches and the allocator as another function left them.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for turn in range(repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            functions[name]()
            began = clock()
            functions[name]()
            times[name].append(clock() - began)
    return times


def ratio(times: Mapping[str, list[float]], over: str, *under: str) -> tuple[float, float, float]:
    """Return the median, minimum and maximum over turns of ``times[over] / sum of times[under]``."""
    ratios = sorted(a / sum(b) for a, *b in zip(times[over], *(times[name] for name in under), strict=True))
    return statistics.median(ratios), ratios[0], ratios[-1]


def write_table(
    path: Path, title: str, header: list[str], rows: list[list[str]], notes: str, where: str | None = None
) -> None:
    """Print a Markdown table and write it to `path` with the machine named: this one, or `where` it was measured."""
    lines = [f"# {title}", "", notes, "", f"Machine: {where or machine()}", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
