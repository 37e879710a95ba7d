#!/usr/bin/env bash
# Install nibbled on this machine, or bring an installation up to date; running it again changes nothing that is right.
#
#   install.sh [--wheelhouse DIR] [--profile NAME] [--device-id ID] [--harden] [--no-start] ...
#   install.sh --switch VERSION      go to another version that is still installed, and back
#   install.sh --uninstall [--purge] --purge takes configuration, journal and models too
#
# Every version has a folder of its own under PREFIX/versions; PREFIX/bin points at the one in use and is switched when
# the new one has proved that it starts. What fails before that leaves the old one running. Configuration
# (/etc/nibbled) and state (/var/lib/nibbled: journal, models) belong to no version and are not touched.
set -euo pipefail
umask 022
# The service will not have them: what they add must not be taken for a part of the installation.
unset PYTHONPATH PYTHONHOME

usage() {
    sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//'
    cat <<'TEXT'

  --wheelhouse DIR   take all packages from DIR, which deploy/wheelhouse.sh fills; no network is used
  --index URL        another package index, such as that of the Jetson AI Lab for torch and bitsandbytes
  --package SPEC     what to install instead of this tree: "nibbled==0.1.0", a wheel
  --profile NAME     configuration to start from (configs/NAME.toml); never over one that exists
  --device-id ID     written into a new configuration; default: the host's name
  --python PYTHON    3.10 to 3.13, the one that the box's torch belongs to; default: python3
  --without-model    no torch and bitsandbytes: the supervisor alone
  --harden           a drop-in that allows the GPU nodes found here and no other device
  --no-start         neither enable nor start the service
  --root DIR         write below DIR, as for an image; starts nothing
  --prefix DIR       default: /opt/nibbled
  --packaged         unit files, man pages and links to the programs belong to a package that called this
TEXT
}

say() { printf 'install: %s\n' "$*"; }
fail() {
    printf 'install: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
# In the source tree this script lies in deploy/; in the package beside its data.
tree=$here
[ -e "$here/../pyproject.toml" ] && tree=$(cd "$here/.." && pwd)
prefix=/opt/nibbled root='' wheelhouse='' index='' package='' profile=nibbled device_id='' python=python3
with_model=yes harden=no start=yes action=install purge=no version='' units=/etc/systemd/system packaged=no
programs=/usr/local

while [ $# -gt 0 ]; do
    case $1 in
    --wheelhouse | --index | --package | --profile | --device-id | --python | --root | --prefix | --switch)
        [ $# -ge 2 ] || fail "$1 needs a value" ;;
    esac
    case $1 in
    --wheelhouse) wheelhouse=$2; shift ;;
    --index) index=$2; shift ;;
    --package) package=$2; shift ;;
    --profile) profile=$2; shift ;;
    --device-id) device_id=$2; shift ;;
    --python) python=$2; shift ;;
    --root) root=${2%/}; shift ;;
    --prefix) prefix=$2; shift ;;
    --switch) action=switch version=$2; shift ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    --packaged) packaged=yes ;;
    --without-model) with_model=no ;;
    --harden) harden=yes ;;
    --no-start) start=no ;;
    -h | --help) usage; exit 0 ;;
    *) fail "unknown argument $1" "see install.sh --help" ;;
    esac
    shift
done
[ -z "$root" ] || start=no
case $prefix in /*/*) ;; *) fail "--prefix $prefix: expected a folder of its own, as /opt/nibbled" ;; esac
[ -z "$wheelhouse" ] || wheelhouse=$(cd "$wheelhouse" && pwd) || fail "no such folder"

managed() { [ -z "$root" ] && [ -d /run/systemd/system ]; }
is_tegra() { [ -e "$root/etc/nv_tegra_release" ] || grep -qs tegra "$root/proc/device-tree/compatible"; }

names() { # of the files given, without folder and .toml; two of configs/ are no configurations
    local file
    for file in "$@"; do
        file=${file##*/}
        case $file in '*' | matrix.toml | rollout.toml) ;; *) printf ' %s' "${file%.toml}" ;; esac
    done
}

