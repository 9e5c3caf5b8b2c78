#!/usr/bin/env bash
# What a machine with an NVIDIA GPU can tell about this library, in calls of ten minutes at most.
#
# Usage: tools/gpu.sh                      prints the calls of the first hour
#        tools/gpu.sh call N               runs the Nth of them
#        tools/gpu.sh STEP...              build, test, ceilings, kernels, networks, norm_conv,
#                                          train, deploy, sanitize, tune
#
# Every step ends in its time and all together in LIMIT seconds (570); each writes what it has as it
# goes: gpu.log, JSON and pictures in $OUT or bench/results, so few files that a machine which gives
# back eight a call gives back all. Needs no package registry: it installs into $PYTHON without
# dependencies and without build isolation. JOBS test processes (8) share the machine.
# KERNELS and NETWORKS are options of bench/kernels and bench.networks.speed instead of these here;
# DATA is a folder of images by class, or an archive of one, for train.
# Where torch finds no GPU it rehearses: the same steps, on the CPU, with tiny sizes.
set -uo pipefail
cd "$(dirname "$0")/.."

calls() {
  cat <<'CALLS'
1  tools/gpu.sh build test ceilings kernels     is it right, and the first table
2  tools/gpu.sh build ceilings networks         Attention-92 and CBAM-ResNet-50, inference and training
3  KERNELS='--dtype bfloat16' tools/gpu.sh build ceilings kernels      the rest of the kernels' table
4  DATA=... tools/gpu.sh build train            CIFAR-10 with cifar-fast: accuracy, seconds
5  tools/gpu.sh build ceilings deploy           deployed networks
6  tools/gpu.sh build sanitize                  memcheck and racecheck of the CUDA kernels
7  tools/gpu.sh build norm_conv                 training with norms inside 1×1 convolutions
8  tools/gpu.sh build tune                      tiles of their products, which 1 and 7 then take; again goes on
CALLS
}

if [ "${1:-}" = call ]; then
  case ${2:-} in
    1) set -- build test ceilings kernels ;;
    2) set -- build ceilings networks ;;
    3) KERNELS=${KERNELS:---dtype bfloat16} && set -- build ceilings kernels ;;
    4) set -- build train ;;
    5) set -- build ceilings deploy ;;
    6) set -- build sanitize ;;
    7) set -- build norm_conv ;;
    8) set -- build tune ;;
    *) echo "gpu.sh: expected call 1 to 8, got '${2:-}'" >&2 && calls >&2 && exit 2 ;;
  esac
elif [ $# = 0 ]; then
  calls && exit 0
fi
for name in "$@"; do
  case $name in
    build | test | ceilings | kernels | networks | norm_conv | train | deploy | sanitize | tune) ;;
    *)
      echo "gpu.sh: expected build, test, ceilings, kernels, networks, norm_conv, train, deploy," \
        "sanitize or tune, got '$name'" >&2
      exit 2
      ;;
  esac
done

