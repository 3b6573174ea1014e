"""Causal language models: an IR with the keys and values inside, held against torch by prompts and token by token."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bootstrapnas.artefacts import writing
from bootstrapnas.errors import UserError
from bootstrapnas.export.causal_runtime import CausalIR, pad_left
from bootstrapnas.export.conversion import conditions_of, convert
from bootstrapnas.export.runtime import BEAMS, IDS, MASK, POSITIONS, IRModel, positions_of
from bootstrapnas.export.tokenizer import save_tokenizer_ir
from bootstrapnas.export.verification import Difference, ExportError, difference
from bootstrapnas.progress import warn

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

LOGITS = "logits"
ROWS = 4  # sequences that are compared as one batch
STEPS = 4  # tokens that are decoded one by one, with a known continuation
GENERATED = 16  # tokens that torch and the IR each choose for themselves
LOWEST = float(np.finfo(np.float32).min)
MOST_LOGITS = 2**25  # numbers in the logits of one comparison: 128 MiB


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What one attention layer keeps of a token.

    Attributes
    ----------
    slot
        Where the model's cache has it: the attention's ``layer_idx``.
    key, value
        Number of kv heads and width of a head.
    """

    slot: int
    key: tuple[int, int]
    value: tuple[int, int]


def find_cache(model: PreTrainedModel) -> tuple[CacheEntry, ...]:
    """Return what a causal language model keeps, in order: found by running it once, whatever its config says.

    Layers may differ in the number of kv heads; layers without attention have no entry.

    Raises
    ------
    ExportError
        If it keeps nothing, or something else than keys and values of shape [batch, kv heads, tokens, width].
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    name = type(model).__name__
    batch, length = 2, 3
    ids = torch.arange(batch * length).reshape(batch, length) % model.config.get_text_config().vocab_size
    cache = DynamicCache()
    with torch.no_grad():
        results = model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    if results.get("past_key_values") is not cache:
        raise ExportError(
            f"{name} does not keep keys and values in a DynamicCache: it cannot be exported with its cache"
        )
    found = []
    for slot, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer:
            raise ExportError(
                f"{name} keeps a {type(layer).__name__} in layer {slot}, only keys and values can be exported"
            )
        if not layer.is_initialized:
            continue
        shapes = [tuple(tensor.shape) for tensor in (layer.keys, layer.values)]
        if any(len(shape) != 4 or shape[0] != batch or shape[2] != length for shape in shapes):
            raise ExportError(
                f"{name} keeps keys and values of shape {shapes[0]} and {shapes[1]} in layer {slot} "
                f"for {batch} rows of {length} tokens: not [rows, heads, tokens, width]"
            )
        found.append(CacheEntry(slot, *((shape[1], shape[3]) for shape in shapes)))
    if not found:
        raise ExportError(f"{name} keeps no keys and values: no layer has attention")
    return tuple(found)


class CausalConversion:
    """A causal language model: token ids in, logits of every token out, keys and values kept inside between calls.

    Parameters
    ----------
    model
        In float32, on the CPU, in eval mode.
    tokenizer
        Saved with the model.
    batches
        Real texts: ``input_ids`` and, where padded, ``attention_mask``, shape [batch, length].

    Raises
    ------
    UserError
        If there is no sequence of at least two tokens.
    ExportError
        If what the model keeps between tokens cannot be exported.
    """

    kind = "causal"
    unsuitable: Mapping[str, str] = {
        "quant_mode int8": "it waits for its weights, not for its products; use weight_format int8 or int4"
    }
    outputs: tuple[str, ...] = (LOGITS,)

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        batches: Sequence[Mapping[str, Tensor]],
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.has_positions = POSITIONS in inspect.signature(model.forward).parameters
        self.inputs: tuple[str, ...] = (IDS, MASK, *([POSITIONS] if self.has_positions else []), BEAMS)
        self.sequences = _sequences(batches, *_limits(model))
        with _attention_as_one_operation(model):
            self.cache = find_cache(model)
        self._shapes: list[tuple[int, int]] = []

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """[batch, length] of the prompts that were compared."""
        return tuple(self._shapes)

    def convert(self) -> Any:
        """Return the stateful `openvino.Model`, its weights in float32."""
        import openvino as ov

        rows, past, length = 2, 3, 2
        example = [torch.ones(rows, length, dtype=torch.long), torch.ones(rows, past + length, dtype=torch.long)]
        if self.has_positions:
            example.append(torch.arange(past, past + length).repeat(rows, 1))
        states = [(heads, width) for entry in self.cache for heads, width in (entry.key, entry.value)]
        shapes: list[list[int]] = [[-1, -1]] * len(example) + [[-1, heads, -1, width] for heads, width in states]
        types = [ov.Type.i64] * len(example) + [ov.Type.f32] * len(states)
        example += [torch.rand(rows, heads, past, width) for heads, width in states]
        with torch.no_grad(), _attention_as_one_operation(self.model):
            ir = convert(
                _WithCacheAsTensors(self.model, self.cache, self.has_positions).eval(),
                type(self.model).__name__,
                example_input=tuple(example),
                input=list(zip(shapes, types, strict=True)),
            )
        _make_stateful(ir, self.inputs[:-1], len(self.cache))
        _show_windows(ir)
        # OpenVINO's own choice is u8.
        ir.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])
        return ir

    def compare(self, ir: IRModel) -> Difference:
        """Return how far the IR's logits are from torch's.

        Compared are: prompts of several lengths, padded on the left, as one batch, then their known continuation token
        by token, the rows changing places on the way; a prompt of one token, continued; a whole sequence.
        """
        causal = CausalIR(ir)
        rows = self.sequences
        found: list[dict[str, np.ndarray]] = []
        wanted: list[dict[str, np.ndarray]] = []
        self._shapes = []
        for sequences, prompts in (
            (rows, [len(prompt) for prompt in self._prompts()]),
            (rows[-1:], [1]),
            (rows[:1], [len(rows[0])]),
        ):
            ours, theirs = self._follow(causal, sequences, prompts)
            found += ours
            wanted += theirs
        return difference(found, wanted)

    def check(self, ir: IRModel, found: Difference) -> None:
        """Raise `ExportError` if the IR's greedy continuation of the prompts is not that of torch's `generate`.

        Where torch's logits of the two tokens are no further apart than both may be off, either is right, and the row
        is not looked at any further.
        """
        prompts = self._prompts()
        ids, mask = pad_left(prompts)
        wanted = _generate(self.model, ids, mask, GENERATED)
        chosen = CausalIR(ir).generate_greedy(ids, mask, max_new_tokens=GENERATED)
        for prompt, ours, theirs in zip(prompts, chosen, wanted, strict=True):
            if ours == theirs:
                continue
            place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            sequence = np.array([[*prompt, *theirs[:place]]])
            logits = self._torch(sequence, np.ones_like(sequence), None)[0][0, -1]
            if abs(logits[ours[place]] - logits[theirs[place]]) > 2 * found.absolute:
                raise ExportError(
                    f"the IR of {type(self.model).__name__} generates {ours[place]} as token {place + 1} after a "
                    f"prompt of {len(prompt)} tokens, torch {theirs[place]}: it was not written"
                )

    def save_tokenizer(self, directory: Path) -> str | None:
        """Write the tokenizer, its IR and the IR of its way back; return why there are no IRs, if there are none."""
        if self.tokenizer is None:
            return "no tokenizer was given"
        with writing(directory):
            self.tokenizer.save_pretrained(directory)
        texts = self.tokenizer.batch_decode(self.sequences, skip_special_tokens=True)
        reason = save_tokenizer_ir(self.tokenizer, directory, texts, detokenizer=True)
        if reason is not None:
            warn(f"no openvino_tokenizer.xml: {reason}; the tokenizer's own files are there")
        return reason

    def _prompts(self) -> list[list[int]]:
        """Return the beginnings of the sequences, whose last tokens are decoded one by one."""
        steps = min(STEPS, min(map(len, self.sequences)) - 1)
        return [sequence[: len(sequence) - steps] for sequence in self.sequences]

    def _follow(
        self, ir: CausalIR, rows: Sequence[Sequence[int]], prompts: Sequence[int]
    ) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
        """Return the logits of prompts and of each token after them, the IR's and torch's; no padding.

        Parameters
        ----------
        rows
            Token sequences.
        prompts
            How many tokens of each are the prompt; as many are left in each.
        """
        ids, mask = pad_left([row[:prompt] for row, prompt in zip(rows, prompts, strict=True)])
        rest = np.array([row[prompt:] for row, prompt in zip(rows, prompts, strict=True)], dtype=np.int64)
        self._shapes.append((ids.shape[0], ids.shape[1]))
        logits, cache = self._torch(ids, mask, None)
        found, wanted = [ir.prefill(ids, mask)[mask == 1]], [logits[mask == 1]]
        for step in range(rest.shape[1]):
            beams = np.arange(len(rows))
            if step == 1:
                beams = beams[::-1].copy()
                cache.reorder_cache(torch.from_numpy(beams))
                mask, rest = mask[beams], rest[beams]
            token = rest[:, step : step + 1]
            mask = np.concatenate([mask, np.ones_like(token)], axis=1)
            logits, cache = self._torch(token, mask, cache)
            found.append(ir.step(token, beams))
            wanted.append(logits)
        return [{LOGITS: tensor} for tensor in found], [{LOGITS: tensor} for tensor in wanted]

    def _torch(self, ids: np.ndarray, mask: np.ndarray, cache: Cache | None) -> tuple[np.ndarray, Cache]:
        """Return the logits of `ids` and the cache after them. `mask` covers the past as well."""
        inputs = {IDS: ids, MASK: mask}
        if self.has_positions:
            inputs[POSITIONS] = positions_of(mask)[:, -ids.shape[1] :]
        with torch.no_grad():
            results = self.model(
                **{name: torch.from_numpy(array) for name, array in inputs.items()},
                past_key_values=cache,
                use_cache=True,
            )
        return results.logits.numpy(), results.past_key_values


class _WithCacheAsTensors(nn.Module):
    """Gives a model's forward pass the form that can be traced: the cache goes in and comes out as tensors."""

    def __init__(self, model: nn.Module, cache: Sequence[CacheEntry], has_positions: bool) -> None:
        super().__init__()
        self.model, self.cache, self.has_positions = model, tuple(cache), has_positions

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        from transformers.cache_utils import DynamicCache, DynamicLayer

        first = 1 if self.has_positions else 0
        inputs = {IDS: input_ids, MASK: attention_mask}
        if self.has_positions:
            inputs[POSITIONS] = others[0]
        cache = DynamicCache()
        cache.layers = [DynamicLayer() for _ in range(self.cache[-1].slot + 1)]
        for number, entry in enumerate(self.cache):
            keys, values = others[first + 2 * number : first + 2 * number + 2]
            layer = cache.layers[entry.slot]
            layer.lazy_initialization(keys, values)
            # Not by `update`: it would join them to the tensor without dimensions that an empty layer has.
            layer.keys, layer.values = keys, values
        results = self.model(**inputs, past_key_values=cache, use_cache=True)
        kept = [results.past_key_values.layers[entry.slot] for entry in self.cache]
        return (results.logits, *(tensor for layer in kept for tensor in (layer.keys, layer.values)))


