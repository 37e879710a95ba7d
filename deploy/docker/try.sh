#!/usr/bin/env bash
# Build Dockerfile.cpu and try what came of it, without a daemon and without a registry: buildah in a chroot, and a Debian
# with its own Python (a tar made by mmdebstrap) in the place of the base image. Needs root. What it shows: every step of
# the file, the user, the kernels, the health check, a stop in order. What it does not: the base image, a runtime's walls.
#
#   try.sh BASE_TAR STORE [PATH ...]
#
# STORE keeps the images. Each PATH is one of this machine that pip needs while it builds, such as a mirror's.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'; exit 2; }
tree=$(cd "$(dirname "$0")/../.." && pwd)
base=$(realpath "$1") store=$(realpath -m "$2")
shift 2
export BUILDAH_ISOLATION=chroot BUILDAH_FORMAT=docker STORAGE_DRIVER=vfs
image=nibbled:cpu mounts=()
for path in "$@"; do mounts+=(--volume "$path:$path:ro"); done

run_buildah() { buildah --root "$store/root" --runroot "$store/run" "$@"; }
say() { printf 'try: %s\n' "$*"; }

from=$(sed -n 's/^FROM \([^ ]*\) AS base$/\1/p' "$tree/deploy/docker/Dockerfile.cpu")
if ! run_buildah inspect --type image "docker.io/library/$from" >/dev/null 2>&1; then
    container=$(run_buildah from scratch)
    run_buildah add --quiet "$container" "$base" / >/dev/null
    run_buildah run "$container" -- ln -sf /usr/bin/python3 /usr/local/bin/python
    run_buildah config --env PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "$container"
    run_buildah commit --quiet --rm "$container" "docker.io/library/$from" >/dev/null
    say "Debian's Python stands for $from"
fi
begun=$SECONDS
run_buildah bud --pull-never --file "$tree/deploy/docker/Dockerfile.cpu" --tag "$image" \
    ${TORCH_INDEX:+--build-arg "TORCH_INDEX=$TORCH_INDEX"} "${mounts[@]}" "$tree"
say "built in $((SECONDS - begun)) s"

container=$(run_buildah from --pull-never "$image")
trap 'run_buildah rm "$container" >/dev/null' EXIT
# A network of its own, in which only the container listens; chroot isolation would share the machine's.
alone=(unshare --net sh -c 'ip link set lo up && exec "$@"' sh)
"${alone[@]}" buildah --root "$store/root" --runroot "$store/run" run "$container" -- bash -euo pipefail -c "$(cat "$tree/deploy/docker/inside.sh")"
