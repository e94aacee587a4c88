#!/bin/bash
# Runs the tests against the copy installed at PREFIX. Needs root: the tests build real sandboxes.
# usage: scripts/test.sh PREFIX [PYTEST ARGUMENT...]
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=$1; shift
umask 022
unset PYTHONPATH PYTHONHOME
# Root leaves nothing in the checkout: no byte code, no caches.
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
export PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=$scratch/hypothesis
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
scope=()
if [ -d /run/systemd/system ]; then
    scope=(systemd-run --scope --quiet --collect --property=Delegate=yes --)
fi
# The script, not `python -m pytest`: that would put the checkout on the path, and the tests must see the installed copy.
"${scope[@]}" "$prefix/bin/pytest" -p no:cacheprovider "$@"
