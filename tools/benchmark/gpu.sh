#!/usr/bin/env bash
# Check and time the CUDA paths on a bare machine with one NVIDIA GPU, in under 9 minutes:
#
#     tools/benchmark/gpu.sh [--only SECTION,...] OUT            (PARTS: of gpu_prepare.sh)
#     tools/benchmark/gpu.sh --dry-run [--only SECTION,...] OUT  (no GPU: tiny sizes on the CPU)
#
# The machine has Python 3.12, torch 2.11, Triton, NumPy, SciPy and CUDA with nvcc, and needs no
# network. PARTS (default ./work_dirs/gpu_parts) is unpacked into a scratch folder, where mmcv's
# deformable attention is compiled. The sections:
#
#     check      the tests of the operators marked cuda
#     ops        deformable attention: ours, mmcv's
#     models     training steps and inference beside mmseg and mmdet
#     waterfall  ViT-L at 640 x 640, from the stock head to ours
#
# Each has a time budget, which what the sections before it left adds to. One that fails or runs out
# of time is reported, the others still run, and the exit status is 1. OUT receives gpu.log, the
# compilers' logs and a CSV of each measuring section. PYTHON names the interpreter; COMMIT names the
# state of the code where its history is not at hand.
set -uo pipefail

usage() {
  echo "usage: $0 [--dry-run] [--only SECTION,...] OUT" >&2
  exit 2
}
dry_run=false
only=check,ops,models,waterfall
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=true ;;
    --only)
      [ $# -gt 1 ] || usage
      only=$2
      shift
      ;;
    -*) usage ;;
    *) break ;;
  esac
  shift
done
[ $# -eq 1 ] || usage
for name in ${only//,/ }; do
  case $name in
    check | ops | models | waterfall) ;;
    *) usage ;;
  esac
done
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
parts=${PARTS:-$PWD/work_dirs/gpu_parts}
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$root" || exit 2
exec > >(tee "$out/gpu.log") 2>&1 </dev/null
export PYTHONUNBUFFERED=1
failed=()
deadline=0
options=()

# section NAME BUDGET COMMAND...: the command within what is left of its time, unless not asked for.
section() {
  local name=$1 budget=$2 status=0
  shift 2
  [[ ,$only,build, == *,$name,* ]] || return 0
  deadline=$((deadline + budget))
  echo "=== [$SECONDS s] $name, until $deadline s"
  timeout --kill-after=5 $((deadline - SECONDS)) "$@" || status=$?
  [ "$status" -eq 0 ] && return 0
  [ "$status" -eq 124 ] || [ "$status" -eq 137 ] && echo "gpu: $name ran out of time"
  echo "gpu: FAILED: $name (status $status)"
  failed+=("$name")
}

describe_machine() {
  "$python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
  "$python" -c 'import triton; print("Triton", triton.__version__)' || true
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
  nvcc --version | tail -n 2 || true
}

# Both compilers at once: they are what a bare machine waits for.
build() {
  set -e
  tar -C "$site" -xJf "$parts/site.tar.xz"
  tar -C "$site" -xJf "$parts/peers.tar.xz"
  local status=0
  "$python" tools/gpu_smoke_build.py "$parts"/onedl_mmcv-*.tar.gz "$site" \
    >"$out/build-mmcv.log" 2>&1 || status=$?
  tail -n $((status == 0 ? 3 : 40)) "$out/build-mmcv.log"
  return "$status"
}

if $dry_run; then
  export CUDA_VISIBLE_DEVICES=''
  options+=(--dry-run)
  describe_machine
else
  "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
    echo 'gpu: FAILED: torch sees no GPU here'
    exit 1
  }
  for file in site.tar.xz peers.tar.xz; do
    [ -f "$parts/$file" ] || {
      echo "gpu: FAILED: no $parts/$file: see tools/benchmark/gpu_prepare.sh"
      exit 1
    }
  done
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  export PYTHONPATH=$site:$root${PYTHONPATH:+:$PYTHONPATH}
  export TORCH_EXTENSIONS_DIR=$site/extensions DEFORMOPS_COMPILE=1 DEFORMOPS_DOWNLOAD=0
  export TORCHINDUCTOR_CACHE_DIR=$site/inductor TRITON_CACHE_DIR=$site/triton
  describe_machine
  export -f build
  export site parts out only python
  section build 100 bash -c build
fi

# Only the files that have such tests. Other releases of torch warn of other things, which is no
# failure here; the tests that start a process of their own pass this on.
export PYTEST_ADDOPTS='-W default -p no:cacheprovider'
mapfile -t tests < <(grep -rl 'mark\.cuda' tests/ops --include='test_*.py')
section check 80 "$python" -m pytest -q -m cuda "${tests[@]}"
section ops 80 "$python" -m tools.benchmark.gpu_ops "${options[@]}" "$out"
section models 120 "$python" -m tools.benchmark.gpu_models "${options[@]}" "$out"
section waterfall 140 "$python" -m tools.benchmark.gpu_waterfall "${options[@]}" "$out"

if [ ${#failed[@]} -gt 0 ]; then
  echo "gpu: FAILED after $SECONDS s: ${failed[*]}"
  exit 1
fi
echo "gpu: OK after $SECONDS s"
