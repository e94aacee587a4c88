#!/bin/bash
# Runs the tests against the copy installed at PREFIX: all of them, or those that pytest is told. Needs root: they build real sandboxes.
# REPORTS=FOLDER: each run of pytest writes its report there, as JUnit's XML.
# usage: [REPORTS=FOLDER] scripts/test.sh PREFIX [PYTEST ARGUMENT...]
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
tests() {   # NAME PYTEST ARGUMENT...
    local name=$1; shift
    "${scope[@]}" "$prefix/bin/pytest" -p no:cacheprovider ${REPORTS:+"--junitxml=$REPORTS/$name.xml"} "$@"
}
if [ $# -gt 0 ]; then
    tests chosen "$@"
    exit
fi
# What looks at the whole host, or counts its time, runs with nothing beside it; the others mostly wait.
alone=(tests/attacks tests/kernel tests/smoke)
status=0
echo "==> tests, several at once"
tests beside -n "${TEST_PROCESSES:-4}" --dist worksteal "${alone[@]/#/--ignore=}" || status=$?
echo "==> tests of real sandboxes, one after the other"
tests alone "${alone[@]}" || status=$?
exit "$status"
