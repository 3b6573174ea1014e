#!/usr/bin/env bash
# LoNAS on QQP with BERT-base: a super-adapter, searched, and its best subnet as one smaller model in OpenVINO.
#
#   bash running_commands/lonas/bert_base_qqp.sh
#
# The same command again finds the stages that are finished and resumes one that was interrupted. Variables change it
# (relative paths begin at the project's root):
#
#   MODEL        the base model: hub id or directory
#   DATASET_DIR  local files instead of the hub
#   OUTPUT_DIR   where all stages write
#   NNCF_CONFIG  another config than the published one
#   TRAINING     more flags of the training, for example TRAINING="--bf16 --reorder wanda"
#   BASELINE     1 trains an ordinary LoRA as well, and evaluates it
#   EXPORT       flags of the export, for example EXPORT="--weight_format int8"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:$PWD/.venv/bin

MODEL=${MODEL:-bert-base-uncased}
OUTPUT_DIR=${OUTPUT_DIR:-runs/lonas/bert_base_qqp}
NNCF_CONFIG=${NNCF_CONFIG:-nncf_configs/lonas/bert_base/qqp.json}
data=(${DATASET_DIR:+--dataset_dir "$DATASET_DIR"})

# 1. The super-adapter: one random subnet a step, 60 epochs, the base model frozen.
lonas train --model_name_or_path "$MODEL" --nncf_config "$NNCF_CONFIG" \
    --task_name qqp --max_seq_length 128 "${data[@]}" \
    --lora_r 8 --lora_alpha 16 --lora_dropout 0.1 \
    --target_modules query,value \
    --per_device_train_batch_size 64 --weight_decay 0.1 --seed 0 ${TRAINING:-} \
    --output_dir "$OUTPUT_DIR/super"

# 2. The subnet of the middle choices, without any search.
lonas eval --supernet_dir "$OUTPUT_DIR/super" --subnet heuristic

# 3. The subnets with the best trade-off between quality and MACs, on the validation rows.
lonas search --supernet_dir "$OUTPUT_DIR/super" --output_dir "$OUTPUT_DIR/search"

# 4. The best one: what it reaches, as a smaller base model with a smaller adapter, and merged.
lonas eval --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best
lonas extract --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best \
    --output_dir "$OUTPUT_DIR/subnet"
lonas extract --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best --merge True \
    --output_dir "$OUTPUT_DIR/merged"

# 5. OpenVINO IR, checked against torch.
lonas export --model_dir "$OUTPUT_DIR/merged" --output_dir "$OUTPUT_DIR/ir" ${EXPORT:-}

# 6. What it is held against: an ordinary LoRA of the same rank on the same layers, trained as long at the same rate.
if [[ -n ${BASELINE:-} ]]; then
    lonas train --model_name_or_path "$MODEL" \
        --task_name qqp --max_seq_length 128 "${data[@]}" \
        --lora_r 8 --lora_alpha 16 --lora_dropout 0.1 \
        --target_modules query,value \
        --num_train_epochs 60 --learning_rate 0.0003 --lr_scheduler_type cosine \
        --per_device_train_batch_size 64 --weight_decay 0.1 --seed 0 ${TRAINING:-} \
        --output_dir "$OUTPUT_DIR/lora"
    lonas eval --supernet_dir "$OUTPUT_DIR/lora"
fi
