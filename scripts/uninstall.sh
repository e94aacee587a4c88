#!/bin/bash
# Removes what install.sh made: PREFIX, the link in /usr/local/bin, and the user `sandboxd`. Needs root.
# usage: scripts/uninstall.sh [PREFIX] [--purge]      --purge also removes /var/lib/sandboxd (tokens, finished jobs, caches)
set -euo pipefail
prefix=${1:-/opt/sandboxd}
die() { printf 'sandboxd: %s\n' "$*" >&2; exit 1; }
[ "$EUID" -eq 0 ] || die "uninstall.sh needs root: scripts/as-root scripts/uninstall.sh"
[ ! -e "$prefix" ] || [ -e "$prefix/.installed-by-sandboxd" ] || die "$prefix was not made by install.sh"
for lock in /run/sandboxd/*/lock; do
    [ ! -e "$lock" ] || flock --nonblock "$lock" true || die "instance $(basename "$(dirname "$lock")") is running: stop it first"
done
[ "$(readlink /usr/local/bin/sandboxd 2>/dev/null)" != "$prefix/bin/sandboxd" ] || rm /usr/local/bin/sandboxd
rm -rf "$prefix"
if [ "${2:-}" = --purge ]; then
    rm -rf /var/lib/sandboxd
    rmdir /run/sandboxd/slots 2>/dev/null || :   # a slot in it is somebody's
    rm -f /run/sandboxd/.lock; rmdir /run/sandboxd 2>/dev/null || :
fi
# Files of the user may stay (/var/lib/sandboxd): a user with files left would hand them to the next one with its number.
if getent passwd sandboxd >/dev/null && [ ! -e /var/lib/sandboxd ] && [ ! -e /opt/sandboxd ] && [ ! -e /opt/sandboxd-tests ]; then
    userdel sandboxd
elif [ -e /var/lib/sandboxd ]; then
    echo "sandboxd: /var/lib/sandboxd and the user sandboxd are kept; PURGE=--purge removes them" >&2
fi
