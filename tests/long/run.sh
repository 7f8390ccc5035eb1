#!/usr/bin/env bash
# The full counts of tests of which CI runs a slice: an hour of CPU time, half of it searching. To be
# run when the runner changes and before a release; the last results are committed as results.txt.
#
#   tests/long/run.sh          with the package that this python finds
set -euo pipefail
cd "$(dirname "$0")/../.."

export ERNIE_TEST_STATE_MACHINE_EXAMPLES=1000  # of 40 steps each
export ERNIE_TEST_OPERATIONS=10000000          # of the block manager; a twentieth of it of the engine
export ERNIE_TEST_INTERRUPTS=10000
export ERNIE_TEST_FAILING_ALLOCATIONS=2000
export ERNIE_TEST_ISOLATION_TRIALS=2000        # in each of two dtypes
export ERNIE_TEST_REQUESTS=1000
fuzz_seconds=${ERNIE_FUZZ_SECONDS:-900}

results=tests/long/results.txt
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# report NAME COMMAND...: its last line and its time to the results; all it says if it fails.
report() {
  local name=$1 begin=$SECONDS
  shift
  "$@" >"$log" 2>&1 || { cat "$log"; exit 1; }
  grep -E '^\.?[0-9]+ [a-z]+[,;]|passed|[0-9]+ runs in' "$log" |
    sed "s/^\.*\(.*\)/$name: \1/" | tee -a "$results"
  echo "$name: $((SECONDS - begin)) s" | tee -a "$results"
}

run_tests() { python -m pytest -q -s -p no:cacheprovider -o timeout=0 "$@"; }

python - >"$results" <<'PY'
import datetime, ernie_kernels as ek
print(f"{datetime.date.today()}, ernie_kernels {ek.__version__}, {ek.cpu_tier()}, {ek.num_threads()} threads")
PY
report "block manager" run_tests tests/runner/test_block_manager.py
report "engine" run_tests tests/runner/test_engine_operations.py
report "interrupts" run_tests tests/runner/test_interrupts.py tests/runner/test_threads.py \
  tests/runner/test_aborts.py
report "failing allocations" run_tests tests/runner/test_failing_allocations.py
report "batch invariance" run_tests tests/runner/test_batch_invariance.py
report "isolation" run_tests tests/runner/test_isolation.py
report "random requests" run_tests tests/runner/test_random_requests.py
report "fuzz" python tests/fuzz/run.py --target scheduler cache_api \
  image_bytes video_header content_parts --seconds "$fuzz_seconds" --seed 7
echo "written to $results"