def _make_stateful(ir: Any, inputs: Sequence[str], layers: int) -> None:
    """Give a converted model its names and move the cache inside.

    Names, ``beam_idx`` and an empty cache at the start are as optimum-intel writes them and OpenVINO GenAI expects
    them: the rows of the cache are gathered by ``beam_idx`` in every call, and without a call before they are as many
    as ``input_ids`` has.
    """
    import openvino as ov
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    kept = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    past, present = [f"past_key_values.{name}" for name in kept], [f"present.{name}" for name in kept]
    named = (*inputs, *past)
    for port, name in (*zip(ir.inputs, named, strict=True), *zip(ir.outputs, (LOGITS, *present), strict=True)):
        port.get_tensor().set_names({name})
    for port, name in zip(ir.inputs, named, strict=True):  # OpenVINO's paged attention finds the positions by that
        port.get_node().set_friendly_name(name)
    beams = ops.parameter(shape=ov.PartialShape([-1]), dtype=ov.Type.i32, name=BEAMS)
    beams.output(0).get_tensor().set_names({BEAMS})
    ir.add_parameters([beams])
    for name in past:
        port = ir.input(name)
        users = port.get_target_inputs()
        gathered = ops.gather(port, beams, ops.constant(0))
        for user in users:
            user.replace_source_output(gathered.output(0))
    ir.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(ir, dict(zip(past, present, strict=True)))
    batch = ops.gather(ops.shape_of(ir.input(IDS), output_type="i64"), ops.constant([0]), ops.constant(0))
    for operation in ir.get_ops():
        if operation.get_type_name() == "ReadValue":
            _, heads, _, width = operation.get_output_partial_shape(0)
            sizes = (heads.get_length(), 0, width.get_length())
            rest = [ops.constant(np.array([size], dtype=np.int64)) for size in sizes]
            zero = ops.constant(0.0, dtype=operation.get_output_element_type(0))
            operation.set_arguments([ops.broadcast(zero, ops.concat([batch, *rest], axis=0))])
    ir.validate_nodes_and_infer_types()


