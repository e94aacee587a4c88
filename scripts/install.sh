#!/bin/bash
# Installs a root-owned copy of this checkout into a virtual environment at PREFIX, and makes the system user `sandboxd`. Needs root.
# usage: scripts/install.sh [PREFIX] [LOCK]     defaults: /opt/sandboxd runtime; LOCK names requirements/LOCK.lock
# What is up to date is left alone: PREFIX/.installed-* hold the hashes of what was installed, and its commit.
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=${1:-/opt/sandboxd}
lock=requirements/${2:-runtime}.lock
sources=(pyproject.toml hatch_build.py README.md LICENSE sandboxd workers benchmarks policies)

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'sandboxd: %s\n' "$*" >&2; exit 1; }

[ "$EUID" -eq 0 ] || die "install.sh needs root: scripts/as-root scripts/install.sh"
[[ $prefix = /* ]] || die "PREFIX must be an absolute path, not $prefix"
umask 022
# A root process runs this code: nobody else may be able to write it, nor hand Python other code by environment.
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1

getent passwd sandboxd >/dev/null || {
    say "making the system user sandboxd"
    useradd --system --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin --comment "sandboxd service" sandboxd
}

if [ -e "$prefix" ] && [ ! -e "$prefix/.installed-by-sandboxd" ] && [ -n "$(ls -A "$prefix")" ]; then
    die "$prefix exists and was not made by this script: remove it or choose another PREFIX"
fi
mkdir -p "$(dirname "$prefix")"
exec 9<"$(dirname "$prefix")"
flock 9   # two installations at once would spoil each other

requirements_hash=$({ /usr/bin/python3 -VV; cat "$lock"; } | sha256sum)
sources_hash=$({ gcc --version; echo "$requirements_hash"
    find "${sources[@]}" -type f ! -name '*.pyc' ! -name sandboxd-init -print0 | sort -z | xargs -0 sha256sum; } | sha256sum)

if [ "$(cat "$prefix/.installed-requirements" 2>/dev/null)" != "$requirements_hash" ]; then
    say "installing Python packages into $prefix"
    # Built beside nothing: a virtual environment knows its own path. The marker comes first, so that a broken one is rebuilt.
    rm -rf "$prefix"
    mkdir -p "$prefix"
    touch "$prefix/.installed-by-sandboxd"
    /usr/bin/python3 -m venv "$prefix"
    "$prefix/bin/python" -m pip install --quiet --require-hashes --only-binary :all: -r "$lock"
    echo "$requirements_hash" >"$prefix/.installed-requirements"
fi
if [ "$(cat "$prefix/.installed-sources" 2>/dev/null)" != "$sources_hash" ]; then
    say "installing sandboxd into $prefix"
    rm -f "$prefix/.installed-sources"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    # A copy, so that root leaves nothing in the checkout and nobody changes a file between compiler and wheel.
    tar -c --exclude=__pycache__ --exclude=sandboxd-init "${sources[@]}" | tar -x -C "$scratch" --no-same-owner
    "$prefix/bin/python" -m pip install --quiet --no-deps --no-index --no-build-isolation --force-reinstall "$scratch"
    echo "$sources_hash" >"$prefix/.installed-sources"
fi
# Measurements name it. The same sources may be those of a later commit too; root writes nothing into another user's checkout.
git -c safe.directory='*' --no-optional-locks describe --always --dirty >"$prefix/.installed-commit" 2>/dev/null \
    || echo unknown >"$prefix/.installed-commit"
