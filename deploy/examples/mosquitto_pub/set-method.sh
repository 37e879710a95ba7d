#!/usr/bin/env bash
# Switch a model to another method on one device, and follow the operation.
#
#   set-method.sh DEVICE MODEL METHOD       such as: set-method.sh box-17 kanji nf4-dq
#
# The options of broker and login: follow.sh says where they stand; ~/.config/mosquitto_pub has to have them as well.
set -euo pipefail
[ $# -eq 3 ] || { sed -n '2,6p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
device=$1 model=$2 method=$3
"$(dirname "$0")/present.sh" "$device"
# A new id for a new wish; the same id sent again is answered and not carried out twice.
id=switch-$(date +%s)-$$

jq --null-input --compact-output --arg id "$id" --arg model "$model" --arg method "$method" \
    '{schema: 1, id: $id, model: $model, method: $method}' |
    mosquitto_pub -q 1 -t "${PREFIX:-edge/v1}/$device/cmd/set_method" -s
"$(dirname "$0")/follow.sh" "$device" "$id"
