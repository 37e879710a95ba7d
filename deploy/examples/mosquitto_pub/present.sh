#!/usr/bin/env bash
# Ask the broker whether it knows a device: 0 if it does, 3 if not, since nobody would answer then. A device that is away
# gets its commands when it is back, within a week.
#
#   present.sh DEVICE
#
# PREFIX (edge/v1) and KNOWN_S (5 s, how long the broker may take) come from the environment.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
topic=${PREFIX:-edge/v1}/$1/presence
status=0
told=$(mosquitto_sub -q 1 -t "$topic" -C 1 -W "${KNOWN_S:-5}") || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 27 ] || exit "$status" # 27: the time is over
if [ -z "$told" ]; then
    printf '%s: nothing on %s: are the name and PREFIX right, and may this login read it?\n' "$1" "$topic" >&2
    exit 3
fi
[ "$(jq --raw-output .state <<<"$told")" = online ] || printf '%s is offline; the broker keeps the command\n' "$1" >&2
