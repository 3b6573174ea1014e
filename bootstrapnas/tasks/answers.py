"""Answers in texts that language models write: what a data set's answers look like, and how one is found.

The data sets are LLM-Adapters' (Hu et al. 2023, https://arxiv.org/abs/2304.01933). Their published rules take the first
choice, letter or the last number that a text holds, wherever it stands. Here what follows "the answer is" (or ``####``)
counts before the rest of the text does, a letter is none where it is a word of the sentence (after "the answer is" only
"A" may be), a comma belongs to a number only between thousands, and a fraction to the whole number before it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

_MARKER = re.compile(r"answer\s*(?:is\b|:|=)|####", re.IGNORECASE)
_FORMAT = re.compile(r"answer format:\s*([^\s/]+(?:/[^\s/]+)+)", re.IGNORECASE)
_CLOSE_ENOUGH = 1e-3
_IN_SENTENCE = r"\s+(?!(?:because|since|as|is (?:the )?(?:correct|right|answer))\b)[a-z]"
"""What follows a letter that is a word: the article of a noun, an unknown in a sum, a person's name."""
_SENTENCE_END = re.compile(r"\.(?!\d)|\n")
_NUMBER = re.compile(
    r"""(?<![\w.])
    (?P<sign>[-\u2212]?)[$€£]?(?P<sign_after>[-\u2212]?)
    (?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+(?!\w))?|\.\d+)
    (?:/(?P<below>\d+(?:\.\d+)?)(?![\w/]))?""",
    re.VERBOSE,
)

_MIXED = re.compile(r"(?<![\w.,/])(\d+) (\d+)/(\d+)(?![\w/]|\.\d)")


def _after_markers(text: str) -> Iterator[str]:
    """Yield what follows each "answer is", the last one first."""
    for match in reversed(list(_MARKER.finditer(text))):
        yield text[match.end() :]


class Rule(ABC):
    """What the answers of a data set look like."""

    @abstractmethod
    def find(self, text: str) -> str | None:
        """Return the answer that a text gives, or None."""

    @abstractmethod
    def fits(self, answer: str) -> bool:
        """Return whether an answer of a row is one of this rule."""

    def same(self, answer: str, other: str) -> bool:
        """Return whether two answers are the same."""
        return answer.strip().lower() == other.strip().lower()

    def choices(self, instruction: str) -> tuple[str, ...]:
        """Return the answers that an instruction leaves to choose from; none if it asks for something else."""
        return ()


@dataclass(frozen=True)
class Choice(Rule):
    """One of several names, such as ``answer1``."""

    names: tuple[str, ...]

    def find(self, text: str) -> str | None:
        pattern = "|".join(re.sub(r"(?<=\D)(?=\d)", r"[ ]?", re.escape(name)) for name in self.names)
        word = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)
        for part in (*_after_markers(text), text):
            match = word.search(part)
            if match is not None:
                return match.group().replace(" ", "").lower()
        return None

    def fits(self, answer: str) -> bool:
        return answer.strip().lower() in self.names

    def choices(self, instruction: str) -> tuple[str, ...]:
        stated = _FORMAT.findall(instruction)
        names = tuple(name.lower() for name in stated[-1].split("/")) if stated else ()
        return names if names and set(names) <= set(self.names) else self.names


@dataclass(frozen=True)
class Letter(Rule):
    """A letter among A to E, as of multiple choice."""

    letters: str = "ABCDE"

    def find(self, text: str) -> str | None:
        one = f"[{self.letters}]"
        for part in _after_markers(text):
            match = re.match(rf"\W*(?:option|choice)?\W*({one})(?![\w'’])(?!(?<=A){_IN_SENTENCE})", part)
            if match is not None:
                return match.group(1)
        for pattern in (rf"\(({one})\)", rf"(?<![\w'’])({one})(?![\w'’])(?!{_IN_SENTENCE})"):
            found = re.findall(pattern, text)
            if found:
                return str(found[-1])
        return None

    def fits(self, answer: str) -> bool:
        return len(answer.strip()) == 1 and answer.strip() in self.letters

    def choices(self, instruction: str) -> tuple[str, ...]:
        return tuple(self.letters)


@dataclass(frozen=True)
class Number(Rule):
    """A number: the first one after "the answer is", past the equals signs there, else the last; equal within 0.001."""

    def find(self, text: str) -> str | None:
        text = _MIXED.sub(_fraction, text)
        for part in _after_markers(text):
            sentence = _SENTENCE_END.split(part.strip(), maxsplit=1)[0]
            match = _NUMBER.search(sentence.rpartition("=")[2]) or _NUMBER.search(part)
            if match is not None:
                return _plain(match)
        found = list(_NUMBER.finditer(text))
        return _plain(found[-1]) if found else None

    def fits(self, answer: str) -> bool:
        return _NUMBER.fullmatch(_MIXED.sub(_fraction, answer.strip())) is not None

    def same(self, answer: str, other: str) -> bool:
        first, second = self.find(answer), self.find(other)
        return first is not None and second is not None and abs(float(first) - float(second)) <= _CLOSE_ENOUGH


@dataclass(frozen=True)
class Text(Rule):
    """Any other text, which must be said word for word."""

    def find(self, text: str) -> str | None:
        return text.strip() or None

    def fits(self, answer: str) -> bool:
        return bool(answer.strip())


def _fraction(match: re.Match[str]) -> str:
    """Return a mixed number (2 1/2) as one fraction (5/2); a number beside a fraction above 1 is none, and stays."""
    whole, above, below = map(int, match.groups())
    return f"{whole * below + above}/{below}" if above < below else match.group()


def _plain(match: re.Match[str]) -> str:
    """Return a number as Python writes it."""
    value = float(match["number"].replace(",", ""))
    if match["below"] and float(match["below"]):
        value /= float(match["below"])
    if match["sign"] or match["sign_after"]:
        value = -value
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else str(value)


def _numbered(name: str, count: int) -> Choice:
    return Choice(tuple(f"{name}{number}" for number in range(1, count + 1)))


_ANSWERS = _numbered("answer", 5)
RULES: dict[str, Rule] = {
    "boolq": Choice(("true", "false")),
    "piqa": _numbered("solution", 2),
    "social_i_qa": _ANSWERS,
    "hellaswag": _numbered("ending", 4),
    "winogrande": _numbered("option", 2),
    "ARC-Easy": _ANSWERS,
    "ARC-Challenge": _ANSWERS,
    "openbookqa": _ANSWERS,
    "AQuA": Letter(),
    **dict.fromkeys(("gsm8k", "mawps", "SVAMP", "AddSub", "MultiArith", "SingleEq"), Number()),
}
"""Data set -> what its answers look like."""


def rule_of(source: str, answer: str) -> Rule | None:
    """Return the rule of a row: its data set's or, of an unknown one, the first that its answer fits.

    None if the answer does not fit: it is empty, or not what its data set asks for.
    """
    if source in RULES:
        return RULES[source] if RULES[source].fits(answer) else None
    return next((rule for rule in (*RULES.values(), Text()) if rule.fits(answer)), None)
