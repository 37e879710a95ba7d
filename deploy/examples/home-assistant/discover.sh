#!/usr/bin/env bash
# Tell Home Assistant of every device that says what it can do, now and as long as this runs.
#
#   discover.sh                  until it is stopped
#   discover.sh --forget DEVICE  take a device's entities back
#
# It reads PREFIX/+/capabilities and writes retained messages below homeassistant/. The options of broker and login stand
# in ~/.config/mosquitto_sub and ~/.config/mosquitto_pub, one a line; PREFIX (edge/v1) comes from the environment. On a
# broker with roles it needs `topic write homeassistant/#` beside those of an auditor.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
prefix=${PREFIX:-edge/v1}

entities() { # DEVICE, capabilities on stdin
    jq --compact-output --arg prefix "$prefix" --arg device "$1" --from-file "$here/discovery.jq"
}

if [ "${1:-}" = --forget ]; then
    [ $# -eq 2 ] || { sed -n '2,10p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
    entities "$2" <<<'{}' | jq --raw-output .topic | while IFS= read -r topic; do
        mosquitto_pub -q 1 -r -n -t "$topic"
    done
    exit
fi

# No pipe around the loop: whoever stops this program stops the subscriber with it, and no shell is left behind.
exec 3< <(exec mosquitto_sub -q 1 -t "$prefix/+/capabilities" -F '%t %p')
subscriber=$!
trap 'kill "$subscriber" 2>/dev/null || true' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
while IFS=' ' read -r -u 3 topic capabilities; do
    device=${topic#"$prefix"/}
    device=${device%/capabilities}
    [ -n "$capabilities" ] || continue
    entities "$device" <<<"$capabilities" | while IFS= read -r message; do
        jq --compact-output .payload <<<"$message" | mosquitto_pub -q 1 -r -t "$(jq --raw-output .topic <<<"$message")" -s
    done
    printf 'told Home Assistant of %s\n' "$device"
done
