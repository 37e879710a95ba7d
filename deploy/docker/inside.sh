#!/usr/bin/env bash
# What try.sh runs in the container: the agent starts, is healthy, has its kernels, and stops in order.
set -euo pipefail
[ "$(id -un)" = nibbled ]
nibbled --version
nibbled run 2>/tmp/agent.log &
agent=$!
for _ in $(seq 120); do
    sleep 1
    # The image's HEALTHCHECK.
    if python -c 'import urllib.request as r; r.urlopen("http://127.0.0.1:8002/healthz", timeout=4)' 2>/dev/null; then
        healthy=yes
        break
    fi
done
[ "${healthy:-no}" = yes ] || { tail /tmp/agent.log; exit 1; }
echo 'inside: /healthz answers'
# The broker and the keys are missing here: of the doctor's lines those count that are about the image.
(nibbled doctor --json || true) | python -c '
import json, sys
checks = [each for each in json.load(sys.stdin)["checks"] if each["name"] == "torch" or each["name"].startswith("method")]
for check in checks:
    print("inside:", check["name"], check["state"], check["detail"])
sys.exit(len(checks) < 8 or any(check["state"] != "ok" for check in checks))
'
kill -TERM "$agent"
wait "$agent"
grep -q '"event": "stopped"' /tmp/agent.log
echo 'inside: stopped in order'
