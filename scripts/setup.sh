#!/usr/bin/env bash
# Make the virtual environment .venv with the versions of requirements.lock; a second run finds it ready.
# Usage: scripts/setup.sh [requirements.txt]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = "--help" ]; then
    sed -n '2,3s/^# //p' "$0"
    exit 0
fi
requirements=${1:-requirements.txt}
if [ ! -f "$requirements" ]; then
    echo "error: $requirements: no such file (requirements.txt, requirements-dev.txt and requirements-gpu.txt are there)" >&2
    exit 2
fi

# An interrupted set-up, or a Python that was removed since, leaves an environment that cannot install anything.
if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
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
    "$python" -m venv --clear .venv
fi

# The mark holds what was installed, and where: the same needs no second look.
mark=.venv/installed-$(basename "$requirements")
wanted=$(pwd && cat pyproject.toml requirements.lock requirements.txt "$requirements")
if [ ! -f "$mark" ] || [ "$(cat "$mark")" != "$wanted" ]; then
    echo "installing $requirements (a few minutes the first time)"
    install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
    "${install[@]}" --constraint requirements.lock --requirement "$requirements"
    "${install[@]}" --no-deps --editable .
    printf '%s\n' "$wanted" > "$mark"
fi
