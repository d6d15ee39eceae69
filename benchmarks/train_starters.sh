#!/usr/bin/env bash
# Trains the two packaged models from nothing: simulates the fields, then calls `cmseg train` for each model.
#
#     benchmarks/train_starters.sh FOLDER
#
# FOLDER receives the fields and the models. The trainings end by the clock, as the packaged ones did: the U-Net after 41
# and 75 minutes, SAM after 60, each on one core. No seed here is used by `cmseg demo` or by the tests.
set -euo pipefail
folder=$1
voxels=("30 20 20" "20 20 20" "25 16 16" "40 24 24")
defects=("" "" "--defect noise" "--defect curtaining" "--defect drift" "--defect charging")

# At the resolution of an acquisition: for both models.
for i in $(seq 0 35); do
  out=$folder/native/field-$((1000 + i))
  hard=$([ $((i % 3)) -eq 2 ] && echo --hard || true)
  # shellcheck disable=SC2086
  [ -d "$out" ] || cmseg phantom "$out" --seed $((1000 + i)) --cells 14 --voxel-size ${voxels[i % 4]} $hard ${defects[(i / 2) % 6]}
done
# At the resolution on which cells are found: more fields, more looks.
for i in $(seq 0 159); do
  out=$folder/coarse/field-$((5000 + i))
  hard=$([ $((i % 5)) -lt 3 ] && echo --hard || true)
  # shellcheck disable=SC2086
  [ -d "$out" ] || cmseg phantom "$out" --seed $((5000 + i)) --cells 16 --voxel-size 36 36 36 $hard ${defects[(i / 2) % 6]}
done
mkdir -p "$folder/both"
for field in "$folder"/native/* "$folder"/coarse/*; do ln -sfn "$(realpath "$field")" "$folder/both/$(basename "$field")"; done

export CMSEG_THREADS=1
echo '{section_size: 96, epochs: 100000, seed: 0}' >"$folder/unet.yaml"
cmseg train "$folder/native" --config "$folder/unet.yaml" --max-minutes 41 --out "$folder/unet-first.keras"
echo '{section_size: 96, epochs: 100000, learning_rate: 1.5e-3, seed: 7}' >"$folder/unet.yaml"
cmseg train "$folder/native" --config "$folder/unet.yaml" --max-minutes 75 --initial "$folder/unet-first.keras" \
  --out "$folder/unet-starter.keras"
echo '{steps: 100000, seed: 3}' >"$folder/sam.yaml"
cmseg train "$folder/both" --model sam --config "$folder/sam.yaml" --max-minutes 60 --out "$folder/sam-starter.pt"
