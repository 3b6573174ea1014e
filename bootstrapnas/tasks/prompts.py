"""How an instruction is put to a language model: one prompt for training and for measuring.

The words are those of Stanford Alpaca (https://github.com/tatsu-lab/stanford_alpaca), which LLM-Adapters and LoNAS use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bootstrapnas.errors import UserError, listed, near_miss

_TASK = "Below is an instruction that describes a task"
_INPUT = ", paired with an input that provides further context"
_REQUEST = ". Write a response that appropriately completes the request."
_SECTION = re.compile(r"^[ \t]*### (?:Instruction|Input|Response):", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """What a prompt has besides the row's texts: a model learns it along with them, whitespace too.

    Attributes
    ----------
    indent
        Blanks before each line but the first.
    after, after_with_input
        Blanks after the first line.
    preamble
        Whether that line is there, which says what an instruction is.
    """

    indent: int = 0
    after: int = 0
    after_with_input: int = 0
    preamble: bool = True

    def prompt(self, instruction: str, context: str = "") -> str:
        """Return the prompt, up to where the response begins; `context` is the row's input, if it has one."""
        blanks = " " * (self.after_with_input if context else self.after)
        sections = [("Instruction", instruction), *([("Input", context)] if context else []), ("Response", "")]
        indent = "\n" + " " * self.indent
        parts = [f"{indent}### {title}:{indent}{text}" for title, text in sections]
        if not self.preamble:
            return "\n".join(parts).removeprefix("\n")
        return f"{_TASK}{_INPUT if context else ''}{_REQUEST}{blanks}\n" + "\n".join(parts)


@dataclass(frozen=True, slots=True)
class Prompting:
    """The style to train with and the styles to measure with, where these differ: of some tasks, by name."""

    training: PromptStyle
    measuring: PromptStyle | None = None
    measuring_of: Mapping[str, PromptStyle] = field(default_factory=dict)

    def style(self, task_name: str, *, measuring: bool) -> PromptStyle:
        """Return the style of a task's prompts."""
        if not measuring:
            return self.training
        return self.measuring_of.get(task_name, self.measuring or self.training)


PROMPTS: dict[str, Prompting] = {
    "default": Prompting(PromptStyle()),
    "short": Prompting(PromptStyle(preamble=False)),  # for small models: half the tokens of a short instruction
    # As published: the templates were indented with the code around them, differently in each place.
    "lonas": Prompting(PromptStyle(20, 2, 1), PromptStyle(24, 1, 0), {"math": PromptStyle(28, 1, 0)}),
}


def prompting(name: str) -> Prompting:
    """Return a way of prompting by name; `UserError` if there is none."""
    if name not in PROMPTS:
        raise UserError(f"unknown --prompt_style {name!r}{near_miss(name, PROMPTS)}; known: {listed(PROMPTS)}")
    return PROMPTS[name]


def response_of(text: str) -> str:
    """Return what a text says before it goes on with another prompt, as that of a model may which does not end."""
    return _SECTION.split(text, maxsplit=1)[0]
