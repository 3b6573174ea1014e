#!/usr/bin/env bash
# LoNAS on math with LLaMA-7B: a super-adapter, searched, and its best subnet as one smaller model in OpenVINO.
#
#   bash running_commands/lonas/llama_7b_math.sh
#
# The same command again finds the stages that are finished and resumes one that was interrupted. Variables change it
# (relative paths begin at the project's root):
#
#   MODEL        the base model: hub id or directory
#   TRAIN_FILE   rows to train on, a tenth of which is held out: LLM-Adapters' ft-training_set/math_10k.json
#   DATASET_DIR  the test sets: LLM-Adapters' dataset/, with gsm8k/test.json and so on
#                (https://github.com/AGI-Edgerunners/LLM-Adapters); or, for both, one directory of train.jsonl and
#                test.jsonl
#   OUTPUT_DIR   where all stages write
#   NNCF_CONFIG  another config than the published one
#   TRAINING     more flags of the training, for example TRAINING="--base_dtype float16 --bf16 False --fp16 True"
#   BASELINE     1 trains an ordinary LoRA as well, and evaluates it
#   EXPORT       flags of the export, for example EXPORT="--weight_format int8"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:$PWD/.venv/bin

MODEL=${MODEL:-huggyllama/llama-7b}
OUTPUT_DIR=${OUTPUT_DIR:-runs/lonas/llama_7b_math}
NNCF_CONFIG=${NNCF_CONFIG:-nncf_configs/lonas/llama_7b/math.json}
data=(${TRAIN_FILE:+--train_file "$TRAIN_FILE"} ${DATASET_DIR:+--dataset_dir "$DATASET_DIR"})
if [[ ${#data[@]} == 0 ]]; then
    echo "llama_7b_math.sh: TRAIN_FILE and DATASET_DIR must say where LLM-Adapters' files are" >&2
    exit 2
fi
# What is evaluated: all test sets that are there (gsm8k, AQuA, mawps, SVAMP, AddSub, MultiArith, SingleEq), or else the
# rows that were held out.
split=validation
if [[ -n ${DATASET_DIR:-} && -n $(find "$DATASET_DIR" -maxdepth 2 -name 'test.*') ]]; then split=test; fi

# 1. The super-adapter: one random subnet a step, 7 epochs, the base model frozen.
lonas train --model_name_or_path "$MODEL" --nncf_config "$NNCF_CONFIG" \
    --task_name math --max_seq_length 256 "${data[@]}" \
    --lora_r 32 --lora_alpha 64 --lora_dropout 0.1 \
    --target_modules q_proj,k_proj,v_proj,up_proj,gate_proj,down_proj \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --base_dtype bfloat16 --bf16 True ${TRAINING:-} \
    --output_dir "$OUTPUT_DIR/super"

# 2. The subnet of the middle choices, without any search.
lonas eval --supernet_dir "$OUTPUT_DIR/super" --subnet heuristic --split "$split" --precision auto

# 3. The subnets with the best trade-off between quality and MACs, on the held-out rows.
lonas search --supernet_dir "$OUTPUT_DIR/super" --output_dir "$OUTPUT_DIR/search"

# 4. The best one: what it reaches, as a smaller base model with a smaller adapter, and merged.
lonas eval --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" \
    --subnet best --split "$split" --precision auto
lonas extract --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best \
    --output_dir "$OUTPUT_DIR/subnet"
lonas extract --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best --merge True \
    --output_dir "$OUTPUT_DIR/merged"

# 5. OpenVINO IR, checked against torch.
lonas export --model_dir "$OUTPUT_DIR/merged" --output_dir "$OUTPUT_DIR/ir" ${EXPORT:-}

# 6. What it is held against: an ordinary LoRA of the same rank on the same layers, trained as long at the same rate.
if [[ -n ${BASELINE:-} ]]; then
    lonas train --model_name_or_path "$MODEL" \
        --task_name math --max_seq_length 256 "${data[@]}" \
        --lora_r 32 --lora_alpha 64 --lora_dropout 0.1 \
        --target_modules q_proj,k_proj,v_proj,up_proj,gate_proj,down_proj \
        --num_train_epochs 7 --learning_rate 0.0003 --lr_scheduler_type cosine \
        --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --base_dtype bfloat16 --bf16 True ${TRAINING:-} \
        --output_dir "$OUTPUT_DIR/lora"
    lonas eval --supernet_dir "$OUTPUT_DIR/lora" --split "$split" --precision auto
fi
