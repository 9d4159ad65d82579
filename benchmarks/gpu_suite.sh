#!/usr/bin/env bash
# What is to be run on a machine with a CUDA device, stage by stage, each in less than nine minutes; its last lines are a
# short table. Fails loudly: a missing device, compiler or tool is an error, not a skip.
#
#   benchmarks/gpu_suite.sh [--dry-run] tests | sanitize | bench [G1 G2 ...] | counters | train [options of sca train] | all
#
# tests     build the native part, then the whole suite but for the install tests (they need a package index)
# sanitize  G7: compute-sanitizer's memcheck and racecheck on a selection of the kernel tests, every CUDA backend
# bench     G1 to G5 and G8 against their peers, steps captured and eager; stored figure by figure, so that it goes on
#           where it was interrupted. Calls: `bench G1 G2`, `bench G3`, `bench G4`, `bench G5`, `bench G8 G8-launches`;
#           one that is stopped is called again
# counters  achieved bytes/s, occupancy and registers of the kernels of G1 and G2, by ncu
# train     G6: train, prune and compact VGG-16 on the CIFAR-10 images in CIFAR10_DIR by the recipe two_hours and captured
#           steps (--density 1: its dense twin); then an epoch by steps as they stand (--graph off), whose speed is to
#           be compared with
#
# Results: benchmarks/results/<device>/<date>.json. Environment: PYTHON (python3), OUT (results and logs go there, too),
# CIFAR10_DIR. With --dry-run: print the commands, start none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { echo "stage: expected tests, sanitize, bench, counters, train or all, got ${1:-nothing}" >&2; exit 2; }
dry=
if [ "${1:-}" = --dry-run ]; then dry=1; shift; fi
stage=${1:-}
[ $# -eq 0 ] || shift
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 COLUMNS=160
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# run SECONDS LOG COMMAND...: under a time limit, all that it says in the log, whose end is shown.
run() {
    local seconds=$1 log=$2 status=0
    shift 2
    if [ -n "$dry" ]; then echo "  within $seconds s: $*"; return; fi
    timeout --signal=INT --kill-after=20 "$seconds" "$@" >"$logs/$log.log" 2>&1 || status=$?
    tail -40 "$logs/$log.log"
    [ $status -ne 124 ] || echo "$log: stopped after $seconds s" >&2
    return $status
}

# keep STAGE LINES: store what a stage ended with, and copy everything to OUT.
keep() {
    if [ -n "$dry" ]; then return; fi
    if [ -s "${2:-}" ]; then "$python" -m benchmarks.gpu --record "$1" "$2"; fi
    if [ -n "${OUT:-}" ]; then cp "$logs"/* benchmarks/results/*/20*.json "$OUT/" 2>/dev/null || true; fi
}

# The install also registers the distribution, which the version tests and the `sca` command read. `prepare && ...` turns
# set -e off in here.
prepare() {
    if [ -n "$dry" ]; then echo "$stage:"; else "$python" -c 'import sys, torch
if not torch.cuda.is_available(): sys.exit("no CUDA device")
print(torch.cuda.get_device_name(), "torch", torch.__version__)' || return; fi
    run 120 build "$python" -m pip install --quiet --no-deps --no-build-isolation --no-index -e .
}

tests() {
    local status=0
    run 400 tests "$python" -m pytest -q --ignore=tests/house/test_install.py --durations=10 || status=$?
    tail -3 "$logs/tests.log" >"$logs/tests.lines" 2>/dev/null || true
    keep tests "$logs/tests.lines"
    return $status
}

# One test of every kernel and layout: a sanitizer slows a kernel down by a factor of ten and more.
selection="cuda and not reference and (bit_identical and 3.0 or odd_sizes and (65 or 130) or prelude and plif and no-decay
    or presented or training_follows_torch or large_mean or bits_round_trip or adds_activity_as_torch and double
    or goes_back_to_where_it_was_read and rows0 and channels_last and fp32)"

sanitize() {
    local tool status=0 result
    for tool in memcheck racecheck; do
        result=clean
        # Each tensor its own allocation, so that reading past its end is seen.
        run 200 $tool env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool --error-exitcode 99 \
            "$python" -m pytest -q -x tests/kernels -k "$(echo $selection)" || { result="FAILED ($?)"; status=1; }
        if [ -n "$dry" ]; then continue; fi
        echo "G7 $tool: $result; $(grep -E '^=+ (ERROR|RACECHECK) SUMMARY' "$logs/$tool.log" || echo no summary);" \
            "$(grep -E '[0-9]+ passed' "$logs/$tool.log" | tail -1)" >>"$logs/sanitize.lines"
    done
    keep sanitize "$logs/sanitize.lines"
    if [ -z "$dry" ]; then cat "$logs/sanitize.lines"; fi
    return $status
}

bench() {
    local status=0
    run 400 bench "$python" -m benchmarks.gpu "$@" || status=$?
    keep bench
    return $status
}

# Triton's and CUDA's; others' kernels are named after passes, too.
kernels='^((forward|backward|moments)_kernel|neuron_forward|neuron_backward|moments)$'

counters() {
    local status=0
    local metrics=gpu__time_duration.sum,dram__bytes.sum,dram__bytes.sum.per_second
    metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread
    run 400 counters ncu --csv --page raw --metrics $metrics --kernel-name "regex:$kernels" \
        "$python" -m benchmarks.gpu --profile G1 G2 || status=$?
    grep '^"' "$logs/counters.log" >"$logs/counters.lines" 2>/dev/null || true
    keep counters "$logs/counters.lines"
    return $status
}

train() {
    local data=${CIFAR10_DIR:-} status=0
    if [ -z "$dry" ] && [ ! -d "$data" ]; then echo "CIFAR10_DIR: expected a folder of CIFAR-10 files, got '$data'" >&2; return 1; fi
    local command=("$python" -m sca train --preset two_hours --data cifar10 --data-dir "${data:-CIFAR10_DIR}" --model vgg16
        --device cuda --precision bfloat16 --reference none)
    run 330 train "${command[@]}" --graph on --out "$logs/run" "$@" || status=$?
    run 80 train-eager "${command[@]}" --graph off --out "$logs/eager" "$@" --epochs 1 || status=$?
    if [ -d "$logs/run" ]; then cp "$logs"/run/*.json* "$logs/"; fi
    { tail -15 "$logs/train.log"; echo "--graph off:"; tail -15 "$logs/train-eager.log"; } >"$logs/train.lines" \
        2>/dev/null || true
    keep train "$logs/train.lines"
    return $status
}

case $stage in
    tests | sanitize | bench | counters | train) prepare && "$stage" "$@" ;;
    all)
        [ -n "$dry" ] || usage "all, which takes --dry-run: a stage a call"
        for stage in tests sanitize bench counters train; do prepare && "$stage"; done
        "$python" -m benchmarks.gpu --list
        ;;
    *) usage "$stage" ;;
esac
