#!/bin/bash
# Installs the Debian or Ubuntu packages that sandboxd needs and that are missing; does nothing, quickly, when none is. Needs root.
# usage: scripts/bootstrap.sh [test]    "test": also what only tests need
# No service is started and none is left enabled: sandboxd runs a Redis of its own.
set -euo pipefail

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'sandboxd: %s\n' "$*" >&2; exit 1; }
have_package() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

[ "$EUID" -eq 0 ] || die "bootstrap.sh needs root: scripts/as-root scripts/bootstrap.sh"
command -v apt-get >/dev/null || die "only Debian 12 and Ubuntu 24.04 (or newer) are supported: there is no apt-get here"

missing=()
# libc6-dev has the static libc that the sandbox's PID 1 is linked with; g++ makes C++ a language that the image offers.
wanted=(python3 python3-venv gcc g++ libc6-dev libseccomp2 util-linux passwd procps iproute2 ca-certificates)
[ "${1:-}" != test ] || wanted+=(clang libclang-rt-dev bubblewrap) # libFuzzer: 68 MB to download; a sandbox to compare with
for package in "${wanted[@]}"; do
    have_package "$package" || missing+=("$package")
done
redis=
if ! command -v redis-server >/dev/null && ! command -v valkey-server >/dev/null; then
    redis=redis-server
    missing+=(redis-server)
fi
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    policy=/usr/sbin/policy-rc.d
    if [ -n "$redis" ] && [ ! -e "$policy" ]; then
        # policy-rc.d(8): 101 forbids maintainer scripts to start anything. It is there for this one call alone.
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    log=$(mktemp)
    if ! { apt-get -q update && apt-get -q install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        die "apt-get could not install: ${missing[*]}"
    fi
    rm -f "$log"
    if [ -n "$redis" ]; then
        # Nor at the next boot. update-rc.d tells systemd as well where that is installed.
        update-rc.d redis-server disable >/dev/null 2>&1 || say "the system's redis-server could not be disabled; sandboxd does not need it"
    fi
fi
/usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "/usr/bin/python3 is older than 3.11: Debian 12 or Ubuntu 24.04 is needed"
