#!/usr/bin/env bash
# Evaluate a checkpoint on DATA_PATH/val.
# Usage: scripts/run_eval.sh CONFIG DATA_PATH CHECKPOINT [--key=value ...]
set -euo pipefail
if [ $# -lt 3 ] || [ "$1" = "--help" ]; then
    sed -n '2,3s/^# //p' "$0"
    [ "${1:-}" = "--help" ] && exit 0 || exit 2
fi
config=$1 data=$2 checkpoint=$3
shift 3
exec python "$(dirname "$0")/../eval.py" --config_path="$config" --data_path="$data" \
    --checkpoint_file_path="$checkpoint" "$@"