def _show_windows(ir: Any) -> None:
    """Write the masks of sliding windows in the form in which OpenVINO's paged attention finds the window.

    It reads no masks: one it does not recognise counts as plainly causal, and every token would attend to the whole
    past. What it looks for is what a float mask looks like, cut to the length of the keys: a choice between two
    numbers by the boolean mask, and a slice (here of everything, which costs nothing).
    """
    from openvino import opset13 as ops

    shown: dict[str, Any] = {}
    for operation in ir.get_ops():
        if operation.get_type_name() != "ScaledDotProductAttention" or operation.get_input_size() < 4:
            continue
        mask = operation.input_value(3)
        node = mask.get_node()
        if "Greater" not in conditions_of(node):
            continue
        name = node.get_friendly_name()
        if name not in shown:
            floats = ops.select(mask, ops.constant(0.0, dtype=np.float32), ops.constant(LOWEST, dtype=np.float32))
            whole = [ops.constant([value], dtype=np.int64) for value in (0, np.iinfo(np.int64).max, 1, 3)]
            shown[name] = ops.slice(floats, *whole)
        operation.input(3).replace_source_output(shown[name].output(0))
    ir.validate_nodes_and_infer_types()


@contextlib.contextmanager
def _attention_as_one_operation(model: PreTrainedModel) -> Iterator[None]:
    """Have attention computed by scaled_dot_product_attention where the model can: OpenVINO fuses it with the cache."""
    before = model.config._attn_implementation
    if before != "sdpa" and model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def _generate(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray, tokens: int) -> list[list[int]]:
    """Return what torch's `generate` puts after prompts: greedily, without anything else that a config may ask for."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        generated = model.generate(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            generation_config=GenerationConfig(do_sample=False, max_new_tokens=tokens, pad_token_id=0),
        )
    finally:
        model.generation_config = own
    return [[int(token) for token in row[ids.shape[1] :]] for row in generated]


def _limits(model: PreTrainedModel) -> tuple[int, int]:
    """Return how many tokens a compared sequence may have: for the logits' size, and for what is generated after it."""
    config = model.config.get_text_config()
    longest = MOST_LOGITS // (ROWS * config.vocab_size)
    positions = getattr(config, "max_position_embeddings", None)
    return max(longest, 2), max((positions or longest + GENERATED) - GENERATED, 2)


def _sequences(batches: Sequence[Mapping[str, Tensor]], *limits: int) -> list[list[int]]:
    """Return up to `ROWS` token sequences of batches, the longest first and the shortest last, cut to the limits."""
    found = []
    for batch in batches:
        for row, ids in enumerate(batch[IDS]):
            attended = batch[MASK][row].bool() if MASK in batch else torch.ones_like(ids).bool()
            found.append(ids[attended].tolist()[: min(limits)])
    found = sorted((sequence for sequence in found if len(sequence) >= 2), key=len, reverse=True)
    if not found:
        raise UserError("the texts to verify on hold no sequence of at least two tokens")
    return [*found[: ROWS - 1], found[-1]] if len(found) > ROWS else found