check_arguments() {
    [ "$purge" = no ] || [ "$action" = uninstall ] || fail "--purge goes with --uninstall" "see install.sh --help"
    [ "$action" = install ] || return 0
    case "$(names "$tree"/configs/*.toml) " in
    *" $profile "*) ;;
    *) fail "no profile $profile" "there are:$(names "$tree"/configs/*.toml)" ;;
    esac
    [ -z "$device_id" ] || [[ $device_id =~ ^[A-Za-z0-9_-]{1,64}$ ]] ||
        fail "--device-id $device_id: expected 1 to 64 of A-Z a-z 0-9 _ -"
}

check_machine() {
    [ "$(id -u)" = 0 ] || fail "this needs root" "sudo $0 ..."
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null ||
        fail "$python is no Python 3.10 to 3.13" "name one with --python"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python cannot make environments" "apt-get install python3-venv"
    if managed; then
        local number
        number=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
        [ "${number:-0}" -ge 247 ] || fail "systemd ${number:-?} is too old; 247 is the first with LoadCredential="
    fi
}

# The box's own torch is the one that knows its GPU: what pip would bring instead does not. It is seen through
# --system-site-packages and held where it is by a constraint.
found_torch() { "$python" -c 'import torch; print(torch.__version__)' 2>/dev/null || true; }

make_environment() {
    local target=$1 constraints spec=${package:-$tree} extra='' torch options=(--quiet --disable-pip-version-check)
    constraints=$(mktemp)
    torch=$(found_torch)
    if [ -n "$torch" ]; then
        say "keeping torch $torch of $python"
        printf 'torch==%s\n' "$torch" >"$constraints"
    fi
    [ "$with_model" = no ] || extra='[model]'
    if [ -n "$wheelhouse" ]; then
        options+=(--no-index --find-links "$wheelhouse")
        [ -n "$package" ] || spec=nibbled
    fi
    [ -z "$index" ] || options+=(--extra-index-url "$index")
    rm -rf "$target.new"
    "$python" -m venv ${torch:+--system-site-packages} "$target.new"
    if ! "$target.new/bin/python" -m pip install "${options[@]}" --constraint "$constraints" "$spec$extra"; then
        rm -rf "$target.new" "$constraints"
        fail "the packages could not be installed; what was installed before still is" \
            "torch 2.6 or newer is needed: the box has ${torch:-none}. Jetson: install the torch of your JetPack, or" \
            "name the Jetson AI Lab index with --index. Without network: --wheelhouse."
    fi
    rm -f "$constraints"
}

# bitsandbytes of the Python package index is built for Arm servers (SBSA). On JetPack 6 and older it can be imported,
# and its first kernel ends with "named symbol not found": only a kernel that ran proves anything.
check_model() {
    [ "$with_model" = yes ] || return 0
    "$1" - <<'CODE' || fail "torch and bitsandbytes do not work together here; what was installed before still is" \
        "Jetson with JetPack 6: take bitsandbytes from the Jetson AI Lab index (--index), or build it on the box:" \
        "  cmake -DCOMPUTE_BACKEND=cuda -DCOMPUTE_CAPABILITY=87 -S . && make && pip wheel .   (72: Xavier, 87: Orin)" \
        "  and put the wheel into the wheelhouse." \
        "JetPack 7 and servers: the wheel of the Python package index is the right one."
import torch, bitsandbytes.functional as f
device = "cuda" if torch.cuda.is_available() else "cpu"
weight = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
error = (f.dequantize_4bit(*f.quantize_4bit(weight, quant_type="nf4")) - weight).abs().max().item()
print(f"install: torch {torch.__version__}, bitsandbytes quantizes on {device}")
raise SystemExit(not error < 0.2)
CODE
}

LOAD='
import pathlib, sys
from agent import settings
try:
    settings.load(pathlib.Path(sys.argv[1]))
except settings.ConfigError as error:
    raise SystemExit(f"install: {error}")
'

# In the environment of the service, not in that of this shell: a variable NIBBLED_... of an operator would be refused, or
# hide what the service will refuse. What it will get as credentials counts as given; -I: a source tree to stand in is not
# what was installed.
accepts_configuration() { # VERSION
    env -i PATH="$PATH" CREDENTIALS_DIRECTORY="$root/etc/nibbled/credentials" \
        "$root$prefix/versions/$1/bin/python" -I -c "$LOAD" "$root/etc/nibbled/nibbled.toml"
}

