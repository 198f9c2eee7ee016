#!/usr/bin/env bash
# Give this machine an environment with raytrain_plus, Ray and torch, and let login shells find it.
#
#     install.sh ENVIRONMENT [PACKAGE ...]
#
# What is there is taken as it is: an ENVIRONMENT that holds raytrain-plus and was not made here,
# or a raytrain-plus that login shells find elsewhere (a machine image). Otherwise ENVIRONMENT is
# made, or brought up to date, from the source tree around this script, with the versions of its
# constraints.txt and what else is named. pip reads its own variables, such as PIP_INDEX_URL.
set -euo pipefail

environment=${1:?which folder holds the environment? usage: install.sh ENVIRONMENT [PACKAGE ...]}
packages=("${@:2}")
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mark=$environment/.made-from
path="export PATH=\"$environment/bin:\$PATH\"  # raytrain_plus"

let_shells_find_it() {
    touch ~/.bashrc
    grep -qxF "$path" ~/.bashrc || printf '%s\n' "$path" >>~/.bashrc
}

# Says what is installed, or would be, in one line.
wanted() {
    (
        cd "$source"
        find . -type f -not -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
        echo "${packages[@]}"
    ) | sha256sum
}

find_python() {
    local candidate
    for candidate in python3.11 python3 python3.12 python3.13; do
        if "$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: $(uname -n) has no Python 3.11 or later with its venv module:" \
        "install python3.11 and python3.11-venv" >&2
    return 1
}

# A process that reads Ray's token may run anything on the cluster.
[ ! -e ~/.ray/auth_token ] || chmod 600 ~/.ray/auth_token

found=$(command -v raytrain-plus || true)
if [ -n "$found" ] && [ "$found" != "$environment/bin/raytrain-plus" ]; then
    echo "raytrain-plus is here already: $found. Nothing is installed."
    exit
fi
if [ -x "$environment/bin/raytrain-plus" ] && [ ! -e "$mark" ]; then
    let_shells_find_it
    echo "$environment was made by another user. Nothing is installed."
    exit
fi

# One at a time, or they would install into each other.
mkdir -p "$environment"
exec 9>"$environment/.lock"
flock 9

if [ -x "$environment/bin/raytrain-plus" ] && [ "$(cat "$mark")" = "$(wanted)" ]; then
    let_shells_find_it
    echo "$environment is up to date."
    exit
fi
python=$(find_python)
# Empty until all is installed, so that an installation after a failure begins again.
: >"$mark"
"$python" -m venv "$environment"
PIP_CONSTRAINT=$source/constraints.txt "$environment/bin/pip" install --quiet \
    --disable-pip-version-check "$source[s3]" "${packages[@]}"
wanted >"$mark"
let_shells_find_it
echo "$environment is installed."
