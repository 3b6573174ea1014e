#!/usr/bin/env bash
# LoNAS on commonsense with Llama-3.2-1B: a super-adapter, searched, and its best subnet as one smaller model in OpenVINO.
#
#   bash running_commands/lonas/llama_3.2_1b_commonsense.sh
#
# The same command again finds the stages that are finished and resumes one that was interrupted. Variables change it
# (relative paths begin at the project's root):
#
#   MODEL        the base model: hub id or directory
#   DATASET_DIR  local files instead of the hub
#   OUTPUT_DIR   where all stages write
#   NNCF_CONFIG  another config than the published one
#   TRAINING     more flags of the training, for example TRAINING="--base_dtype float16 --bf16 False --fp16 True"
#   EXPORT       flags of the export, for example EXPORT="--weight_format int8"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:$PWD/.venv/bin

MODEL=${MODEL:-meta-llama/Llama-3.2-1B}
OUTPUT_DIR=${OUTPUT_DIR:-runs/lonas/llama_3.2_1b_commonsense}
NNCF_CONFIG=${NNCF_CONFIG:-nncf_configs/lonas/llama_3.2_1b/commonsense.json}
data=(${DATASET_DIR:+--dataset_dir "$DATASET_DIR"})

# 1. The super-adapter: one random subnet a step, 3 epochs, the base model frozen.
lonas train --model_name_or_path "$MODEL" --nncf_config "$NNCF_CONFIG" \
    --task_name commonsense --max_seq_length 256 "${data[@]}" \
    --lora_r 32 --lora_alpha 64 --lora_dropout 0.1 \
    --target_modules q_proj,k_proj,v_proj,up_proj,gate_proj,down_proj \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --base_dtype bfloat16 --bf16 True ${TRAINING:-} \
    --output_dir "$OUTPUT_DIR/super"

# 2. The subnet of the middle choices, without any search.
lonas eval --supernet_dir "$OUTPUT_DIR/super" --subnet heuristic --precision auto

# 3. The subnets with the best trade-off between quality and MACs.
lonas search --supernet_dir "$OUTPUT_DIR/super" --output_dir "$OUTPUT_DIR/search"

# 4. The best one, as a smaller base model with a smaller adapter, and merged.
lonas extract --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best \
    --output_dir "$OUTPUT_DIR/subnet"
lonas extract --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best --merge True \
    --output_dir "$OUTPUT_DIR/merged"

# 5. OpenVINO IR, checked against torch.
lonas export --model_dir "$OUTPUT_DIR/merged" --output_dir "$OUTPUT_DIR/ir" ${EXPORT:-}
