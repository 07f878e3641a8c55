#!/usr/bin/env bash
# Trains a nano checkpoint from nothing. Interrupted, it goes on where it stopped.
# usage: train_nano.sh [DIRECTORY for data, runs and the checkpoint]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$root/data/nano}
config=$root/config/training/nano.yaml
scene=$root/config/scenes/tabletop.yaml
embodiment=$work/untrained/embodiment.yaml
export OMP_NUM_THREADS=1

# The seeds of what is recorded; posed scenes begin at 100000, evaluations stay below that.
straight_seed=200000
wandering_seed=300000
episodes=48
tasks=(pick:red:blue place:red:blue push:red:left pick:blue:red place:blue:green push:blue:right
    pick:green:yellow place:green:red push:green:left pick:yellow:green place:yellow:blue push:yellow:right
    pick:red:green push:red:right pick:blue:yellow place:red:green)

finished() { [ -e "$work/$1.finished" ]; }
finish() { touch "$work/$1.finished"; }

# Pre-training, on posed scenes
mkdir -p "$work"
[ -e "$work/untrained/config.json" ] ||
    python -m molmoact_training.nano_checkpoint --config "$config" --out "$work/untrained"
pose() { # NAME [OPTIONS]
    python -m molmoact_training.posed_demonstrations --config "$config" --scene "$scene" \
        --checkpoint "$work/untrained" --vqvae "$work/depth_vqvae" --out "$work/$1" "${@:2}"
}
pose posed
finished vision || {
    python -m molmoact_training.pretrain_vision --config "$config" --data "$work/posed" \
        --checkpoint "$work/untrained" --out "$work/vision"
    finish vision
}
stage() { # PRESET DATA RUN MERGED FROM [OPTIONS of merge]
    [ -e "$work/$4" ] && return
    molmoact train "$root/config/training/$1.yaml" --data "$work/$2" --checkpoint "$work/$5" --out "$work/$3" --processes 2
    molmoact merge "$work/$3" "${@:6}" --out "$work/$4"
}
stage nano-pointing posed pointing pointed vision
stage nano-tracing posed tracing traced pointed
stage nano-acting posed acting acted traced
stage nano posed pretraining pretrained acted --depth-vqvae "$work/depth_vqvae"

# Mid-training, on more of what comes after an object is reached
pose handling --section handling
# One meaning of the bins for all of nano's data: that of the scenes it is pre-trained on.
statistics=$work/posed/dataset_statistics.json
pose steering --section steering # for post-training
for set in handling steering; do cp "$statistics" "$work/$set/"; done
stage nano-midtrain handling midtraining midtrained pretrained --depth-vqvae "$work/depth_vqvae"

# Demonstrations, recorded through teleoperation and the recorder
[ -e "$work/front.yaml" ] || python -m molmoact_training.simulator_calibration --scene "$scene" --out "$work/front.yaml"
record() { # NAME SEED none|all
    finished "$1" && return
    rm -rf "$work/episodes/$1" "$work/exported/$1" "$work/$1"
    molmoact record --depth --episodes "$episodes" --seed "$2" --wander "$3" --task "${tasks[@]}" --out "$work/episodes/$1"
    molmoact episodes export "$work/episodes/$1" --out "$work/exported/$1" --embodiment nano --embodiments "$embodiment" \
        --rate 10 --gripper command
    molmoact annotate "$work/exported/$1" --out "$work/$1" --depth camera --recordings "$work/episodes/$1" \
        --vqvae "$work/depth_vqvae" --trace projection --calibration "$work/front.yaml" --allow-constant
    cp "$statistics" "$work/$1/"
    rm -rf "$work/episodes/$1" # raw depth, 100 MB each
    finish "$1"
}
record straight "$straight_seed" none
record wandering "$wandering_seed" all

# Post-training
[ -e "$work/checkpoint" ] || {
    molmoact train "$root/config/training/nano-posttrain.yaml" --checkpoint "$work/midtrained" --out "$work/posttraining" \
        --data straight="$work/straight" --data wandering="$work/wandering" \
        --data handling="$work/handling" --data steering="$work/steering" --processes 2
    molmoact merge "$work/posttraining" --dtype bfloat16 --out "$work/checkpoint"
}
echo "trained: $work/checkpoint (try it: molmoact demo --checkpoint $work/checkpoint)"
