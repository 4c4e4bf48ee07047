#!/usr/bin/env bash
# Collect in a folder (43 MB, 30 of them OpenCV) what tools/benchmark/gpu.sh needs without a network:
#
#     tools/benchmark/gpu_prepare.sh [DIR]     (default work_dirs/gpu_parts, which git ignores)
#
# DIR gets what tools/gpu_smoke_prepare.sh collects, unless it is there already, and peers.tar.xz:
# MMDetection, ready to import, what it needs, and the configurations of both
# packages' Mask2Former. The images are those of data/tiny, which are part of the repository.
# PYTHON names the interpreter whose pip downloads (default .venv/bin/python).
set -euo pipefail

if [ $# -gt 1 ]; then
  echo "usage: $0 [DIR]" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
dir=${1:-$root/work_dirs/gpu_parts}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
site=$scratch/site

constraints=$root/requirements/constraints-onedl.txt
# Published as sources only; the wheels are pure Python.
wheel() {
  "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    -w "$scratch" "$(grep "^$1==" "$root/requirements/onedl.txt")"
}
install() {
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
    --only-binary=:all: --implementation cp --python-version "${TARGET_PYTHON:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --target "$site" "$@"
}
# Of a package's configurations those of Mask2Former and what they are based on.
configurations() {
  local package=$1
  wheel "onedl-$2"
  unzip -q "$scratch/onedl_$2"-*.whl "$package/.mim/configs/*" -d "$scratch/$package"
  rm -rf "$site/$package/.mim"
  mkdir -p "$site/$package/.mim/configs"
  mv "$scratch/$package/$package/.mim/configs"/{_base_,mask2former} "$site/$package/.mim/configs"
}

if [ ! -f "$dir/site.tar.xz" ]; then
  PYTHON=$python "$root/tools/gpu_smoke_prepare.sh" "$dir"
fi
wheel onedl-mmdetection
install "$scratch"/*.whl -c "$constraints" pycocotools shapely terminaltables tqdm
configurations mmdet mmdetection
configurations mmseg mmsegmentation
rm -rf "$site"/{bin,shapely/tests}
XZ_OPT=-9 tar -C "$site" -cJf "$dir/peers.tar.xz" .

du -sm "$dir"
if [ "$(du -sm "$dir" | cut -f 1)" -ge 60 ]; then
  echo "$0: $dir has grown to 60 MB or more" >&2
  exit 1
fi
