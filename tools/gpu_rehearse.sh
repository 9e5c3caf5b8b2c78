#!/usr/bin/env bash
# The first half hour on a GPU, on a machine without one: the oldest torch, built from source with
# CUDA for the H100, the whole suite, every step of gpu.sh, and every Triton kernel that the GPU
# tests would compile there, with its seconds. Ends with what each part will take on 16 cores.
#
# Usage: tools/gpu_rehearse.sh [environment] [build] [suite] [steps] [triton]     all of them by default
# REHEARSAL (.venv-rehearse) is the environment, made where there is none: 5 GB from the registry.
# It also holds the copy of the sources that is built and tested, so that this tree's build stays
# as it is, and the records of every part, so that the parts can be run one by one.
# TESTS (tests) narrows the suite, JOBS (1) is how many processes run it.
set -uo pipefail
cd "$(dirname "$0")/.."
environment=$(realpath -m "${REHEARSAL:-.venv-rehearse}")
python=$environment/bin/python
tree=$environment/tree
records=$environment/records
# What the machine has beside torch (README, "On a machine with a GPU"), and nothing else.
torch=(torch==2.11.0 torchvision==0.26.0)
packages=(timm lightning pybind11 ninja setuptools wheel pytest pytest-benchmark matplotlib
  scikit-learn onnx onnxruntime safetensors typer rich)
parts=("$@")
[ $# = 0 ] && parts=(environment build suite steps triton)
for part in "${parts[@]}"; do
  case $part in
    environment | build | suite | steps | triton) ;;
    *)
      echo "gpu_rehearse.sh: expected environment, build, suite, steps or triton, got '$part'" >&2
      exit 2
      ;;
  esac
done
failed=()
mkdir -p "$records"

# measure NAME COMMAND...: writes the processor's seconds, its own and its children's, to the records.
measure() {
  local name=$1 TIMEFORMAT="%U %S"
  shift
  echo "== $name"
  { time "$@" 2>&3; } 3>&2 2>"$records/$name.seconds"
  local code=$?
  [ "$code" = 0 ] || failed+=("$name")
  return "$code"
}

copy_tree() {
  mkdir -p "$tree"
  # All but what was built there.
  find "$tree" -mindepth 1 -maxdepth 1 ! -name build ! -name ran_kernels -exec rm -rf {} +
  find "$tree/ran_kernels" -name '*.py' -delete 2>/dev/null
  git ls-files -z --cached --others --exclude-standard \
    | tar --null --files-from=- --ignore-failed-read -cf - 2>/dev/null | tar -xf - -C "$tree"
}

for part in "${parts[@]}"; do
  case $part in
    environment)
      if ! "$python" -c 'import torch, timm, lightning, onnxruntime, pytest_benchmark' 2>/dev/null; then
        test -x "$python" || "${PYTHON:-python3}" -m venv "$environment" || exit 1
        "$python" -m pip install --quiet "${torch[@]}" "${packages[@]}" || exit 1
      fi
      "$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'
      ;;
    build)
      copy_tree
      rm -rf "$tree/build"
      # As it will be done there, with whatever setuptools this python came with.
      (cd "$tree" && OUT="$records/out-build" PYTHON=$python LIMIT=1800 RAN_CUDA=1 \
        TORCH_CUDA_ARCH_LIST=9.0 measure build tools/gpu.sh build) || failed+=(build)
      ;;
    suite)
      copy_tree
      rm -rf "$records/tests" && mkdir "$records/tests"
      # shellcheck disable=SC2086
      (cd "$tree" && measure suite "$python" -m tests.shares "${JOBS:-1}" ${TESTS:-tests} \
        -p no:cacheprovider -p tests.rehearsal --record "$records/tests" --tb=short) || failed+=(suite)
      ;;
    steps)
      copy_tree
      for step in test ceilings kernels networks norm_conv train deploy sanitize tune; do
        (cd "$tree" && OUT="$records/out-$step" PYTHON=$python JOBS=2 LIMIT=1800 \
          measure "step-$step" tools/gpu.sh "$step") || failed+=("step-$step")
        echo "files of $step: $(find "$records/out-$step" -type f | wc -l) (eight come back)"
      done
      ;;
    triton)
      copy_tree
      (cd "$tree" && "$python" -m tests.rehearsal compile "$records/tests") || failed+=(triton)
      ;;
  esac
done

for step in test ceilings kernels networks norm_conv train deploy sanitize tune; do
  [ -s "$records/step-$step.seconds" ] && echo "$step, tiny: $(cat "$records/step-$step.seconds") s of a core"
done
echo "== on a machine with a GPU and 16 cores"
(cd "$tree" && "$python" -m tests.rehearsal estimate "$records") || failed+=(estimate)
[ ${#failed[@]} = 0 ] && echo "the rehearsal passed" && exit 0
echo "failed: ${failed[*]}"
exit 1
