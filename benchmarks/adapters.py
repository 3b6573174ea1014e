"""What elastic adapters cost: steps and memory of super-adapters against stock peft's LoRA, as ratios from one run.

python benchmarks/adapters.py [--batch 4] [--length 256] [--repeats 9] [--dtype float32|bfloat16] [--device cpu|cuda]
                              [--shape small|7b] [--gradient_checkpointing]

The model has LLaMA's proportions and random weights; adapters and widths are those published with LoNAS (rank 32 or 28,
FFN from 100 % to 50 %).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from common import clock_of, interleaved, ratio, write_table
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from bootstrapnas.adapters import adapter_supernet, add_adapters
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key
from bootstrapnas.families.adapted import Adapters
from bootstrapnas.supernet import Supernet

TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj")
RANK, RANKS, FFN_SHARES = 32, (32, 28), (1.0, 0.875, 0.75, 0.625, 0.5)
SHAPES = {"small": (768, 8, 12, 2064), "7b": (4096, 32, 32, 11008)}
"""Name -> hidden size, layers, heads, FFN width."""
MODES = ("stock", "elastic")


def build(shape: str, dtype: str, device: str, checkpointing: bool = False) -> LlamaForCausalLM:
    """Return a LLaMA with random weights."""
    hidden, layers, heads, ffn = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=32000 if shape == "7b" else 4096,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        dtype=getattr(torch, dtype),
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(getattr(torch, dtype)).requires_grad_(False).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def base(arguments: argparse.Namespace) -> LlamaForCausalLM:
    """Return the frozen model that the flags describe."""
    return build(arguments.shape, arguments.dtype, arguments.device, arguments.gradient_checkpointing)


def stock(arguments: argparse.Namespace) -> torch.nn.Module:
    """Return peft's LoRA of the full model."""
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=list(TARGETS), bias="none")
    return get_peft_model(base(arguments), config)


def elastic(arguments: argparse.Namespace) -> Supernet:
    """Return the super-adapter of the same model."""
    adapters = Adapters(TARGETS, RANK, 2 * RANK)
    model = base(arguments)
    family = add_adapters(model, adapters)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapter_supernet(model, family, adapters)


def random_subnet(supernet: Supernet, seed: int) -> dict[Key, int]:
    """Return a subnet of the published space."""
    random, blueprint, subnet = Random(seed), supernet.blueprint, {}
    for layer in range(blueprint.num_layers):
        subnet[Key("ffn", layer)] = int(random.choice(FFN_SHARES) * blueprint.full[Key("ffn", layer)])
        for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            subnet |= dict.fromkeys([Key(f"{path}.rank", layer) for path in group], random.choice(RANKS))
    return subnet


def stepper(arguments: argparse.Namespace, mode: str, subnets: int = 1) -> dict[str, Callable[[], object]]:
    """Return training steps by name: of stock LoRA, or of the largest and of random subnets."""
    vocab = 4096
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocab, (arguments.batch, arguments.length), generator=generator).to(arguments.device)

    def optimiser_of(model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def step_of(
        model: torch.nn.Module, optimiser: torch.optim.Optimizer, activation: Callable[[], object]
    ) -> Callable[[], object]:
        def step() -> None:
            with activation():  # type: ignore[attr-defined]
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimiser.step()
            optimiser.zero_grad()

        return step

    if mode == "stock":
        model = stock(arguments)
        return {"stock": step_of(model, optimiser_of(model), torch.enable_grad)}
    supernet = elastic(arguments)
    model, optimiser = supernet.model, optimiser_of(supernet.model)
    steps = {"max": step_of(model, optimiser, lambda: supernet.activate({}))}
    for number in range(subnets):
        subnet = random_subnet(supernet, number)
        steps[f"random {number}"] = step_of(model, optimiser, lambda subnet=subnet: supernet.activate(subnet))
    return steps


def peak_megabytes(arguments: argparse.Namespace, mode: str) -> float:
    """Return the peak memory of three steps in a process of its own."""
    command = [sys.executable, __file__, "--peak", mode, "--batch", str(arguments.batch), "--length"]
    command += [str(arguments.length), "--dtype", arguments.dtype, "--device", arguments.device]
    command += ["--shape", arguments.shape, *(["--gradient_checkpointing"] * arguments.gradient_checkpointing)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--subnets", type=int, default=4, help="random subnets that are timed")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the frozen base")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--peak", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.peak:
        steps = stepper(arguments, arguments.peak)
        if arguments.device == "cuda":  # making the model passes through float32
            torch.cuda.reset_peak_memory_stats()
        for step in steps.values():
            step()
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(torch.cuda.max_memory_allocated() / 2**20 if arguments.device == "cuda" else used)
        return
    steps = {**stepper(arguments, "stock"), **stepper(arguments, "elastic", arguments.subnets)}
    times = interleaved(steps, arguments.repeats, clock_of(arguments.device))
    names = [name for name in times if name.startswith("random")]
    times["random"] = [statistics.mean(turn) for turn in zip(*(times[name] for name in names), strict=True)]
    memory = {mode: peak_megabytes(arguments, mode) for mode in MODES}
    supernet = elastic(arguments)
    shares = [
        count_macs(supernet.blueprint, random_subnet(supernet, number), length=arguments.length)
        / count_macs(supernet.blueprint, length=arguments.length)
        for number in range(arguments.subnets)
    ]
    step = "training step, {} / stock LoRA"
    rows = [
        [step.format("one random subnet"), *(f"{v:.3f}" for v in ratio(times, "random", "stock")), "0.95"],
        [step.format("largest subnet"), *(f"{v:.3f}" for v in ratio(times, "max", "stock")), "1.03"],
        ["peak memory, supernet / stock LoRA", f"{memory['elastic'] / memory['stock']:.3f}", "", "", "1.02"],
    ]
    hidden, layers, heads, ffn = SHAPES[arguments.shape]
    checkpointed = "_checkpointed" if arguments.gradient_checkpointing else ""
    write_table(
        arguments.output / f"adapters_{arguments.shape}_{arguments.dtype}_{arguments.device}{checkpointed}.md",
        f"Cost of elastic adapters, base in {arguments.dtype}",
        ["what", "median", "min", "max", "at most"],
        rows,
        f"LLaMA {layers} x {hidden} ({heads} heads, FFN {ffn}), random weights, batch {arguments.batch}, "
        f"{arguments.length} tokens, rank {RANK} on {', '.join(TARGETS)}, AdamW, {arguments.repeats} interleaved "
        f"turns; the mean of {arguments.subnets} random subnets of the published space, with "
        f"{statistics.mean(shares):.0%} of the MACs{', gradient checkpointing' if checkpointed else ''}. Stock LoRA: "
        f"{1000 * statistics.median(times['stock']):.0f} ms a step, peak memory {memory['stock']:.0f} MB.",
    )


if __name__ == "__main__":
    main()
