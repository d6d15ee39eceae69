#!/usr/bin/env bash
# Trains the packaged models from nothing: simulates the fields, then calls `cmseg train` for each model.
#
#     benchmarks/train_starters.sh FOLDER
#
# FOLDER receives the fields and the models. The trainings end by the clock, as the packaged ones did: the U-Net in eight
# parts of 41, 75, 9, 8, 60, 17, 42 and 36 minutes, of which the last four took two cores and the others one, SAM in five
# parts of 60, 75, 90, 7 and 55 minutes on one core, the fourth on a GPU. No seed here is used by `cmseg demo` or by the tests.
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
# Few cells each, of many looks: for the U-Net.
looks() { # looks NAME FIRST COUNT
  for i in $(seq 0 $(($3 - 1))); do
    out=$folder/$1/field-$(($2 + i))
    hard=$([ $((i % 3)) -eq 2 ] && echo --hard || true)
    # shellcheck disable=SC2086
    [ -d "$out" ] || cmseg phantom "$out" --seed $(($2 + i)) --cells 5 --voxel-size ${voxels[i % 4]} $hard ${defects[(i / 2) % 6]}
  done
}
looks looks 10000 480
looks more 12000 320
looks most 13000 400
mkdir -p "$folder/both" "$folder/many" "$folder/check"
for i in $(seq 0 23); do ln -sfn "$(realpath "$folder/looks/field-$((10000 + i))")" "$folder/check/field-$((10000 + i))"; done
for field in "$folder"/native/* "$folder"/looks/*; do ln -sfn "$(realpath "$field")" "$folder/many/$(basename "$field")"; done
for field in "$folder"/native/* "$folder"/coarse/*; do ln -sfn "$(realpath "$field")" "$folder/both/$(basename "$field")"; done

export CMSEG_THREADS=1
unet() { # unet SETTINGS FIELDS MINUTES NAME [INITIAL [VALIDATION]]
  echo "{section_size: 96, $1}" >"$folder/unet.yaml"
  cmseg train "$folder/$2" --config "$folder/unet.yaml" --max-minutes "$3" --out "$folder/$4.keras" \
    ${5:+--initial "$folder/$5.keras"} ${6:+--validation "$folder/$6"}
}
export CMSEG_PREPROCESS__BILATERAL_SPATIAL_SIGMA=1.5 # the default of that time; the last part learns to do without
unet "optimizer: adamw, seed: 0" native 41 unet-1
unet "optimizer: adamw, learning_rate: 1.5e-3, seed: 7" native 75 unet-2 unet-1
unet "channels: 5, learning_rate: 1.5e-3" native 9 unet-3 unet-2
unet "learning_rate: 1.5e-3" many 8 unet-4 unet-3
export CMSEG_THREADS=2
unet "batch_size: 16" many 60 unet-5 unet-4
unset CMSEG_PREPROCESS__BILATERAL_SPATIAL_SIGMA
unet "batch_size: 16, learning_rate: 1.2e-3, augmentation: {inversion: 0.5}" many 17 unet-6 unet-5
unet "batch_size: 16, learning_rate: 1.5e-3, augmentation: {inversion: 0.5}, seed: 11" more 42 unet-7 unet-6 check
export CMSEG_MAX_MEMORY_GB=14 # 2,000 cells at once
unet "batch_size: 16, learning_rate: 1.5e-3, augmentation: {inversion: 0.5}, seed: 12" most 36 unet-starter unet-7 check
export CMSEG_THREADS=1
echo '{steps: 100000, seed: 3}' >"$folder/sam.yaml"
cmseg train "$folder/both" --model sam --config "$folder/sam.yaml" --max-minutes 60 --out "$folder/sam-1.pt"
# Larger crowds, and the head; the first part knew neither.
crowd() { # crowd SET SEED CELLS VOXELS [OPTIONS]
  # shellcheck disable=SC2086
  [ -d "$folder/$1/field-$2" ] || cmseg phantom "$folder/$1/field-$2" --seed "$2" --cells "$3" --voxel-size $4 ${5:-}
}
crowded=("30 20 20" "25 25 25" "40 24 24" "60 24 24")
for i in $(seq 0 71); do
  crowd crowd $((6000 + i)) $((12 + 28 * (i % 8) / 7)) "36 36 36" "$([ $((i % 5)) -lt 3 ] && echo --hard || true) ${defects[(i / 2) % 6]}"
done
for i in $(seq 0 31); do
  crowd crowd $((6100 + i)) $((12 + 28 * (i % 8) / 7)) "${crowded[i % 4]}" "$([ $((i % 2)) -eq 1 ] && echo --hard || true) ${defects[(i / 2) % 6]}"
done
for i in 0 1 2 3; do crowd crowdcheck $((6300 + i)) $((16 + 8 * i)) "36 36 36" "$([ $((i % 2)) -eq 1 ] && echo --hard || true)"; done
echo '{steps: 100000, seed: 4, dense_share: 0.6, scale: [0.65, 1.6]}' >"$folder/sam.yaml"
cmseg train "$folder/crowd" --validation "$folder/crowdcheck" --model sam --initial "$folder/sam-1.pt" \
  --config "$folder/sam.yaml" --max-minutes 75 --out "$folder/sam-2.pt"
# Many cells in division, in the same folder.
python -m benchmarks.crowded "$folder/more" --sets dividing
cp -r "$folder/more/dividing/." "$folder/crowd/"
echo '{steps: 100000, seed: 5, dense_share: 0.75, scale: [0.65, 1.6]}' >"$folder/sam.yaml"
cmseg train "$folder/crowd" --validation "$folder/crowdcheck" --model sam --initial "$folder/sam-2.pt" \
  --config "$folder/sam.yaml" --max-minutes 90 --out "$folder/sam-3.pt"
# More looks, voxels, sizes of cells and stages, turned by any angle; on a GPU (an H100, 3,083 steps).
drawn() { python -m benchmarks.accelerator fields "$folder/$1" --kind cells --first "$2" --count "$3"; }
learn() { # learn FIELDS INITIAL NAME MINUTES SETTINGS
  python -m benchmarks.accelerator sam "$folder/$1" "$folder/drawncheck" "$folder/$3.pt" --initial "$folder/$2.pt" \
    --minutes "$4" --config "{\"scale\": [0.65, 1.6], \"steps_per_epoch\": 250, $5}"
}
drawn drawncheck 31000 8
drawn drawn 30000 480
learn drawn sam-3 sam-4 6.8 '"images_per_step": 8, "seed": 6, "dense_share": 0.5'
# What answers prompts alone, the rest as it is; on one core.
drawn fewer 30000 160
learn fewer sam-4 sam-starter 55 '"images_per_step": 4, "seed": 8, "freeze_encoder": true, "learning_rate": 1.2e-3'
# True labels alone, for the classifier of the stage.
for i in $(seq 0 29); do
  out=$folder/stage/field-$((20000 + i))
  hard=$([ $((i % 3)) -eq 2 ] && echo --hard || true)
  # shellcheck disable=SC2086
  [ -d "$out" ] || cmseg phantom "$out" --seed $((20000 + i)) --cells 14 --voxel-size ${voxels[i % 4]} $hard ${defects[(i / 2) % 6]}
done
cmseg train "$folder/stage" --model stage --out "$folder/stage-starter.json"
