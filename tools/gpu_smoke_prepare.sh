#!/usr/bin/env bash
# Collect in a folder (under 40 MB) what tools/gpu_smoke.sh installs on a machine without network:
#
#     tools/gpu_smoke_prepare.sh DIR
#
# That machine has Linux on x86-64, Python 3.12, torch, NumPy, SciPy and Pillow of its own.
# PYTHON names the interpreter whose pip downloads (default .venv/bin/python), TARGET_PYTHON the
# version to download for.
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 DIR" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
mkdir -p "$1/wheels"
dir=$(cd "$1" && pwd)

download() {
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps "$@"
}
download_wheels() {
  download --only-binary=:all: --implementation cp --python-version "${TARGET_PYTHON:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 "$@"
}

download_wheels -c "$root/requirements/constraints-onedl.txt" -d "$dir/wheels" \
  onedl-mmengine addict ftfy platformdirs prettytable pyyaml regex rich \
  markdown-it-py mdurl pygments termcolor wcwidth yapf \
  beartype jaxtyping wadler-lindig iniconfig packaging pluggy pytest

# MMSegmentation is published as sources: make its wheel, which is pure Python, here. One operator
# of mmcv is compiled there, so its sources travel.
pin() {
  grep "^$1==" "$root/requirements/onedl.txt"
}
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  -w "$dir/wheels" "$(pin onedl-mmsegmentation)"
download --no-build-isolation --no-binary onedl-mmcv -d "$dir" "$(pin onedl-mmcv)"

# OpenCV is large: without its face detectors and under a better compression it is 30 MB. 4.11 is
# the last release before it grew, and runs with NumPy 1 and 2.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
download_wheels -d "$scratch" opencv-python-headless==4.11.0.86
"$python" -m zipfile -e "$scratch"/opencv*.whl "$scratch/opencv"
rm -r "$scratch/opencv/cv2/data"
tar -C "$scratch/opencv" -cJf "$dir/opencv.tar.xz" .

du -sh "$dir"
