#!/usr/bin/env bash
# Train on one device.
# Usage: scripts/run_standalone.sh CONFIG DATA_PATH [--key=value ...]
set -euo pipefail
if [ $# -lt 2 ] || [ "$1" = "--help" ]; then
    sed -n '2,3s/^# //p' "$0"
    [ "${1:-}" = "--help" ] && exit 0 || exit 2
fi
config=$1 data=$2
shift 2
exec python "$(dirname "$0")/../train.py" --config_path="$config" --data_path="$data" "$@"
