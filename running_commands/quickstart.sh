#!/usr/bin/env bash
# From a pre-trained BERT to smaller, faster OpenVINO models on a bare machine, without any download but packages.
#
#   bash running_commands/quickstart.sh            9 to 15 minutes on two idle cores with bfloat16 units (AVX-512 BF16,
#                                                  AMX), several times as long without, after installation
#   bash running_commands/quickstart.sh --short    trains on a third of the rows
#   bash running_commands/quickstart.sh --long     trains the supernet three times as long
#   bash running_commands/quickstart.sh --fresh    starts over instead of finding finished stages
#
# What comes out lies in runs/quickstart/: teacher/ importance/ space.json supernet/ search/ subnets/ ir/ report/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

flags=()
for argument in "$@"; do
    case $argument in
        --short | --long) flags+=(--variant "${argument#--}") ;;
        --fresh) flags+=(--fresh True) ;;
        *)
            echo "quickstart.sh: unknown argument $argument; it takes --short, --long and --fresh" >&2
            exit 2
            ;;
    esac
done

VENV=${VENV:-.venv}
bash install.sh --venv "$VENV"
export HF_HUB_OFFLINE=1 # everything needed is installed
exec "$VENV/bin/eftnas" run --config running_commands/quickstart.yaml "${flags[@]}"
