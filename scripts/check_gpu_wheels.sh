#!/usr/bin/env bash
# Prove, with or without an NVIDIA GPU, that requirements-gpu.txt is all that MindSpore's GPU back end needs.
# Makes a throw-away environment, installs requirements-gpu.txt into it (some 3 GB to download, 6 GB on disk) and checks:
#   1. every library that the back end needs is found, except the driver's libcuda.so.1;
#   2. MindSpore chooses the CUDA 11.6 plug-in, and nothing but the missing driver stops it;
#   3. with a stand-in for the driver (made with gcc; it knows no card) the plug-in loads and asks for a card.
# Usage: scripts/check_gpu_wheels.sh [ENVIRONMENT]   (an environment that has the wheels already: nothing is installed)
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ $# -ge 1 ]; then
    python=$(realpath -s "$1")/bin/python
else
    source=python3
    if [ -x .venv/bin/python ]; then
        source=.venv/bin/python
    fi
    "$source" -m venv "$work/env"
    python=$work/env/bin/python
    echo "installing requirements-gpu.txt into $work/env"
    "$python" -m pip install --quiet --disable-pip-version-check --requirement requirements-gpu.txt
fi

export PYTHONPATH=$root GLOG_v=1
unset CUDA_HOME LD_LIBRARY_PATH
cd "$work"

echo "1. libraries"
"$python" - <<'END'
import os
import sys
from pathlib import Path

from covpool.runtime import cuda

wheels = cuda.find_wheels()
if wheels.missing:
    sys.exit(f"error: missing {wheels.missing}")
for name, version in wheels.versions.items():
    print(f"   {name} {version}")
folder = Path(cuda.activation_variables(wheels)["CUDA_HOME"]) / "lib64"
absent = set()
for library in (cuda.GPU_PLUGIN, "lib/plugin/gpu/libcuda_ops.so.11", "lib/plugin/gpu11.6/libnvidia_collective.so"):
    found = cuda.linked_libraries(cuda.mindspore_folder() / library, [folder])
    absent |= {name for name, path in found.items() if path is None}
    print(f"   {library}: {len(found)} libraries, not found: {sorted(n for n, p in found.items() if p is None)}")
    for name, path in found.items():
        if name in cuda.LIBRARIES and Path(path).parent != folder:
            sys.exit(f"error: {name} comes from {path}, not from the wheels")
if absent - {cuda.DRIVER}:
    sys.exit(f"error: not found: {sorted(absent - {cuda.DRIVER})}")
for path in wheels.files.values():  # also what a library only opens once it runs
    lost = [name for name, where in cuda.linked_libraries(path, [folder]).items() if where is None]
    if set(lost) - {cuda.DRIVER}:
        sys.exit(f"error: {path} needs {lost}")
END

cat > choose.py <<'END'
import sys

from covpool.errors import UserError
from covpool.runtime import cuda

cuda.DRIVER = sys.argv[1]
try:
    cuda.activate_gpu()
except UserError as error:
    sys.exit(f"error: {error}")
import mindspore as ms

try:
    ms.set_device("GPU", 0)
    print(ms.ops.add(ms.Tensor([1.0]), 1.0))
except RuntimeError as error:
    print(error)
END

expect() { # expect PATTERN FILE
    if ! grep -m 1 -E "$1" "$2"; then
        cat "$2"
        echo "error: MindSpore did not say: $1" >&2
        exit 1
    fi
}

if "$python" -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2> /dev/null; then
    echo "2. and 3. with this machine's driver"
    GLOG_v=3 "$python" -m covpool check-device --device_target=GPU --libraries
else
    echo "2. no driver"
    "$python" choose.py libc.so.6 > no_driver.log 2>&1 # any library passes for the driver in the project's own check
    expect 'Get cuda version \[11\.[0-9]+\] from env CUDA_HOME' no_driver.log
    expect '^Load dynamic library: libmindspore_gpu.so.11.6 failed. libcuda.so.1: cannot open shared object' no_driver.log

    echo "3. a stand-in for the driver"
    functions=$(nm -D --undefined-only "$("$python" -c '
from covpool.runtime import cuda
print(cuda.mindspore_folder() / cuda.GPU_PLUGIN)')" | awk '$2 ~ /^cu[A-Z]/ { print $2 }' | sort -u | grep -vE '^cu(blas|dnn|rand|fft|sparse|solver)|^cuda' || true)
    for name in cuInit $functions; do
        echo "int $name(void) { return 100; }" # CUDA_ERROR_NO_DEVICE
    done > driver.c
    echo 'int cuDriverGetVersion(int *version) { *version = 11080; return 0; }' >> driver.c
    gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 driver.c
    "$python" choose.py "$work/libcuda.so.1" > stand_in.log 2>&1
    expect 'ms set context device target:GPU' stand_in.log
    expect 'no CUDA-capable device is detected' stand_in.log
fi
echo "passed"
