#!/usr/bin/env bash
# From nothing to predictions: set up, train ResNet-18 + DropCov on the images in data/, evaluate, export, predict.
# Usage: scripts/quickstart.sh [OUTPUT_FOLDER]   (default: outputs/quickstart)
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = "--help" ]; then
    sed -n '2,3s/^# //p' "$0"
    exit 0
fi
output=${1:-outputs/quickstart}
config=config/quickstart.yaml
data=data/fashion_mnist_sample

scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

printf '\n== train\n'
python train.py --config_path=$config --data_path=$data --output_path="$output"
printf '\n== evaluate\n'
python eval.py --config_path=$config --data_path=$data \
    --checkpoint_file_path="$output/checkpoints/best.ckpt" --result_path="$output/result.json"
printf '\n== export\n'
python export.py --config_path=$config --data_path=$data \
    --checkpoint_file_path="$output/checkpoints/best.ckpt" --file_name="$output/net"
printf '\n== predict from the exported file\n'
images=()
for class in bag coat sneaker trouser; do
    files=("$data/val/$class"/*)
    images+=("${files[0]}")
done
covpool predict --file "$output/net.mindir" --images "${images[@]}" --top 3

accuracy=$(python -c 'import json, sys; print(format(json.load(open(sys.argv[1]))["top_1_accuracy"], ".1%"))' \
    "$output/result.json")
cat <<END

Top-1 accuracy $accuracy on 500 images that were not trained on (chance: 10 %).
The run is in $output: curves.png, metrics.jsonl, checkpoints/, net.mindir.
Next: your own images, DIR/train/CLASS/* and DIR/val/CLASS/* (docs/tutorial.md):
    source .venv/bin/activate
    python train.py --config_path=config/own_images.yaml --data_path=DIR
END
