#!/usr/bin/env bash
# Train on N devices of this host under mpirun.
# Usage: scripts/run_distributed.sh N CONFIG DATA_PATH [--key=value ...]
set -euo pipefail
if [ $# -lt 3 ] || [ "$1" = "--help" ]; then
    sed -n '2,3s/^# //p' "$0"
    [ "${1:-}" = "--help" ] && exit 0 || exit 2
fi
ranks=$1 config=$2 data=$3
shift 3
if ! [[ $ranks =~ ^[1-9][0-9]{0,5}$ ]]; then
    echo "error: N = $ranks: must be a whole number from 1 on" >&2
    exit 2
fi
for command in mpirun python; do
    if ! type -P "$command" > /dev/null; then
        echo "error: $command is not on the PATH: activate the environment first (source .venv/bin/activate);" \
            "mpirun comes with pip install -r requirements.txt" >&2
        exit 1
    fi
done
options=(-n "$ranks")
[ "$(id -u)" = 0 ] && options+=(--allow-run-as-root)
[ "$(nproc)" -lt "$ranks" ] && options+=(--oversubscribe)
exec mpirun "${options[@]}" python "$(dirname "$0")/../train.py" --config_path="$config" --data_path="$data" \
    --run_distribute=True --device_num="$ranks" "$@"
