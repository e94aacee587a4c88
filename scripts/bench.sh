#!/bin/bash
# Runs every benchmark of benchmarks/ with the copy installed at PREFIX, one after another. Needs root.
# usage: scripts/bench.sh PREFIX
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
for script in benchmarks/bench_*.py; do
    echo "== $script"
    env -u PYTHONDONTWRITEBYTECODE "$1/bin/python" -P "$script" || status=1
done
exit $status
