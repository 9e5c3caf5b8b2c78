#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU can tell about this library, in a quarter of an hour at
# most: builds for the GPU it finds, runs the tests marked `gpu`, then the benchmarks of kernels and
# networks. Results go to $OUT, or to bench/results (a rehearsal's to a temporary folder). Needs no
# package registry: it installs into
# $PYTHON without dependencies and without build isolation.
#
# Usage: tools/gpu.sh [build] [test] [kernels] [networks] [deploy] [sanitize]
# By default all but deploy, which tunes torch.compile for minutes a network, and sanitize, which
# checks the CUDA kernels' memory accesses and takes long.
# Where torch finds no GPU it rehearses: the same steps, on the CPU, with tiny sizes.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
steps=${*:-build test kernels networks}
stamp=$(date +%F)
failed=()

capability=$("$python" -c 'import torch
print("%d.%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else "")') || exit 1
if [ -n "$capability" ]; then
  out=${OUT:-bench/results}
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability} RAN_CUDA=1
  kernels=(--device cuda --batch 256 --first-stage --rounds 11)
  # Without max-autotune, which tunes for minutes a network: `python -m bench.networks.speed` has it.
  networks=(--device cuda --dtype bfloat16 --network attention92 --network cbam_resnet50 --rounds 11
    --direction "training step" --direction inference
    --variant plain --variant "plain compiled" --variant ours --variant "ours compiled")
  deploy=(--device cuda --dtype bfloat16 --batch 1 --batch 32 --batch 256 --rounds 11)
  sanitizer=compute-sanitizer
  command -v "$sanitizer" >/dev/null || sanitizer=${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer
else
  out=${OUT:-$(mktemp -d)}  # a rehearsal's figures are no results
  echo "torch finds no GPU: rehearsing on the CPU, results in $out"
  kernels=(--device cpu --batch 1 --first-stage --rounds 2 --op attention_gate --op CBAM)
  networks=(--device cpu --batch 1 --size 64 --network cbam_resnet18 --rounds 2
    --direction "training step" --variant plain --variant ours --variant "ours compiled")
  deploy=(--device cpu --batch 1 --size 64 --network cbam_resnet18 --rounds 2 --dtype float32
    --variant channels_last --variant deployed)
  sanitizer=env
fi

mkdir -p "$out"

# step NAME SECONDS COMMAND...: one that fails or runs out of time does not keep the others from
# running. It is interrupted as by Ctrl-C, so that what it has measured is still written.
step() {
  local name=$1 seconds=$2
  shift 2
  echo "== $name" && SECONDS=0
  timeout --signal=INT --kill-after=20 "$seconds" "$@" 2>&1 | tee "$out/gpu-$name.log" | tail -n 60
  local code=${PIPESTATUS[0]}
  echo "== $name: exit code $code, $SECONDS s"
  [ "$code" = 0 ] || failed+=("$name")
}

for name in $steps; do
  case $name in
    build)
      export PIP_BREAK_SYSTEM_PACKAGES=1
      step build 240 "$python" -m pip install --no-deps --no-build-isolation -e .
      ;;
    test)
      step test 170 "$python" -m pytest tests -m gpu -q -p no:cacheprovider --maxfail=40
      ;;
    kernels)
      step kernels 150 "$python" -m pytest bench/kernels -q -p no:cacheprovider \
        --benchmark-json="$out/kernels-$stamp.json" "${kernels[@]}"
      ;;
    networks)
      step networks 180 "$python" -m bench.networks.speed "${networks[@]}" \
        --result "$out/networks-$stamp.json"
      ;;
    deploy)
      step deploy 550 "$python" -m bench.networks.deploy "${deploy[@]}" \
        --result "$out/network-deploy-$stamp.json"
      ;;
    sanitize)
      for tool in memcheck racecheck; do
        arguments=(--tool "$tool" --error-exitcode 9)
        [ "$sanitizer" = env ] && arguments=()
        step "$tool" 280 "$sanitizer" "${arguments[@]}" "$python" -m pytest tests/kernels -q \
          -p no:cacheprovider -k "test_exactness and native-cuda"
      done
      ;;
    *)
      echo "gpu.sh: expected build, test, kernels, networks, deploy or sanitize, got '$name'" >&2
      exit 2
      ;;
  esac
done

[ ${#failed[@]} = 0 ] && echo "all steps passed" && exit 0
echo "failed: ${failed[*]}"
exit 1
