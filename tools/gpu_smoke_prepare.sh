#!/usr/bin/env bash
# Collect in a folder (42 MB, 30 of them OpenCV) what tools/gpu_smoke.sh needs without a network:
#
#     tools/gpu_smoke_prepare.sh DIR
#
# That machine has Linux on x86-64, Python 3.12 and, of its own, torch, NumPy, SciPy and Pillow.
# DIR gets site.tar.xz, packages ready to import, and the sources of mmcv, one operator of which is
# compiled there. PYTHON names the interpreter whose pip downloads (default .venv/bin/python).
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 DIR" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
mkdir -p "$1"
dir=$(cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

pin() {
  grep "^$1==" "$root/requirements/onedl.txt"
}
install() {
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
    --only-binary=:all: --implementation cp --python-version "${TARGET_PYTHON:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --target "$scratch/site" "$@"
}

# MMSegmentation is published as sources only; its wheel is pure Python.
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  -w "$scratch" "$(pin onedl-mmsegmentation)"
install "$scratch"/*.whl -c "$root/requirements/constraints-onedl.txt" \
  onedl-mmengine addict ftfy platformdirs prettytable pyyaml regex rich markdown-it-py mdurl \
  pygments termcolor wcwidth yapf matplotlib contourpy cycler fonttools kiwisolver \
  pyparsing python-dateutil six beartype jaxtyping wadler-lindig iniconfig packaging pluggy pytest
# The smallest release that runs with NumPy 2.
install opencv-python-headless==4.11.0.86
# What the smoke test does not use: face detectors, fonts, tests, configs of other models.
find "$scratch/site/fontTools" -name '*.so' -delete
find "$scratch/site/matplotlib/mpl-data/fonts" -type f ! -name DejaVuSans.ttf -delete
rm -r "$scratch"/site/{cv2/data,matplotlib/mpl-data/sample_data,matplotlib/tests,mmseg/.mim}
XZ_OPT=-9 tar -C "$scratch/site" -cJf "$dir/site.tar.xz" .

"$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --no-binary onedl-mmcv -d "$dir" "$(pin onedl-mmcv)"
du -sh "$dir"
