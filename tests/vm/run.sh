#!/bin/bash
# Runs tests/smoke, or VM_COMMAND, in a virtual machine with pure cgroup v2. Builds what is missing first.
# usage: tests/vm/run.sh [PYTEST ARGUMENT...]     environment: SANDBOXD_VM_DIR VM_COMMAND VM_TIMEOUT VM_MEMORY VM_CPUS TIMEOUT_SCALE
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$here/../.." && pwd)
export SANDBOXD_VM_DIR=${SANDBOXD_VM_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sandboxd-vm}
[ "$EUID" -eq 0 ] || exec "$checkout/scripts/as-root" "$0" "$@"

"$here/build.sh"
root=$SANDBOXD_VM_DIR/rootfs

# The checkout as it is, without what git ignores; installed outside of the machine, where the compiler is not emulated.
rm -rf "$root/src"
mkdir "$root/src"
git -c safe.directory='*' -C "$checkout" ls-files -z --cached --others --exclude-standard |
    (cd "$checkout" && xargs -0 -I{} sh -c '[ ! -e "$1" ] || printf "%s\0" "$1"' _ {} | tar -c --null -T -) |
    tar -x -C "$root/src" --no-same-owner
chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root /src/scripts/install.sh /opt/sandboxd-tests test

if [ -n "${VM_COMMAND:-}" ]; then
    command=$VM_COMMAND
else
    arguments=
    [ $# -eq 0 ] || printf -v arguments ' %q' "$@"
    command="scripts/test.sh /opt/sandboxd-tests tests/smoke -v -o timeout=600$arguments"
fi
printf 'export TIMEOUT_SCALE=%q PATH=$PATH:/opt/sandboxd-tests/bin\ncd /src\n%s\n' "${TIMEOUT_SCALE:-30}" "$command" >"$root/root/command"
exec "$here/boot.sh"
