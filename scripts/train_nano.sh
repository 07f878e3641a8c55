#!/usr/bin/env bash
# Reproduces the embedded checkpoint from config/training/nano.yaml. Interrupted, it goes on where it stopped.
# usage: train_nano.sh [DIRECTORY for samples, logs and the checkpoint]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$root/data/nano}
config=$root/config/training/nano.yaml
export OMP_NUM_THREADS=1

mkdir -p "$work"
[ -e "$work/untrained/config.json" ] ||
    python -m molmoact_training.nano_checkpoint create --config "$config" --out "$work/untrained"
python -m molmoact_training.demonstrations --config "$config" --scene "$root/config/scenes/tabletop.yaml" \
    --checkpoint "$work/untrained" --out "$work/samples"
[ -e "$work/samples/depth_codes.npy" ] ||
    python -m molmoact_training.depth_vqvae --config "$config" --samples "$work/samples" --out "$work/depth_vqvae"
[ -e "$work/vision/trained" ] || {
    python -m molmoact_training.pretrain_vision --config "$config" --samples "$work/samples" \
        --checkpoint "$work/untrained" --out "$work/vision"
    cp "$work"/untrained/{tokenizer.json,tokenizer_config.json,preprocessor_config.json,embodiment.yaml} "$work/vision/"
    touch "$work/vision/trained"
}
python -m molmoact_training.train --config "$config" --samples "$work/samples" --checkpoint "$work/vision" \
    --out "$work/run"
finish=(python -m molmoact_training.nano_checkpoint finish --untrained "$work/untrained" --run "$work/run"
    --vqvae "$work/depth_vqvae")
"${finish[@]}" --out "$work/checkpoint"
"${finish[@]}" --out "$work/checkpoint_untrained" --initial-weights
echo "trained: $work/checkpoint (try it: molmoact demo --checkpoint $work/checkpoint)"
