#!/usr/bin/env bash
# The whole pipeline in order. What each line makes is what the next one reads.
#
#   ./run-all.sh [--quick | --full] [OUT]     OUT: folder for everything that is made (default: out/)
#
# Default: a fifth of the recipe's training steps, 18 minutes on 2 cores (docs/log.md). --quick: a few steps
# of everything, which proves the pipeline and teaches the model nothing. --full: all steps of the recipe (hours).
# Real ship chips: set FUSAR_EDGE_DATA to a folder that holds `ssdd/`; without it, simulated scenes stand in for them.
set -euo pipefail

scale=0.2 scenes=400 images=60 data=${FUSAR_EDGE_DATA:-}
waive=(--waive "run-all.sh: so short a training shows the pipeline, and may fail the gate by a few answers")
case "${1:-}" in
    --quick) scale=0.004 scenes=96 images=8; shift ;;
    --full) scale=1 scenes=1200 images=100000 waive=(); shift ;;
esac
out=${1:-out}
fresh="--force"

fusar-edge simulate --out "$out/sim" --scenes $scenes --seed 7 $fresh
fusar-edge simulate --out "$out/sim-val" --scenes 32 --seed 8 $fresh
if [ -d "$data/ssdd" ]; then
    fusar-edge data convert ssdd "$data/ssdd" --out "$out/ssdd" $fresh
    real="$out/ssdd/train.jsonl" held_out="$out/ssdd/val.jsonl"
else
    echo "no FUSAR_EDGE_DATA: simulated scenes only" >&2
    real="$out/sim/triplets.jsonl" held_out="$out/sim-val/triplets.jsonl"
fi

fusar-edge train fusar-tiny --stage base --scale $scale --data "$real@4" --data "$out/sim/triplets.jsonl@3" --out "$out/base" $fresh
fusar-edge train fusar-tiny --stage 1 --scale $scale --init "$out/base" --data "$out/sim/triplets.jsonl" --out "$out/stage1" $fresh
fusar-edge train fusar-tiny --stage 2 --scale $scale --init "$out/stage1" --data "$real" --data "$out/sim/triplets.jsonl" --out "$out/stage2" $fresh

# Calibration tiles are of what it was trained on; the gate asks about tiles that it never saw.
tiles=(--data "$real" --data "$out/sim/triplets.jsonl")
fusar-edge export fusar-tiny --checkpoint "$out/stage2" --smooth w8a8-smoothquant "${tiles[@]}" --out "$out/onnx" $fresh
fusar-edge calibrate w8a8-smoothquant --onnx "$out/onnx" "${tiles[@]}" --out "$out/int8" $fresh
fusar-edge build cpu --onnx "$out/int8" --reference "$out/onnx" --data "$held_out" --images $images \
    ${waive[@]+"${waive[@]}"} --out "$out/bundle" $fresh
fusar-edge eval "$out/bundle" --data "$held_out" --images $images --json "$out/int8.json" $fresh

scene=$(ls "$out"/sim-val/scenes/*.tif | head -n 1)
fusar-edge interpret "$out/bundle" "$scene" --task caption --task count --task grid --task detect --out "$out/scene.geojson" --overlay "$out/scene.png" $fresh
