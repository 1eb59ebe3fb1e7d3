#!/usr/bin/env bash
# Make the virtual environment .venv with pinned requirements; a second run finds it ready.
# Usage: scripts/setup.sh [requirements.txt]
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=${1:-requirements.txt}

if [ ! -x .venv/bin/python ]; then
    for python in python3.11 python3.12 python3.10 python3.9 python3; do
        if "$python" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' 2>/dev/null; then
            break
        fi
        python=
    done
    if [ -z "$python" ]; then
        echo "error: no Python 3.9, 3.10, 3.11 or 3.12 on the PATH; MindSpore needs one of them" >&2
        exit 1
    fi
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi

# The mark holds what was installed; the same requirements need no second look.
mark=.venv/installed-$(basename "$requirements")
wanted=$(cat requirements.txt "$requirements")
if [ ! -f "$mark" ] || [ "$(cat "$mark")" != "$wanted" ]; then
    echo "installing $requirements (a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
    printf '%s\n' "$wanted" > "$mark"
fi
