#!/usr/bin/env bash
# Build a .deb for this machine's architecture with dpkg-deb: the wheels, the installer, the units. Its maintainer scripts
# call install.sh, so that a package and a wheelhouse end in the same installation.
#
#   build.sh WHEELHOUSE OUTPUT_DIR
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,5p' "$0" | sed 's/^# \{0,1\}//'; exit 2; }
tree=$(cd "$(dirname "$0")/../.." && pwd)
wheels=$(cd "$1" && pwd)
mkdir -p "$2"
output=$(cd "$2" && pwd)
wheel=$(find "$wheels" -name 'nibbled-*.whl' | sort | tail -1)
[ -n "$wheel" ] || { printf 'build: no nibbled wheel in %s; see deploy/wheelhouse.sh\n' "$wheels" >&2; exit 1; }
version=$(basename "$wheel" | cut -d- -f2)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
umask 022

share=$root/usr/share/nibbled
install -D -m 755 "$tree/deploy/install.sh" "$share/install.sh"
install -d "$share/configs" "$share/systemd" "$share/wheels"
install -m 644 "$tree"/configs/*.toml "$share/configs"
install -m 644 "$tree"/systemd/* "$share/systemd"
# One nibbled, and no torch that would take the place of the box's own.
find "$wheels" -name '*.whl' ! -name 'nibbled-*' ! -name 'torch-*' -exec install -m 644 {} "$share/wheels" \;
install -m 644 "$wheel" "$share/wheels"
for unit in nibbled.service nibbled.slice nibbled-watch.path nibbled-watch.service; do
    install -D -m 644 "$tree/systemd/$unit" "$root/lib/systemd/system/$unit"
done
install -D -m 644 "$tree/systemd/nibbled.sysusers" "$root/usr/lib/sysusers.d/nibbled.conf"
install -D -m 644 "$tree/systemd/nibbled.tmpfiles" "$root/usr/lib/tmpfiles.d/nibbled.conf"
for page in "$tree"/docs/man/*.1; do
    install -d "$root/usr/share/man/man1"
    gzip -9n <"$page" >"$root/usr/share/man/man1/${page##*/}.gz"
done
install -d "$root/usr/bin"
ln -s /opt/nibbled/bin/nibbled /opt/nibbled/bin/nibblectl "$root/usr/bin"
install -D -m 644 "$tree/README.md" "$root/usr/share/doc/nibbled/README.md"
cat >"$root/usr/share/doc/nibbled/copyright" <<'COPYRIGHT'
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: nibbled

Files: *
Copyright: the nibbled developers
License: Apache-2.0
 On Debian systems the text of this license is in
 /usr/share/common-licenses/Apache-2.0. The wheels below /usr/share/nibbled
 carry their own licenses.
COPYRIGHT
gzip -9n <"$tree/CHANGELOG.md" >"$root/usr/share/doc/nibbled/changelog.gz"
chmod 644 "$root"/usr/share/doc/nibbled/*

install -d "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: nibbled
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: nibbled developers <nibbled@example.com>
Section: net
Priority: optional
Depends: python3 (>= 3.10), python3-venv, systemd (>= 247)
Installed-Size: $(du -sk "$root" | cut -f1)
Description: deploys, quantizes and serves PyTorch models on edge GPUs
 Driven over MQTT: downloads a signed checkpoint, quantizes it to four bits on
 the device, proves the result and serves it with the Open Inference Protocol.
 The torch that the box has is used and never replaced.
CONTROL
# postinst runs for a first installation, an upgrade and a downgrade alike. Configuration and state belong to no version.
cat >"$root/DEBIAN/postinst" <<'POSTINST'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    /usr/share/nibbled/install.sh --packaged --wheelhouse /usr/share/nibbled/wheels
fi
POSTINST
cat >"$root/DEBIAN/prerm" <<'PRERM'
#!/bin/sh
set -e
if [ "$1" = remove ]; then
    /usr/share/nibbled/install.sh --packaged --uninstall
fi
PRERM
cat >"$root/DEBIAN/postrm" <<'POSTRM'
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    rm -rf /etc/nibbled /var/lib/nibbled
fi
POSTRM
chmod 755 "$root"/DEBIAN/p*
# Wheels are compressed already: xz would take minutes to save nothing.
dpkg-deb --root-owner-group -Zgzip -z1 --build "$root" "$output" >/dev/null
printf '%s\n' "$output/nibbled_${version}_$(dpkg --print-architecture).deb"
