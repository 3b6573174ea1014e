#!/usr/bin/env bash
# EFTNAS-S2 on MNLI: from BERT-medium to a smaller model in OpenVINO, with the published settings.
#
#   bash running_commands/eftnas/s2_mnli.sh
#
# The same command again finds the stages that are finished and resumes one that was interrupted. Variables change it
# (relative paths begin at the project's root):
#
#   MODEL            the pre-trained student: hub id or directory
#   TEACHER          the fine-tuned teacher: hub id or directory
#   DATASET_DIR      local files, mnli/{train,validation_matched,validation_mismatched}.jsonl, instead of the hub
#   OUTPUT_DIR       where all stages write
#   NNCF_CONFIG      another config than the published one
#   SPACE=generated  a search space made from this run's own scores
#   FINETUNE=1       train the extracted subnet a little more, with the teacher
#   TRAINING         more flags of the training stages, for example TRAINING=--bf16 on a GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:$PWD/.venv/bin

MODEL=${MODEL:-google/bert_uncased_L-8_H-512_A-8}
TEACHER=${TEACHER:-JeremiahZ/bert-base-uncased-mnli}
OUTPUT_DIR=${OUTPUT_DIR:-runs/eftnas/s2_mnli}
NNCF_CONFIG=${NNCF_CONFIG:-nncf_configs/eftnas/s2_bert_medium/mnli.json}
data=(${DATASET_DIR:+--dataset_dir "$DATASET_DIR"})
training=(--per_device_train_batch_size 32 --per_device_eval_batch_size 128 ${TRAINING:-})

# 1. Scores of all weights by movement sparsity: the threshold rises from epoch 1 to 3, and training ends there.
eftnas importance --model_name_or_path "$MODEL" --nncf_config "$NNCF_CONFIG" \
    --task_name mnli --max_seq_length 128 "${data[@]}" \
    --learning_rate 2e-5 "${training[@]}" --output_dir "$OUTPUT_DIR/importance"

# 2. The search space.
case ${SPACE:-published} in
    published) space=$NNCF_CONFIG ;;
    generated)
        space=$OUTPUT_DIR/space.json
        eftnas search-space --model_name_or_path "$MODEL" --importance_weight_dir "$OUTPUT_DIR/importance" \
            --source_config "$NNCF_CONFIG" --lowest_macs_ratio 0.5 --target_config "$space"
        ;;
    *)
        echo "s2_mnli.sh: SPACE must be published or generated, not $SPACE" >&2
        exit 2
        ;;
esac

# 3. The supernet: important units first, then 6 epochs of the largest, a random and the smallest subnet a step.
eftnas train --model_name_or_path "$MODEL" --kd_teacher_model "$TEACHER" --nncf_config "$space" \
    --importance_weight_dir "$OUTPUT_DIR/importance" "${data[@]}" \
    "${training[@]}" --output_dir "$OUTPUT_DIR/supernet"

# 4. The subnets with the best trade-off between quality and MACs, on the validation set.
eftnas search --supernet_dir "$OUTPUT_DIR/supernet" --eval_batch_size 128 --output_dir "$OUTPUT_DIR/search"

# 5. The cheapest subnet within a point of the config's ref_acc, as a smaller Hugging Face model.
subnet=$OUTPUT_DIR/subnet
eftnas extract --supernet_dir "$OUTPUT_DIR/supernet" --search_dir "$OUTPUT_DIR/search" --subnet best \
    --output_dir "$subnet"

# 6. Optional: further training of that subnet alone.
if [[ ${FINETUNE:-0} == 1 ]]; then
    eftnas finetune --model_name_or_path "$subnet" --kd_teacher_model "$TEACHER" \
        --num_train_epochs 3 --learning_rate 2e-5 "${training[@]}" --output_dir "$OUTPUT_DIR/finetuned"
    subnet=$OUTPUT_DIR/finetuned
fi

# 7. OpenVINO IR, checked against torch, and its metrics.
eftnas export --model_dir "$subnet" --output_dir "$OUTPUT_DIR/ir"
eftnas evaluate --ir_dir "$OUTPUT_DIR/ir" --split validation # matched
found() { compgen -G "$DATASET_DIR/$1validation_mismatched.*" >/dev/null; }
if [[ -n ${DATASET_DIR:-} ]] && ! found mnli/ && ! found ""; then
    echo "warning: not evaluated on the mismatched rows: $DATASET_DIR holds no validation_mismatched.jsonl" >&2
else
    eftnas evaluate --ir_dir "$OUTPUT_DIR/ir" --split validation_mismatched
fi
