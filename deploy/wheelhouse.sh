#!/usr/bin/env bash
# Fill DIR with the packages that install.sh --wheelhouse takes, on a machine with network and the device's own
# architecture and Python. torch is not among them unless --with-torch: a Jetson brings its own.
#
#   wheelhouse.sh DIR [--python PYTHON] [--index URL] [--with-torch]
set -euo pipefail
tree=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 1 ] || { sed -n '2,5p' "$0" | sed 's/^# \{0,1\}//'; exit 2; }
into=$1 python=python3 options=(--quiet --disable-pip-version-check --constraint "$tree/constraints.txt") with_torch=no
shift
while [ $# -gt 0 ]; do
    case $1 in
    --python) python=$2; shift ;;
    --index) options+=(--extra-index-url "$2"); shift ;;
    --with-torch) with_torch=yes ;;
    *) printf 'wheelhouse: unknown argument %s\n' "$1" >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$into"
"$python" -m pip wheel "${options[@]}" --wheel-dir "$into" "$tree"
# Without its dependencies, of which torch is one. torch 2.13 needs a newer setuptools than environments are made with
# before Python 3.12.
"$python" -m pip download "${options[@]}" --no-deps --dest "$into" bitsandbytes packaging setuptools
[ "$with_torch" = no ] || "$python" -m pip download "${options[@]}" --dest "$into" torch
