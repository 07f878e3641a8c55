#!/usr/bin/env bash
# What depth, trace, more demonstrations and longer training are worth to nano: short pre-trainings that differ in one
# thing each, evaluated on the same scenes. Needs what train_nano.sh made. Interrupted, it goes on where it stopped.
# usage: ablate_nano.sh [DIRECTORY of train_nano.sh] [VARIANT...]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$root/data/nano}
variants=("${@:2}")
[ ${#variants[@]} -gt 0 ] || variants=(whole without_depth without_trace half longer)
export OMP_NUM_THREADS=1

# Without samples that are shown a trace: all variants are taught and asked for the whole reply only.
settings=('mixture=[{rate: 1.0, frames: [posed], kinds: {reasoning: 0.9, pointing: 0.1}}]' 'checkpoints.keep=1')
short=1000
long=2000

for variant in "${variants[@]}"; do
    directory=$work/ablation/$variant
    mkdir -p "$directory"
    data=$work/posed
    case $variant in
    without_* | half)
        data=$directory/posed
        [ -e "$data" ] || python "$root/benchmarks/nano_ablation_data.py" "$work/posed" --variant "$variant" --out "$data"
        ;;
    esac
    steps=$([ "$variant" = longer ] && echo $long || echo $short)
    [ -e "$directory/checkpoint" ] || {
        molmoact train "$root/config/training/nano.yaml" "steps=$steps" "${settings[@]}" --data posed="$data" \
            --checkpoint "$work/pointed" --out "$directory/run" --processes 2
        molmoact merge "$directory/run" --depth-vqvae "$work/depth_vqvae" --dtype bfloat16 --out "$directory/checkpoint"
    }
    [ -e "$directory/success.json" ] || {
        python "$root/benchmarks/nano_success.py" "$directory/checkpoint" --episodes 60 --seed 2000 \
            --json "$directory/success.new.json"
        mv "$directory/success.new.json" "$directory/success.json"
    }
    rm -rf "$directory/posed"
done