python=${PYTHON:-python3}
limit=${LIMIT:-570}
jobs=${JOBS:-8}
stamp=$(date +%F)
failed=()
capability=$("$python" -c 'import torch
print("%d.%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else "")') || exit 1
if [ -n "$capability" ]; then
  out=${OUT:-bench/results}
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability} RAN_CUDA=1
  tests=(tests -m gpu)
  kernels=(--device cuda ${KERNELS:---dtype bfloat16 --layout channels_last --first-stage}
    --batch 256 --rounds 11)
  # Without max-autotune, which tunes for minutes a network; CBAM-ResNet-50 first, the quicker.
  networks=(--device cuda ${NETWORKS:---dtype bfloat16 --network cbam_resnet50 --network attention92}
    --rounds 11)
  for variant in plain ours "plain compiled" "ours compiled"; do
    networks+=(--variant "$variant")
  done
  # Each shape's products are compiled when they are first made, which takes minutes a network.
  norm_conv=(--device cuda --dtype bfloat16 --direction "training step" --rounds 11
    --network cbam_resnet50 --network attention92
    --variant plain --variant ours --variant "ours norm_conv")
  tuned=(--network cbam_resnet50 --network attention92)
  deploy=(--device cuda --dtype bfloat16 --batch 1 --batch 32 --batch 256 --rounds 11
    --network cbam_resnet50 --network attention92)
  for variant in channels_last "our kernels" folded "fused gate" deployed compiled; do
    deploy+=(--variant "$variant")
  done
  recipe=cifar-fast
  sanitized=(tests/kernels -k "test_exactness and native-cuda")
  sanitizer=compute-sanitizer
  command -v "$sanitizer" >/dev/null || sanitizer=${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer
else
  out=${OUT:-$(mktemp -d)}  # a rehearsal's figures are no results
  echo "torch finds no GPU: rehearsing on the CPU, results in $out"
  tests=(tests/kernels/test_channel_pool.py)
  kernels=(--device cpu --batch 1 --first-stage --rounds 2 --op attention_gate --op CBAM
    --dtype bfloat16 --layout channels_last)
  networks=(--device cpu --batch 1 --size 64 --network cbam_resnet18 --rounds 2
    --direction "training step" --variant plain --variant ours --variant "ours compiled")
  norm_conv=(--device cpu --batch 1 --size 64 --network cbam_resnet18 --rounds 2
    --direction "training step" --variant plain --variant ours)
  tuned=(--network cbam_resnet18 --batch 2 --size 32)
  deploy=(--device cpu --batch 1 --size 64 --network cbam_resnet18 --rounds 2 --dtype float32
    --variant channels_last --variant deployed)
  recipe=digits
  sanitized=(tests/kernels/test_channel_pool.py -k "test_exactness and native-cpu")
  sanitizer=env
fi
mkdir -p "$out"
: >"$out/gpu.log"
# Tiles of products that `tune` has measured, which every step after it takes.
export RAN_TILES=${RAN_TILES:-$(cd "$out" && pwd)/tiles/measured.json}

# step NAME SECONDS COMMAND...: one that fails or runs out of time does not keep the others from
# running. It is interrupted as by Ctrl-C, so that what it has measured is still written.
step() {
  local name=$1 seconds=$2 left=$((limit - SECONDS - 10)) start=$SECONDS
  shift 2
  # A rehearsal is not held to what a GPU's machine takes.
  { [ -z "$capability" ] || [ "$left" -lt "$seconds" ]; } && seconds=$left
  echo "== $name: at most $seconds s" | tee -a "$out/gpu.log"
  if [ "$seconds" -lt 20 ]; then
    echo "== $name: no time left" | tee -a "$out/gpu.log"
    failed+=("$name")
    return 1
  fi
  timeout --signal=INT --kill-after=15 "$((seconds - 15))" "$@" 2>&1 \
    | tee -a "$out/gpu.log" | tail -n 100
  local code=${PIPESTATUS[0]}
  echo "== $name: exit code $code, $((SECONDS - start)) s" | tee -a "$out/gpu.log"
  [ "$code" = 0 ] || failed+=("$name")
  return "$code"
}

# Installs into $python. Before version 77, setuptools knew another form of the licence's field.
build() {
  export PIP_BREAK_SYSTEM_PACKAGES=1
  local old code
  old=$("$python" -c 'import setuptools; print(int(setuptools.__version__.split(".")[0]) < 77)')
  if [ "$old" = True ]; then
    cp -p pyproject.toml "$out/pyproject.toml"
    sed -i -e 's/^license = \(".*"\)/license = {text = \1}/' -e '/^license-files/d' pyproject.toml
  fi
  step build 300 "$python" -m pip install --no-index --disable-pip-version-check --no-deps \
    --no-build-isolation -e .
  code=$?
  [ "$old" = True ] && mv "$out/pyproject.toml" pyproject.toml
  return "$code"
}

# SECONDS count from the script's start on: to look for the GPU takes torch some of them, too.
for name in "$@"; do
  case $name in
    build)
      build || exit 1
      step report 60 "$python" -m ran_kernels || exit 1
      ;;
    test)
      # Most of a test's time is compiling, so the processes are as many as there is memory for.
      step test 400 env TORCHINDUCTOR_COMPILE_THREADS=2 OMP_NUM_THREADS=2 "$python" -m tests.shares \
        "$jobs" "${tests[@]}" -p no:cacheprovider --tb=short --durations=10
      ;;
    ceilings)
      step ceilings 60 "$python" -m bench.ceilings --result "$out/ceilings-$stamp.json"
      ;;
    kernels)
      step kernels 540 "$python" -m pytest bench/kernels -q -p no:cacheprovider \
        --result "$out/kernels-$stamp.json" "${kernels[@]}"
      ;;
    networks)
      step networks 540 "$python" -m bench.networks.speed "${networks[@]}" \
        --result "$out/network-speed-$stamp.json"
      ;;
    train)
      if [ -n "$capability" ]; then
        data=${DATA:?DATA: expected a folder of images by class, or an archive of one}
        if [ -f "$data" ]; then
          images=$(mktemp -d)
          tar -xf "$data" -C "$images" || exit 1
          # The folder that holds train/ and test/, however deep the archive has it.
          data=$(dirname "$(find "$images" -type d -name train | head -n 1)")
        fi
        options=(--data "folder:$data")
      else
        options=(--epochs 1 --set workers=0)
      fi
      step train 540 "$python" -m ran train "$recipe" "${options[@]}" --output "$out/training" --overwrite
      if [ -f "$out/training/run.json" ]; then
        "$python" -m bench.training "$out/training" --name "$recipe" \
          --data-name "${DATA_NAME:-CIFAR-10 (JPEG)}" --result "$out/training-$stamp.json" || failed+=(training)
      fi
      tar -czf "$out/training-$stamp.tar.gz" -C "$out" training && rm -r "$out/training"
      ;;
    deploy)
      step deploy 540 "$python" -m bench.networks.deploy "${deploy[@]}" \
        --result "$out/network-deploy-$stamp.json"
      ;;
    norm_conv)
      step norm_conv 540 "$python" -m bench.networks.speed "${norm_conv[@]}" \
        --result "$out/network-speed-norm-conv-$stamp.json"
      ;;
    tune)
      step tune 540 "$python" -m bench.networks.tune "${tuned[@]}"
      ;;
    sanitize)
      for tool in memcheck racecheck; do
        arguments=()
        if [ "$sanitizer" != env ]; then
          arguments=(--tool "$tool" --error-exitcode 9)
          # This library's kernels alone: other libraries' are slow to follow, and not ours to mend.
          # Not through a pipe to `grep -q`, which ends the writer and with it, by pipefail, the answer.
          [[ $("$sanitizer" --help 2>&1) == *--kernel-regex* ]] && arguments+=(--kernel-regex kns=3ran)
        fi
        # Within PyTorch's cache of freed memory no access would be out of bounds.
        step "$tool" 270 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" "${arguments[@]}" \
          "$python" -m pytest "${sanitized[@]}" -q -p no:cacheprovider
      done
      ;;
  esac
done

drawn=()
for name in kernels network-speed training; do
  [ -f "$out/$name-$stamp.json" ] && drawn+=("$out/$name-$stamp.json")
done
[ ${#drawn[@]} = 0 ] || timeout 30 "$python" -m bench.plots "${drawn[@]}" || failed+=(pictures)
[ ${#failed[@]} = 0 ] && echo "all steps passed in $SECONDS s" && exit 0
echo "failed: ${failed[*]} ($SECONDS s)"
exit 1
