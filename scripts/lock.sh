#!/bin/bash
# Rewrites requirements/*.lock from pyproject.toml: exact versions, every file's hash, valid for each supported Python.
# usage: scripts/lock.sh [--upgrade]
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
/usr/bin/python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet 'uv>=0.13,<0.14'
export UV_CUSTOM_COMPILE_COMMAND="make lock"
lock() {   # NAME GROUP...: the package's dependencies and those groups
    local output=requirements/$1.lock; shift
    "$scratch/venv/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-emit-find-links --no-annotate ${upgrade:-} "${@/#/--group=}" --output-file "$output" pyproject.toml
}
upgrade=${1:-}
lock runtime build
lock test dev
