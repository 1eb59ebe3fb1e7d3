# Set CUDA_HOME and LD_LIBRARY_PATH for NVIDIA's wheels (requirements-gpu.txt) in this shell.
# Usage: source scripts/gpu_env.sh
# train.py, eval.py and export.py do this by themselves with --device_target=GPU; a Python session of your own, or
# mindspore.run_check(), needs it.
_gpu_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)
_gpu_python=python
if [ -x "$_gpu_root/.venv/bin/python" ] && [ -z "${VIRTUAL_ENV:-}" ]; then
    _gpu_python="$_gpu_root/.venv/bin/python"
fi
if _gpu_lines=$("$_gpu_python" -m covpool check-device --print_env); then
    while IFS= read -r _gpu_line; do
        if [ -n "$_gpu_line" ]; then
            export "${_gpu_line?}"
            echo "$_gpu_line"
        fi
    done <<< "$_gpu_lines"
    unset _gpu_root _gpu_python _gpu_lines _gpu_line
    true
else
    unset _gpu_root _gpu_python _gpu_lines _gpu_line
    false
fi
