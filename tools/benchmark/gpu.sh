#!/usr/bin/env bash
# Check and time the CUDA paths on a bare machine with one NVIDIA GPU, in about ten minutes:
#
#     tools/benchmark/gpu.sh prepare [PARTS]    (elsewhere, with a network: 43 MB into PARTS)
#     tools/benchmark/gpu.sh [--dry-run] [--only SECTION,...] OUT
#
# The machine has Linux on x86-64, Python 3.12, torch, Triton, NumPy, SciPy, Pillow and nvcc; it needs
# no network. PARTS (default work_dirs/gpu_parts, which git ignores) is unpacked into a scratch folder,
# where mmcv's deformable attention is compiled. The sections:
#
#     check      the tests marked cuda
#     train      100 iterations of the demo with AMP
#     ops, models, waterfall    as tools/benchmark/gpu.py says
#
# Each has a time budget, to which the sections before it leave what they did not use. One that fails
# or runs out of time is reported, the others still run, and the exit status is 1. OUT receives
# gpu.log, the compiler's log, the work folder of the training and a CSV file of each measuring
# section. A dry run needs no GPU: tiny sizes on the CPU, in the current environment. PYTHON names the
# interpreter. No GPU has run this yet; the tests run the dry run.
set -uo pipefail

usage() {
  echo "usage: $0 [--dry-run] [--only SECTION,...] OUT, or $0 prepare [PARTS]" >&2
  exit 2
}
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/tools/benchmark
parts=${PARTS:-$root/work_dirs/gpu_parts}

pip_into() { # FOLDER PACKAGE...: wheels for the machine with the GPU
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
    --only-binary=:all: --implementation cp --python-version "${TARGET_PYTHON:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --target "$@"
}
pin() {
  grep "^$1==" "$root/requirements/onedl.txt"
}
prepare() {
  set -e
  python=${PYTHON:-$root/.venv/bin/python}
  mkdir -p "$parts"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  local site=$scratch/site package
  # MMSegmentation and MMDetection are published as sources; their wheels are pure Python.
  "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    -w "$scratch" "$(pin onedl-mmsegmentation)" "$(pin onedl-mmdetection)"
  pip_into "$site" "$scratch"/*.whl -c "$root/requirements/constraints-onedl.txt" \
    onedl-mmengine addict ftfy platformdirs prettytable pyyaml regex rich markdown-it-py mdurl \
    pygments termcolor wcwidth yapf matplotlib contourpy cycler fonttools kiwisolver pyparsing \
    python-dateutil six beartype jaxtyping wadler-lindig iniconfig packaging pluggy pytest \
    pycocotools shapely terminaltables tqdm
  # The smallest release that runs with NumPy 2.
  pip_into "$site" opencv-python-headless==4.11.0.86
  # What nobody reads there: fonts, face detectors, tests, configurations of other models.
  find "$site/fontTools" -name '*.so' -delete
  find "$site/matplotlib/mpl-data/fonts" -type f ! -name DejaVuSans.ttf -delete
  rm -r "$site"/{bin,cv2/data,matplotlib/mpl-data/sample_data,matplotlib/tests,shapely/tests}
  for package in mmseg mmdet; do
    find "$site/$package/.mim/configs" -mindepth 1 -maxdepth 1 ! -name _base_ ! -name mask2former \
      -exec rm -r {} +
  done
  XZ_OPT=-9 tar -C "$site" -cJf "$parts/site.tar.xz" .
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --no-binary onedl-mmcv -d "$parts" "$(pin onedl-mmcv)"
  du -sh "$parts"
}
if [ "${1:-}" = prepare ]; then
  [ $# -le 2 ] || usage
  parts=${2:-$parts}
  prepare
  exit
fi

dry_run=false
only=check,train,ops,models,waterfall
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
    check | train | ops | models | waterfall) ;;
    *) usage ;;
  esac
done
python=${PYTHON:-python3}
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$root" || exit 2
exec > >(tee "$out/gpu.log") 2>&1 </dev/null
export PYTHONUNBUFFERED=1
failed=()
deadline=0
options=()

section() { # NAME BUDGET COMMAND...
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

build() {
  tar -C "$site" -xJf "$parts/site.tar.xz" || return
  local status=0
  "$python" "$here/gpu_build.py" "$parts"/onedl_mmcv-*.tar.gz "$site" >"$out/build.log" 2>&1 ||
    status=$?
  tail -n $((status == 0 ? 3 : 40)) "$out/build.log"
  return "$status"
}

train() { # ITERATIONS OPTION...
  local iterations=$1
  shift
  "$python" tools/train.py configs/demo/mask2former_r18_facade.py --amp --work-dir "$out/train" \
    --cfg-options "train_cfg.max_iters=$iterations" "train_cfg.val_interval=$iterations" \
    "default_hooks.logger.interval=$((iterations < 10 ? 1 : 10))" "$@" || return
  grep -hq "Iter(train) \[ *$iterations/$iterations\]" "$out"/train/*/*.log || {
    echo "no line of iteration $iterations in the log"
    return 1
  }
  if grep -h 'Iter(train)' "$out"/train/*/*.log | grep -q ' loss: nan'; then
    echo 'a loss is not a number'
    return 1
  fi
}

"$python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
nvcc --version | tail -n 2 || true
training=(train 100)
if $dry_run; then
  export CUDA_VISIBLE_DEVICES=''
  options+=(--dry-run)
  training=(train 2 train_dataloader.batch_size=1 val_dataloader.dataset.indices=1)
else
  "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
    echo 'gpu: FAILED: torch sees no GPU here'
    exit 1
  }
  [ -f "$parts/site.tar.xz" ] || {
    echo "gpu: FAILED: no $parts/site.tar.xz: run $0 prepare"
    exit 1
  }
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  export PYTHONPATH=$site:$root${PYTHONPATH:+:$PYTHONPATH}
  export TORCH_EXTENSIONS_DIR=$site/extensions
  export TORCHINDUCTOR_CACHE_DIR=$site/inductor TRITON_CACHE_DIR=$site/triton
  export site parts
fi
export out here python
export -f build train
$dry_run || section build 100 bash -c build
# Only the files that have such tests: others may need packages this machine lacks. Other releases of
# torch warn of other things, which is no failure here, nor in processes that a test starts.
export PYTEST_ADDOPTS='-W default -p no:cacheprovider'
mapfile -t tests < <(grep -rl 'mark\.cuda' tests --include='test_*.py')
section check 80 "$python" -m pytest -q -m cuda "${tests[@]}"
section train 100 bash -c '"$@"' train "${training[@]}"
for name in ops models waterfall; do
  section "$name" 120 "$python" -W ignore -m tools.benchmark.gpu "$name" "$out" "${options[@]}"
done

if [ ${#failed[@]} -gt 0 ]; then
  echo "gpu: FAILED after $SECONDS s: ${failed[*]}"
  exit 1
fi
echo "gpu: OK after $SECONDS s"
