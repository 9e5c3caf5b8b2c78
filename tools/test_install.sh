#!/usr/bin/env bash
# Installs the package in every way the README names, each into an environment of its own:
#   1. pip install .                      (build isolation: pip fetches what the build needs)
#   2. sdist -> wheel -> another environment with the oldest torch of the range, and a portable wheel
#   3. sdist -> built from source against that oldest torch, with CUDA (RAN_CUDA=0: without)
# and runs the operator's tests on what was installed, outside the source tree.
# Usage: tools/test_install.sh PYTHON_WITH_BUILD_TOOLS [OLDEST_TORCH]
set -euo pipefail
python=$(realpath -s "$1")
oldest=${2:-2.11.0}
source=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # VENV: the installed package, not the source tree, passes the operators' tests
  "$1/bin/python" -m pip install --quiet pytest hypothesis
  rm -rf "$1/tests"
  cp -r "$source/tests" "$1/tests"
  (cd "$1" && bin/python -m ran_kernels && bin/python -m pytest -q -p no:cacheprovider \
    tests/kernels -k "attention_gate and not compile and not emulated")  # which needs the sources
}

echo "== sdist, wheel from the sdist"
"$python" -m build --no-isolation --sdist --outdir "$work/dist" "$source"
mkdir "$work/unpacked"
tar -xzf "$work"/dist/*.tar.gz -C "$work/unpacked" --strip-components=1
"$python" -m build --no-isolation --wheel --outdir "$work/dist" "$work/unpacked"
ls -l "$work/dist"

echo "== that wheel beside torch $oldest"
"$python" -m venv "$work/oldest"
"$work/oldest/bin/python" -m pip install --quiet "torch==$oldest" "$work"/dist/*.whl
check "$work/oldest"

echo "== a wheel for every Python in its place"
RAN_PORTABLE_WHEEL=1 "$python" -m build --no-isolation --wheel --outdir "$work/portable" "$work/unpacked"
"$work/oldest/bin/python" -m pip install --quiet --force-reinstall --no-deps "$work"/portable/*-py3-none-*.whl
check "$work/oldest"

echo "== built against torch $oldest"
"$python" -m venv "$work/source"
# With the torchvision that fits it: one for another torch does not load beside it.
"$work/source/bin/python" -m pip install --quiet "torch==$oldest" torchvision ninja pybind11 'setuptools>=77' wheel
mkdir "$work/sources"
tar -xzf "$work"/dist/*.tar.gz -C "$work/sources" --strip-components=1
RAN_CUDA=${RAN_CUDA-1} TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} \
  "$work/source/bin/python" -m pip install --quiet --no-build-isolation "$work/sources"
check "$work/source"

echo "== pip install ."
"$python" -m venv "$work/plain"
"$work/plain/bin/python" -m pip install --quiet "$source"
check "$work/plain"
echo "every way of installing works"
