#!/usr/bin/env bash
# Start Ray on this machine, and the node agent with it. When its raylet has ended, end the rest.
#
#     start.sh ray start ...
#
# `ray down` stops Ray on the head alone. On the others the raylet ends by itself when it has not
# reached the head for a while, but what it has started would stay.
#
# POWER_OFF_AFTER: minutes after Ray's end at which this machine is switched off, unless Ray has
# been started again. Default: never. So that no machine of a cloud is paid for once its head has
# gone.
set -euo pipefail

temporary=${RAY_TMPDIR:-/tmp}
session=$temporary/ray/session_latest
# A folder of one's own: in a shared /tmp, another user could put a link or a lock in the way.
own=$HOME/.raytrain_plus
mkdir -p -m 700 "$own"
if [ -L "$own" ] || [ ! -O "$own" ] || [ -n "$(find "$own" -maxdepth 0 -perm /002)" ]; then
    echo "error: $own is to be a folder of $(id -un) alone (chmod 700 it, or move it away)" >&2
    exit 1
fi
chmod 700 "$own" # `ray up` makes it with the permissions of other folders
# Held for as long as anything is left of the Ray that was here before. One per machine, as several
# may share a home, and one per folder of Ray.
exec 9>>"$own/start-$(uname -n)-$(printf %s "$temporary" | sha256sum | cut -c 1-12).lock"
flock --timeout 120 9 || {
    echo "error: the Ray that ran on $(uname -n) does not end: run \`ray stop --force\` there" >&2
    exit 1
}
[ -z "${POWER_OFF_AFTER:-}" ] || sudo shutdown -c || true

# What Ray starts must not hold the lock, should it outlive `ray stop`.
"$@" 9>&-
RAYLET=$(pgrep --euid "$(id -u)" --newest --full "raylet_socket_name=$(readlink -f "$session")/")
LOGS=$(readlink -f "$session")/logs
if [ ! -O "$LOGS" ]; then
    echo "error: $LOGS is not a folder of $(id -un): give Ray a folder of your own (RAY_TMPDIR)" >&2
    exit 1
fi
export RAYLET

# shellcheck disable=SC2016 # the variables are the other shell's
setsid bash -c '
    raytrain-plus node-agent 9>&- &
    tail --pid="$RAYLET" --follow /dev/null 9>&-
    ray stop 9>&-
    [ -z "${POWER_OFF_AFTER:-}" ] || sudo shutdown -h "+$POWER_OFF_AFTER"
' </dev/null >>"$LOGS/node-agent.log" 2>&1 &
