#!/usr/bin/env bash
# What is to be run on a machine with a CUDA device, in stages of less than nine minutes each; the last lines are a short
# table. Fails loudly: a missing device, compiler or tool is an error, not a skip.
#
#   benchmarks/gpu_suite.sh tests | sanitize | bench [G1 G2 ...] | cifar [options of sca train] | dry
#
# tests     build the native part, then the whole suite but for the install tests (they need a package index)
# sanitize  compute-sanitizer's memcheck and racecheck on a selection of the kernel tests
# bench     the cases of benchmarks/gpu.py, stored under benchmarks/results
# cifar     train, prune and compact VGG-16 on the CIFAR-10 images in CIFAR10_DIR (default .gpu_data)
# dry       what of this can be tried without a device
#
# Environment: PYTHON (python3), OUT (results and logs are copied there), CIFAR10_DIR.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
stage=${1:?"expected tests, sanitize, bench, cifar or dry"}
shift
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
logs=$(mktemp -d)
limit="timeout --signal=INT --kill-after=20 530"

device() {
    "$python" - <<'PYTHON'
import sys, torch, triton
if not torch.cuda.is_available():
    sys.exit("no CUDA device")
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
PYTHON
}

build() { # also registers the distribution, which the version tests and the `sca` command read
    "$python" -m pip install --quiet --no-deps --no-build-isolation --no-index -e . >"$logs/build.log" 2>&1 ||
        { cat "$logs/build.log"; exit 1; }
}

keep() { # copies what a stage made, also after a failure
    if [ -n "${OUT:-}" ]; then cp "$@" "$OUT/" 2>/dev/null || true; fi
}

run_tests() {
    device && build
    local status=0
    $limit "$python" -m pytest -q --ignore=tests/house/test_install.py --durations=10 \
        --junitxml="$logs/tests.xml" >"$logs/tests.log" 2>&1 || status=$?
    keep "$logs"/tests.*
    tail -40 "$logs/tests.log"
    return $status
}

# One test of every kernel, in both layouts: a sanitizer slows a kernel down by a factor of ten and more.
selection="triton-cuda and (bit_identical and 3.0 or odd_sizes and (65 or 130) or prelude and plif and no-decay
    or presented or training_follows_torch or large_mean or bits_round_trip)"

sanitize() {
    device && build
    local failed=0 tool
    for tool in memcheck racecheck; do
        # Each tensor its own allocation, so that reading past its end is seen.
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 260 compute-sanitizer --tool $tool --error-exitcode 99 \
            "$python" -m pytest -q -x tests/kernels -k "$(echo $selection)" >"$logs/$tool.log" 2>&1 &&
            result=clean || { result="FAILED ($?)"; failed=1; }
        keep "$logs/$tool.log"
        printf '%-10s %-12s %s | %s\n' $tool "$result" "$(grep -E '^=+ (ERROR|RACECHECK) SUMMARY' "$logs/$tool.log" || echo no summary)" \
            "$(grep -E '[0-9]+ (passed|failed)' "$logs/$tool.log" | tail -1)" >>"$logs/table"
        [ "$result" = clean ] || tail -60 "$logs/$tool.log"
    done
    cat "$logs/table"
    return $failed
}

bench() {
    device && build
    local status=0
    $limit "$python" -m benchmarks.gpu "$@" 2>&1 | tee "$logs/bench.log" || status=$?
    keep "$logs/bench.log" benchmarks/results/*/G*.json
    return $status
}

cifar() {
    device && build
    local data=${CIFAR10_DIR:-.gpu_data} status=0
    [ -d "$data" ] || { echo "no CIFAR-10 images in $data: set CIFAR10_DIR" >&2; exit 1; }
    $limit "$python" -m sca.cli train --data cifar10 --data-dir "$data" --model vgg16 --device cuda \
        --precision bfloat16 --reference none --out "$logs/run" "$@" 2>&1 | tee "$logs/cifar.log" || status=$?
    keep "$logs/cifar.log" "$logs"/run/*.json* "$logs"/run/*.png
    return $status
}

dry() {
    "$python" -m benchmarks.gpu --smoke --device cpu "$@"
    "$python" -m pytest -q tests/kernels/test_triton_backend.py
}

case $stage in
    tests) run_tests ;;
    sanitize) sanitize ;;
    bench) bench "$@" ;;
    cifar) cifar "$@" ;;
    dry) dry "$@" ;;
    *) echo "stage: expected tests, sanitize, bench, cifar or dry, got $stage" >&2; exit 2 ;;
esac
