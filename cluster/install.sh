#!/usr/bin/env bash
# Give this machine an environment with raytrain_plus, Ray and torch, and let login shells find it.
#
#     install.sh ENVIRONMENT
#
# What is there is taken as it is: an ENVIRONMENT that holds raytrain-plus and was not made here,
# or a raytrain-plus that login shells find elsewhere (a machine image). Otherwise ENVIRONMENT is
# made, or brought up to date, from the source tree around this script and the versions in its
# constraints.txt. pip reads its own variables, such as PIP_INDEX_URL.
set -euo pipefail

environment=${1:?which folder holds the environment? usage: install.sh ENVIRONMENT}
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mark=$environment/.made-from
path="export PATH=\"$environment/bin:\$PATH\"  # raytrain_plus"

# Whoever may read Ray's token may run anything on the cluster.
[ ! -e ~/.ray/auth_token ] || chmod 600 ~/.ray/auth_token

let_shells_find_it() {
    touch ~/.bashrc
    grep -qxF "$path" ~/.bashrc || printf '%s\n' "$path" >>~/.bashrc
}

found=$(command -v raytrain-plus || true)
if [ -n "$found" ] && [ "$found" != "$environment/bin/raytrain-plus" ]; then
    echo "raytrain-plus is here already: $found. Nothing is installed."
    exit
fi
if [ -x "$environment/bin/raytrain-plus" ] && [ ! -e "$mark" ]; then
    let_shells_find_it
    echo "$environment was made by somebody else. Nothing is installed."
    exit
fi

# Two starts at a time would install into each other.
mkdir -p "$environment"
exec 9>"$environment/.lock"
flock 9

cd "$source"
wanted=$(find . -type f -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum |
    sha256sum)
if [ -x "$environment/bin/raytrain-plus" ] && [ "$(cat "$mark")" = "$wanted" ]; then
    let_shells_find_it
    echo "$environment is up to date."
    exit
fi

python=
for candidate in python3.11 python3 python3.12 python3.13; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: $(hostname) has no Python 3.11 or later: install python3.11 and python3.11-venv" >&2
    exit 1
fi
# A mark without an environment that works would be believed the next time.
rm -f "$mark"
touch "$mark"
"$python" -m venv "$environment"
PIP_CONSTRAINT=$source/constraints.txt "$environment/bin/pip" install --quiet \
    --disable-pip-version-check "$source[s3]"
printf '%s\n' "$wanted" >"$mark"
let_shells_find_it
echo "$environment holds $("$environment/bin/pip" freeze | wc -l) packages."
