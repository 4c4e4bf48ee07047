#!/usr/bin/env bash
# Show on a bare machine with one NVIDIA GPU that the CUDA paths work, in under 8 minutes:
#
#     tools/gpu_smoke.sh OUT            (PARTS: the folder of gpu_smoke_prepare.sh)
#     tools/gpu_smoke.sh --dry-run OUT  (no GPU: the current environment, two iterations on the CPU)
#
# The machine has Python 3.12, torch 2.11 and CUDA 13 with nvcc, and needs no network. The script
# unpacks PARTS (default ./gpu_smoke_parts) into a scratch folder, builds mmcv's deformable
# attention for the GPU, runs the tests marked cuda and trains 100 iterations with AMP.
# OUT receives gpu_smoke.log and the training's work folder. PYTHON names the interpreter.
set -euo pipefail

dry_run=false
if [ "${1:-}" = --dry-run ]; then
  dry_run=true
  shift
fi
if [ $# -ne 1 ]; then
  echo "usage: $0 [--dry-run] OUT" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
parts=${PARTS:-$PWD/gpu_smoke_parts}
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$root"
exec > >(tee "$out/gpu_smoke.log") 2>&1 </dev/null

step() {
  echo "=== [$SECONDS s] $*"
}
fail() {
  echo "gpu_smoke: FAILED: $*"
  exit 1
}

describe_machine() {
  step 'the machine'
  "$python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
  nvcc --version | tail -n 2 || true
}

install_parts() {
  step "installing from $parts"
  [ -f "$parts/site.tar.xz" ] || fail "no $parts/site.tar.xz: see tools/gpu_smoke_prepare.sh"
  tar -C "$site" -xJf "$parts/site.tar.xz"
  step "building mmcv's deformable attention"
  timeout 180 "$python" tools/gpu_smoke_build.py "$parts"/onedl_mmcv-*.tar.gz "$site"
}

run_tests() {
  step 'the tests marked cuda'
  # Only the files that have such tests: the others may need packages this machine lacks. Other
  # releases of torch warn of other things, which is no failure here.
  local files
  files=$(grep -rl 'mark\.cuda' tests --include='test_*.py')
  # shellcheck disable=SC2086
  timeout 120 "$python" -m pytest -m cuda -W default -p no:cacheprovider $files
}

train() {
  step "training $1 iterations with AMP"
  local iterations=$1
  shift
  timeout 150 "$python" tools/train.py configs/demo/mask2former_r18_facade.py --amp \
    --work-dir "$out/train" \
    --cfg-options "train_cfg.max_iters=$iterations" "train_cfg.val_interval=$iterations" \
    "default_hooks.logger.interval=$((iterations < 10 ? 1 : 10))" "$@"
  local last="Iter(train) \[ *$iterations/$iterations\]"
  grep -hq "$last" "$out"/train/*/*.log || fail "no line of iteration $iterations in the log"
  if grep -h 'Iter(train)' "$out"/train/*/*.log | grep -q ' loss: nan'; then
    fail 'a loss is not a number'
  fi
}

if $dry_run; then
  export CUDA_VISIBLE_DEVICES=''
  describe_machine
  run_tests
  train 2 train_dataloader.batch_size=1 val_dataloader.dataset.indices=1
else
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  export PYTHONPATH=$site:$root${PYTHONPATH:+:$PYTHONPATH}
  "$python" -c 'import torch; assert torch.cuda.is_available()' || fail 'torch sees no GPU here'
  describe_machine
  install_parts
  run_tests
  train 100
fi
echo "gpu_smoke: OK after $SECONDS s"
