#!/usr/bin/env bash
# LoNAS on MRPC with BERT-base: a super-adapter, searched, and its best subnet as one smaller model in OpenVINO.
#
#   bash running_commands/lonas/bert_base_mrpc.sh
#
# The same command again finds the stages that are finished and resumes one that was interrupted. Variables change it
# (relative paths begin at the project's root):
#
#   MODEL        the base model: hub id or directory
#   DATASET_DIR  local files instead of the hub
#   OUTPUT_DIR   where all stages write
#   NNCF_CONFIG  another config than the published one
#   TRAINING     more flags of the training, for example TRAINING="--bf16 --reorder wanda"
#   EXPORT       flags of the export, for example EXPORT="--weight_format int8"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:$PWD/.venv/bin

MODEL=${MODEL:-bert-base-uncased}
OUTPUT_DIR=${OUTPUT_DIR:-runs/lonas/bert_base_mrpc}
NNCF_CONFIG=${NNCF_CONFIG:-nncf_configs/lonas/bert_base/mrpc.json}
data=(${DATASET_DIR:+--dataset_dir "$DATASET_DIR"})

# 1. The super-adapter: one random subnet a step, 35 epochs, the base model frozen.
lonas train --model_name_or_path "$MODEL" --nncf_config "$NNCF_CONFIG" \
    --task_name mrpc --max_seq_length 128 --metric accuracy "${data[@]}" \
    --lora_r 8 --lora_alpha 16 --lora_dropout 0.1 \
    --target_modules query,value \
    --per_device_train_batch_size 32 --weight_decay 0.1 --seed 0 ${TRAINING:-} \
    --output_dir "$OUTPUT_DIR/super"

# 2. The subnet of the middle choices, without any search.
lonas eval --supernet_dir "$OUTPUT_DIR/super" --subnet heuristic

# 3. The subnets with the best trade-off between quality and MACs.
lonas search --supernet_dir "$OUTPUT_DIR/super" --output_dir "$OUTPUT_DIR/search"

# 4. The best one, as a smaller base model with a smaller adapter, and merged.
lonas extract --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best \
    --output_dir "$OUTPUT_DIR/subnet"
lonas extract --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best --merge True \
    --output_dir "$OUTPUT_DIR/merged"

# 5. OpenVINO IR, checked against torch.
lonas export --model_dir "$OUTPUT_DIR/merged" --output_dir "$OUTPUT_DIR/ir" ${EXPORT:-}
