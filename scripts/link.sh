#!/bin/bash
# Puts `sandboxd` on everybody's PATH, sudo's included, unless another file has that name. Needs root.
# usage: scripts/link.sh PREFIX
set -euo pipefail
target=$1/bin/sandboxd link=/usr/local/bin/sandboxd
if [ -e "$link" ] && [ ! -L "$link" ]; then
    echo "sandboxd: $link is a file of somebody else and was left alone; run $target" >&2
elif [ "$(readlink "$link" 2>/dev/null)" != "$target" ]; then
    mkdir -p "${link%/*}"
    ln -sfn "$target" "$link"
fi
