#!/usr/bin/env bash
# Set up and run everything that must pass: lint, format, types, tests.
# Usage: scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh requirements-dev.txt
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
mypy
python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder "$@"  # more than this has cores for: some of the time is waiting for ranks