switch_to() {
    local name=$1
    [ -x "$root$prefix/versions/$name/bin/nibbled" ] ||
        fail "version $name is not installed" "installed:$(names "$root$prefix"/versions/*)"
    accepts_configuration "$name" ||
        fail "version $name is installed and not in use: it refuses /etc/nibbled/nibbled.toml" \
            "mend it, then: $0 --switch $name"
    ln -sfn "versions/$name/bin" "$root$prefix/bin.new"
    mv -T "$root$prefix/bin.new" "$root$prefix/bin"
    say "version $name is in use"
}

link() { # TARGET FILE; what is there already and not ours stays
    case $(readlink "$root$2" || ls "$root$2" 2>/dev/null) in
    "$1") ;;
    '' | "$prefix"/*) ln -sfn "$1" "$root$2" && say "linked $2" ;;
    *) say "kept $2, which is not this one" ;;
    esac
}

# The programs and their man pages, where people's shells look. Through bin they lead into the version in use.
link_programs() {
    local source target
    for source in "$root$prefix"/bin/{nibbled,nibblectl} "$root$prefix"/bin/../share/man/man1/nibble*.1; do
        [ -e "$source" ] || continue
        case $source in
        *.1) target=$programs/share/man/man1 ;;
        *) target=$programs/bin ;;
        esac
        mkdir -p "$root$target"
        target+=/${source##*/}
        link "${source#"$root"}" "$target"
    done
}

unlink_programs() {
    local link
    for link in "$root$programs"/bin/nibble{d,ctl} "$root$programs"/share/man/man1/nibble*.1; do
        case $(readlink "$link") in "$prefix"/*) rm -f "$link" ;; esac
    done
}

write() { # FILE MODE, content on stdin; says only what changed
    local file=$root$1 new
    mkdir -p "$(dirname "$file")"
    new=$(mktemp "$file.XXXXXX")
    cat >"$new"
    chmod "$2" "$new"
    if cmp -s "$new" "$file"; then rm "$new"; else mv "$new" "$file" && say "wrote $1"; fi
}

install_units() {
    local file
    if [ "$packaged" = no ]; then
        for file in nibbled.service nibbled.slice nibbled-watch.path nibbled-watch.service; do
            sed "s|/opt/nibbled/|$prefix/|" "$tree/systemd/$file" | write "$units/$file" 644
        done
        write /usr/lib/sysusers.d/nibbled.conf 644 <"$tree/systemd/nibbled.sysusers"
        write /usr/lib/tmpfiles.d/nibbled.conf 644 <"$tree/systemd/nibbled.tmpfiles"
    fi
    systemd-sysusers ${root:+"--root=$root"} nibbled.conf
    systemd-tmpfiles ${root:+"--root=$root"} --create nibbled.conf
}

install_configuration() {
    local file=/etc/nibbled/nibbled.toml
    if [ -e "$root$file" ]; then say "kept $file"; return; fi
    device_id=${device_id:-$(uname -n | tr -c 'A-Za-z0-9_\n-' - | cut -c1-64)}
    "$python" - "$tree/configs/$profile.toml" "$device_id" <<'CODE' | write "$file" 640
import pathlib, re, sys
text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
text, found = re.subn('(?m)^device_id = "[^"]*"', lambda _: f'device_id = "{sys.argv[2]}"', text, count=1)
sys.stdout.reconfigure(encoding="utf-8")
sys.stdout.write(text if found else f'device_id = "{sys.argv[2]}"\n{text}')
CODE
    chgrp nibbled "$root$file" 2>/dev/null || chown "0:$(sed -n 's/^nibbled:[^:]*:\([0-9]*\):.*/\1/p' "$root/etc/group")" "$root$file"
}

