#!/usr/bin/env bash
# Sign a checkpoint with openssl, deploy it to one device and follow the operation. The key is an Ed25519 key in PEM; its
# public half lies on the device as trust.d/NAME.pub, where NAME is the name of the key's file.
#
#   deploy.sh DEVICE MODEL FILE URL KEY SEQUENCE [METHOD]
#
#   deploy.sh box-17 kanji model.pt https://files.example.com/model.pt operator.key 7 auto
#
# FILE is what URL leads to: its size and digest are signed. SEQUENCE has to grow with every release of the model.
# GATE, a JSON object, is the gate (docs/contract.md). Broker and login: see follow.sh.
set -euo pipefail
[[ $# -ge 6 && $# -le 7 ]] || { sed -n '2,10p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
device=$1 model=$2 file=$3 url=$4 key=$5 sequence=$6 method=${7:-auto}
for each in "$file" "$key"; do
    [[ -f $each && -r $each ]] || { printf 'deploy: %s: no file that can be read\n' "$each" >&2; exit 2; }
done
[[ $sequence =~ ^[0-9]+$ ]] || { printf 'deploy: SEQUENCE %s is no number\n' "$sequence" >&2; exit 2; }
"$(dirname "$0")/present.sh" "$device"
keyid=$(basename "$key")
keyid=${keyid%.*}
type=application/vnd.nibbled.manifest+json
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# What is signed is DSSE's encoding of the manifest; what is sent carries the very same bytes.
jq --null-input --compact-output --join-output --arg model "$model" --arg name "$(basename "$file")" --arg url "$url" \
    --arg sha256 "$(sha256sum "$file" | cut -d' ' -f1)" --argjson size "$(stat -Lc %s "$file")" --argjson sequence "$sequence" \
    '{model: $model, version: ($sequence | tostring), sequence: $sequence, files: [{name: $name, url: $url, sha256: $sha256, size: $size}]}' \
    >"$scratch/manifest"
printf 'DSSEv1 %d %s %d ' ${#type} "$type" "$(stat -c %s "$scratch/manifest")" >"$scratch/pae"
cat "$scratch/manifest" >>"$scratch/pae"
openssl pkeyutl -sign -rawin -inkey "$key" -in "$scratch/pae" -out "$scratch/signature"

id=deploy-$sequence-$(date +%s)
jq --null-input --compact-output --arg id "$id" --arg model "$model" --arg method "$method" --argjson gate "${GATE:-null}" \
    --arg type "$type" --arg payload "$(base64 -w0 "$scratch/manifest")" \
    --arg keyid "$keyid" --arg signature "$(base64 -w0 "$scratch/signature")" \
    '{schema: 1, id: $id, model: $model, method: $method,
      manifest: {payloadType: $type, payload: $payload, signatures: [{keyid: $keyid, sig: $signature}]}}
     + if $gate == null then {} else {gate: $gate} end' |
    mosquitto_pub -q 1 -t "${PREFIX:-edge/v1}/$device/cmd/deploy" -s
"$(dirname "$0")/follow.sh" "$device" "$id"
