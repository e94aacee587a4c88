#!/bin/bash
# Asks the questions of benchmarks/ of the copy installed at PREFIX: all of them, or those that are named. Needs root.
# usage: scripts/bench.sh PREFIX [QUESTION...] [--scale X] [--wait-quiet S] [--json FILE] [--list]
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=$1; shift
unset PYTHONHOME
# The benchmarks come from the checkout, sandboxd from PREFIX: a folder that holds the one and not the other is put on the path.
# Root leaves nothing in the checkout; what is measured runs with its own environment and its own byte code.
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD/benchmarks" "$scratch/benchmarks"
export PYTHONPATH=$scratch PYTHONDONTWRITEBYTECODE=1
scope=()
if [ -d /run/systemd/system ]; then
    scope=(systemd-run --scope --quiet --collect --property=Delegate=yes --)
fi
"${scope[@]}" "$prefix/bin/python" -P -m benchmarks "$@"