# A line for a file that is not there would keep the service from starting, so the lines are made from what is there.
install_dropins() {
    local folder=$units/nibbled.service.d file node lines=''
    for file in "$root"/etc/nibbled/credentials/*; do
        [ -f "$file" ] && lines+="LoadCredential=$(basename "$file"):${file#"$root"}"$'\n'
    done
    if [ -n "$lines" ]; then
        printf '# Written by install.sh; run it again when a file was added or taken away.\n[Service]\n%s' "$lines" | write "$folder/10-credentials.conf" 644
    else
        rm -f "$root$folder/10-credentials.conf"
    fi
    if [ -x "$root/usr/bin/nvidia-modprobe" ] && ! is_tegra; then
        # The service may not load modules itself, and CUDA would ask for nvidia_uvm.
        printf '[Service]\nExecStartPre=+-/usr/bin/nvidia-modprobe -u -c0\n' | write "$folder/20-modprobe.conf" 644
    fi
    if [ "$harden" = yes ]; then
        {
            printf '# Written by install.sh --harden from the nodes of this box; run it again after an update of the driver.\n'
            printf '[Service]\nDevicePolicy=closed\n'
            for node in "$root"/dev/nvidia* "$root"/dev/nvidia-caps/* "$root"/dev/nvmap "$root"/dev/nvhost* "$root"/dev/nvgpu/*/* "$root"/dev/nvsciipc "$root"/dev/dri/*; do
                if [ -c "$node" ]; then printf 'DeviceAllow=%s rw\n' "${node#"$root"}"; fi
            done
            # Nodes that a driver makes later belong to these classes; a class that this kernel lacks is passed over.
            printf 'DeviceAllow=char-nvidia rw\nDeviceAllow=char-nvidia-frontend rw\nDeviceAllow=char-nvidia-uvm rw\nDeviceAllow=char-drm rw\n'
        } | write "$folder/30-devices.conf" 644
    fi
}

install() {
    check_machine
    local number target
    number=$("$python" - "$tree" "$wheelhouse" <<'CODE'
import pathlib, re, sys
tree, wheels = map(pathlib.Path, sys.argv[1:])
source = tree / "agent" / "__init__.py"
found = re.search(r'__version__ = "([^"]+)"', source.read_text()) if source.exists() else None
names = sorted(wheels.glob("nibbled-*.whl")) if sys.argv[2] else []
print(names[-1].name.split("-")[1] if names else found[1] if found else "")
CODE
    )
    [ -z "$package" ] || number=$(printf '%s' "$package" | sed -n 's/.*nibbled[=-]*\([0-9][^-]*\).*/\1/p')
    [ -n "$number" ] || fail "nothing to install here" "give --wheelhouse or --package"
    target=$root$prefix/versions/$number
    if [ -x "$target/bin/nibbled" ] && [ "$("$target/bin/python" "$target/bin/nibbled" --version 2>/dev/null | awk '{print $NF}')" = "$number" ] && [ -z "$package" ]; then
        say "version $number is installed already"
    else
        mkdir -p "$(dirname "$target")"
        make_environment "$target"
        check_model "$target.new/bin/python"
        # Scripts name the interpreter by its path.
        grep -rlIF "$target.new" "$target.new/bin" "$target.new/pyvenv.cfg" | xargs sed -i "s|$target.new|${target#"$root"}|g"
        rm -rf "$target"
        mv "$target.new" "$target"
    fi
    install_units
    install_configuration
    install_dropins
    switch_to "$number"
    [ "$packaged" = yes ] || link_programs
    restart
}

restart() {
    managed || return 0
    systemctl daemon-reload
    [ "$start" = yes ] || return 0
    systemctl enable --quiet nibbled.service nibbled-watch.path
    systemctl start nibbled-watch.path
    systemctl restart nibbled.service || fail "the service does not start" "journalctl -u nibbled -n 50"
    say "nibbled runs; systemctl status nibbled"
}

uninstall() {
    [ "$(id -u)" = 0 ] || fail "this needs root"
    if managed; then
        systemctl disable --now --quiet nibbled.service nibbled-watch.path 2>/dev/null || true
    fi
    if [ "$packaged" = no ]; then
        rm -f "$root$units"/nibbled.{service,slice} "$root$units"/nibbled-watch.{path,service} \
            "$root"/usr/lib/{sysusers,tmpfiles}.d/nibbled.conf
        unlink_programs
    fi
    rm -f "$root$units"/nibbled.service.d/{10-credentials,20-modprobe,30-devices}.conf
    rm -rf "$root$prefix"
    rmdir "$root$units/nibbled.service.d" 2>/dev/null || true
    if managed; then systemctl daemon-reload; fi
    if [ "$purge" = yes ]; then
        rm -rf "$root/etc/nibbled" "$root/var/lib/nibbled"
        say "configuration, journal and models are gone"
    else
        say "kept /etc/nibbled and /var/lib/nibbled; --purge takes them too"
    fi
}

check_arguments
case $action in
install) install ;;
switch) switch_to "$version" && restart ;;
uninstall) uninstall ;;
esac
