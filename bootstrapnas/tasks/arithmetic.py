"""Generated arithmetic word problems in LLM-Adapters' format: a task that a very small model can learn.

A problem is a story with two or three numbers; its response works it out in a sentence and ends in "The answer is N."
No story is in two splits, but the sums are few and recur in all of them, told of other people and things: what is
measured is whether a model reads a story and knows its tables, not whether it computes what it has never seen.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

CAPS = {"train": 4000, "validation": 400, "test": 400}
_SHARES = {"train": 80, "validation": 10, "test": 10}  # of the stories, per cent
_MOST = {"add": 9, "subtract": 9, "multiply": 9, "two_steps": 5}
_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jack", "Kate", "Leo")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pens", "plums", "shells", "stamps")


@dataclass(frozen=True)
class _Story:
    operation: str
    problem: str
    working: str


_STORIES = (
    _Story("add", "{n} has {a} {t} and finds {b} more. How many {t} does {n} have now?", "{a} + {b} = {r}"),
    _Story("add", "There are {a} {t} in one box and {b} in another. How many {t} are there?", "{a} + {b} = {r}"),
    _Story("subtract", "{n} had {a} {t} and gave away {b}. How many {t} are left?", "{a} - {b} = {r}"),
    _Story("subtract", "{n} has {a} {t}. {m} has {b} fewer. How many {t} does {m} have?", "{a} - {b} = {r}"),
    _Story("multiply", "{n} buys {a} bags with {b} {t} in each. How many {t} is that?", "{a} * {b} = {r}"),
    _Story("multiply", "Each of {a} friends brings {b} {t}. How many {t} do they bring?", "{a} * {b} = {r}"),
    _Story(
        "two_steps",
        "{n} had {a} {t}, got {b} more and lost {c}. How many {t} are left?",
        "{a} + {b} = {s}. {s} - {c} = {r}",
    ),
)


def word_problems(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows by split: ``instruction``, ``input`` (empty), ``output``, ``answer``, ``source`` (what to do)."""
    generator = random.Random(seed)
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in CAPS}
    seen: set[str] = set()
    while any(len(rows[split]) < most for split, most in CAPS.items()):
        row = _row(generator)
        split = _split(row["instruction"])
        if len(rows[split]) < CAPS[split] and row["instruction"] not in seen:
            seen.add(row["instruction"])
            rows[split].append(row)
    return rows


def _row(generator: random.Random) -> dict[str, str]:
    story = generator.choice(_STORIES)
    most = _MOST[story.operation]
    a, b = generator.randint(2, most), generator.randint(2, most)
    if story.operation == "subtract" and b > a:
        a, b = b, a
    c = generator.randint(1, a + b - 1)
    results = {"add": a + b, "subtract": a - b, "multiply": a * b, "two_steps": a + b - c}
    result = results[story.operation]
    n, m = generator.sample(_NAMES, 2)
    words = {"n": n, "m": m, "t": generator.choice(_THINGS), "a": a, "b": b, "c": c, "s": a + b, "r": result}
    return {
        "instruction": story.problem.format(**words),
        "input": "",
        "output": f"{story.working.format(**words)}. The answer is {result}.",
        "answer": str(result),
        "source": story.operation,
    }


def _split(story: str) -> str:
    place = int.from_bytes(hashlib.blake2b(story.encode(), digest_size=4).digest(), "big") % 100
    for split, share in _SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares make up 100")
