#!/usr/bin/env bash
# Start Ray on this machine, and the node agent beside it; once Ray's raylet has ended, end the rest.
#
#     start.sh ray start ...
#
# `ray down` stops Ray on the head alone. On the other machines the raylet ends by itself when it
# has not reached the head for a while, but what it has started would stay.
set -euo pipefail

# Held for as long as anything is left of the Ray that was here before.
exec 9>"${TMPDIR:-/tmp}/raytrain_plus-$(id -u).lock"
flock --timeout 120 9 || {
    echo "error: the Ray that was started here before does not end: run \`ray stop --force\`" >&2
    exit 1
}

"$@" 9>&-
RAYLET=$(pgrep -n -u "$(id -u)" -x raylet)
LOGS=$(readlink -f /tmp/ray/session_latest)/logs
export RAYLET LOGS

# shellcheck disable=SC2016 - the variables are the other shell's
setsid bash -c '
    raytrain-plus node-agent 9>&- &
    agent=$!
    tail --pid="$RAYLET" --follow /dev/null 9>&-
    kill "$agent"
    ray stop 9>&-
' </dev/null >>"$LOGS/node-agent.log" 2>&1 &
