"""Run the stateful IR of a causal language model on the CPU: the keys and values of past tokens stay inside."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bootstrapnas.errors import UserError
from bootstrapnas.export.runtime import BEAMS, IDS, MASK, POSITIONS, IRModel, compile_ir, positions_of


class CausalIR:
    """A compiled IR with the sequences it is in the middle of.

    Parameters
    ----------
    model
        The compiled IR; its inputs include ``beam_idx``.

    Raises
    ------
    UserError
        If the IR keeps no state.
    """

    def __init__(self, model: IRModel) -> None:
        if BEAMS not in model.inputs:
            raise UserError(
                f"the IR in {model.directory} keeps no keys and values (it has no input {BEAMS}): "
                "it is not the export of a causal language model"
            )
        self.model = model
        self.request = model.compiled.create_infer_request()
        self._mask_BL = np.zeros((0, 0), dtype=np.int64)

    @property
    def directory(self) -> Path:
        """Where the IR was read from."""
        return self.model.directory

    @property
    def precision(self) -> str:
        """What it really computes in: ``"f32"``, ``"bf16"`` or ``"f16"``."""
        return self.model.precision

    def reset(self) -> None:
        """Forget every token."""
        self.request.reset_state()
        self._mask_BL = np.zeros((0, 0), dtype=np.int64)

    def prefill(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """Forget every token, read prompts; return logits [batch, length, vocabulary] in float32.

        Parameters
        ----------
        input_ids
            Shape [batch, length]; where lengths differ, padded on the left if `step` is to go on from there.
        attention_mask
            Shape [batch, length], 0 where padded; default: nothing is.
        """
        self.reset()
        self._mask_BL = np.ones_like(input_ids) if attention_mask is None else np.asarray(attention_mask)
        return self._infer(input_ids, np.arange(len(input_ids)))

    def step(self, input_ids: np.ndarray, beam_idx: np.ndarray | None = None) -> np.ndarray:
        """Read further tokens; return their logits [batch, length, vocabulary] in float32.

        Parameters
        ----------
        input_ids
            Shape [batch, length]: mostly one token for each row.
        beam_idx
            Row i goes on from what was row ``beam_idx[i]`` until now, shape [batch]; default: each from its own.
        """
        if not len(self._mask_BL):
            raise UserError("nothing to go on from: call prefill first")
        beams = np.arange(len(input_ids)) if beam_idx is None else np.asarray(beam_idx)
        self._mask_BL = np.concatenate([self._mask_BL[beams], np.ones_like(input_ids)], axis=1)
        return self._infer(input_ids, beams)

    def generate_greedy(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        *,
        max_new_tokens: int,
        stop: Collection[int] = (),
    ) -> list[list[int]]:
        """Return for each prompt the tokens that follow, each the likeliest after those before.

        Parameters
        ----------
        input_ids, attention_mask
            As for `prefill`, padded on the left.
        max_new_tokens
            The most tokens of a row.
        stop
            Tokens that end a row; they are part of the result.
        """
        found: list[list[int]] = [[] for _ in input_ids]
        writing = found
        logits = self.prefill(input_ids, attention_mask)
        for place in range(1, max_new_tokens + 1):
            chosen = logits[:, -1].argmax(axis=-1)
            for row, token in zip(writing, chosen.tolist(), strict=True):
                row.append(token)
            going = np.flatnonzero(~np.isin(chosen, list(stop)))  # a row that has ended costs nothing more
            if place == max_new_tokens or not len(going):
                break
            writing = [writing[row] for row in going]
            logits = self.step(chosen[going, None], going)
        return found

    def _infer(self, input_ids: np.ndarray, beams: np.ndarray) -> np.ndarray:
        given: dict[str, np.ndarray] = {IDS: np.asarray(input_ids, dtype=np.int64)}
        given[MASK] = self._mask_BL.astype(np.int64)
        if POSITIONS in self.model.inputs:
            given[POSITIONS] = positions_of(self._mask_BL)[:, -input_ids.shape[1] :]
        given[BEAMS] = beams.astype(np.int32)
        return self.request.infer(given)["logits"]


def load_causal_ir(
    directory: str | os.PathLike[str],
    precision: str | None = "f32",
    threads: int | None = None,
    *,
    kv_cache: str | None = None,
) -> CausalIR:
    """Compile the IR of a causal language model for the CPU, one request at a time.

    Parameters
    ----------
    directory, precision, threads
        As for `bootstrapnas.export.load_ir`.
    kv_cache
        What keys and values are kept in: ``"f32"``, ``"bf16"``, ``"f16"``, ``"u8"``. Default: float32 if computed in
        float32, else what the IR says of itself, else OpenVINO's choice, which is u8.

    Raises
    ------
    UserError
        If the files are missing, corrupt or no IR of a causal language model, or the CPU does not compute in
        `precision`.
    """
    hints = {} if kv_cache is None else {"KV_CACHE_PRECISION": kv_cache}
    return CausalIR(compile_ir(directory, precision, threads, hints))


def pad_left(sequences: Sequence[Sequence[int]], pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and attention mask [batch, length of the longest] of token sequences, padded on the left."""
    length = max(map(len, sequences))
    ids = np.full((len(sequences), length), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, length - len(sequence) :] = sequence
        mask[row, length - len(sequence) :] = 1
    return ids, mask


def describe_cache(model: IRModel | CausalIR) -> list[dict[str, Any]]:
    """Return name and shape of each kept tensor, in the order of the IR."""
    request = model.request if isinstance(model, CausalIR) else model.compiled.create_infer_request()
    return [{"name": state.name, "shape": list(state.state.shape)} for state in request.query_state()]
