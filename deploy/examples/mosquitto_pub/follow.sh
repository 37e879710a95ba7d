#!/usr/bin/env bash
# Show every state of an operation until it ends; exit status 0 if it succeeded, 1 if not, 3 if no end came.
#
#   follow.sh DEVICE OPERATION
#
# Where the broker is and who asks stands in ~/.config/mosquitto_sub, one option a line, as for every mosquitto_sub
# (mosquitto_sub(1), "Files"). PREFIX (edge/v1) and TIMEOUT (600 s in all) come from the environment.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
topic=${PREFIX:-edge/v1}/$1/op/$2

# The last state is retained, so it does not matter who comes first, this program or the operation's end.
exec 3< <(exec mosquitto_sub -q 1 -t "$topic" -W "${TIMEOUT:-600}")
subscriber=$!
trap 'kill "$subscriber" 2>/dev/null || true' EXIT
while IFS= read -r -u 3 body; do
    jq --raw-output '[.at, .state, .phase // empty, .error.detail // empty] | join(" ")' <<<"$body"
    case $(jq --raw-output .state <<<"$body") in
    accepted | running) ;;
    succeeded) exit 0 ;;
    *) jq --raw-output '.error.hint // empty' <<<"$body" >&2; exit 1 ;;
    esac
done
printf 'follow: no end of %s came; is the device online?\n' "$topic" >&2
exit 3
