#!/usr/bin/env bash
# Certificates for a fleet with openssl alone: an authority, brokers and other servers, devices, people.
#
#   pki.sh [--dir DIR] ca [NAME]              the authority; once
#   pki.sh [--dir DIR] server NAME [ALIAS...] for a broker or a device's ports; aliases are names or addresses
#   pki.sh [--dir DIR] device ID [--csr FILE] the device id is the common name
#   pki.sh [--dir DIR] operator NAME [--csr FILE]
#   pki.sh [--dir DIR] renew NAME             a new key and certificate in the place of the old ones; --csr FILE for a
#                                             device or a person, ALIAS... to give a server others than it has
#   pki.sh [--dir DIR] revoke NAME            and a new list of what is revoked
#   pki.sh [--dir DIR] crl                    that list again, before it ends
#   pki.sh [--dir DIR] list                   what was issued, until when
#
# Everything lies in DIR (./pki, or PKI_DIR): ca.pem, crl.pem and issued/NAME.pem are public; ca.key and issued/NAME.key
# are not. What exists is kept: a second run changes nothing. With --csr the key stays where the request was made.
# PKI_DAYS (365), PKI_CA_DAYS (3650) and PKI_CRL_DAYS (30) are lives in days.
set -euo pipefail
umask 077

say() { printf 'pki: %s\n' "$*"; }
fail() {
    printf 'pki: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}
usage() { sed -n '2,16p' "$0" | sed 's/^# \{0,1\}//'; }

dir=${PKI_DIR:-pki}
if [ "${1:-}" = --dir ]; then
    [ $# -ge 2 ] || fail "--dir needs a folder"
    dir=$2
    shift 2
fi
verb=${1:-}
[ $# -eq 0 ] || shift
days=${PKI_DAYS:-365} ca_days=${PKI_CA_DAYS:-3650} crl_days=${PKI_CRL_DAYS:-30}
for number in "$days" "$ca_days" "$crl_days"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || fail "$number is no number of days"
done

# One at a time: of two that write openssl's list, one loses its entry, and what is not in it cannot be revoked.
lock() {
    command -v flock >/dev/null || return 0
    exec 9>"$dir/lock"
    flock 9
}

need_authority() {
    { [ -s "$dir/ca.key" ] && [ -s "$dir/ca.pem" ]; } || fail "no authority in $dir" "make one: $0 --dir $dir ca"
    lock
}

# The name becomes a file, a subject and, on a broker, a user and a part of topics.
check_name() {
    [[ $1 =~ ^[A-Za-z0-9_-]{1,64}$ ]] || fail "$1: expected 1 to 64 of A-Z a-z 0-9 _ -, as a device id has"
}
check_host() {
    [[ $1 =~ ^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$ && ${#1} -le 64 ]] || fail "$1 is no host name or address"
}

# openssl's own small authority: index.txt knows what was issued, serials are random, a request's own wishes are ignored.
configure() { # subject alternative names, or nothing
    cat >"$dir/openssl.cnf" <<CONF
[ca]
default_ca = fleet
[fleet]
database = $dir/index.txt
new_certs_dir = $dir/serials
certificate = $dir/ca.pem
private_key = $dir/ca.key
rand_serial = yes
unique_subject = no
default_md = sha256
default_crl_days = $crl_days
policy = names
copy_extensions = none
email_in_dn = no
[names]
organizationalUnitName = supplied
commonName = supplied
[req]
distinguished_name = dn
prompt = no
[dn]
CN = replaced
[authority]
basicConstraints = critical,CA:true,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[client]
basicConstraints = critical,CA:false
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[server]
basicConstraints = critical,CA:false
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
${1:+subjectAltName = $1}
CONF
}

ssl() { # what openssl says is shown where it fails
    local said
    said=$(openssl "$@" 2>&1) || fail "openssl $1 failed" "$said"
}

new_key() { ssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

make_authority() {
    mkdir -p "$dir/issued" "$dir/serials"
    lock
    if [ -s "$dir/ca.pem" ]; then
        say "kept $dir/ca.pem"
        [ -s "$dir/crl.pem" ] || { configure "" && make_list; }
        return
    fi
    [ ! -s "$dir/index.txt" ] || fail "$dir/ca.pem is gone, and its key has signed" "put it back from a copy"
    chmod 755 "$dir" "$dir/issued"
    touch "$dir/index.txt"
    printf 'unique_subject = no\n' >"$dir/index.txt.attr"
    configure ""
    new_key "$dir/ca.key"
    ssl req -new -x509 -config "$dir/openssl.cnf" -extensions authority -key "$dir/ca.key" -sha256 -days "$ca_days" \
        -subj "/CN=$1" -out "$dir/ca.pem.new"
    publish "$dir/ca.pem"
    make_list
}

publish() { # FILE.new in the place of FILE, for everybody to read
    chmod 644 "$1.new"
    mv "$1.new" "$1"
    say "wrote $1"
}

make_list() {
    ssl ca -config "$dir/openssl.cnf" -gencrl -out "$dir/crl.pem.new"
    publish "$dir/crl.pem"
}

role_of() { # the organizational unit of a certificate
    openssl x509 -in "$1" -noout -subject -nameopt multiline | sed -n 's/^ *organizationalUnitName *= //p'
}

state_of() { # V, R or E of a certificate, as index.txt has it
    local serial
    serial=$(openssl x509 -in "$1" -noout -serial)
    awk -F '\t' -v serial="${serial#serial=}" '$4 == serial { print $1 }' "$dir/index.txt"
}

is_valid() { # not revoked, and not ended
    [ "$(state_of "$1")" = V ] && openssl x509 -in "$1" -noout -checkend 0 >/dev/null
}

issue() { # ROLE NAME REQUEST; a request that is empty is made, with a key
    local role=$1 name=$2 request=$3 kind=client stem=$dir/issued/$2
    if [ -z "$request" ]; then
        new_key "$stem.key.new"
        ssl req -new -config "$dir/openssl.cnf" -key "$stem.key.new" -out "$stem.csr"
    else
        ssl req -in "$request" -noout -verify
        cp "$request" "$stem.csr"
    fi
    [ "$role" != servers ] || kind=server
    ssl ca -batch -notext -config "$dir/openssl.cnf" -extensions "$kind" -days "$days" -subj "/OU=$role/CN=$name" \
        -in "$stem.csr" -out "$stem.pem.new"
    rm "$stem.csr"
    # The certificate last: who reads both while they are replaced finds a pair that fits once more a moment later.
    if [ -z "$request" ]; then
        mv "$stem.key.new" "$stem.key"
        say "wrote $stem.key"
    else
        rm -f "$stem.key" # of a certificate before: it fits this one no more
    fi
    publish "$stem.pem"
}

first() { # ROLE NAME REQUEST; what was issued already is kept
    local role=$1 name=$2 request=$3 file=$dir/issued/$2.pem held
    if [ -s "$file" ]; then
        held=$(role_of "$file")
        [ "$held" = "$role" ] || fail "$name is one of the $held already" "a broker tells people, devices and servers apart by their names"
        is_valid "$file" || fail "$file was revoked or has ended" "$0 --dir $dir renew $name"
        [ -z "$request" ] || [ "$(openssl req -in "$request" -noout -pubkey)" = "$(openssl x509 -in "$file" -noout -pubkey)" ] ||
            fail "$file is of another key than $request" "$0 --dir $dir renew $name --csr $request"
        say "kept $file"
        return
    fi
    issue "$@"
}

alternatives() { # names and addresses as a subjectAltName
    local each kind list=''
    for each in "$@"; do
        kind=DNS
        [[ ! $each =~ ^[0-9.]+$|: ]] || kind=IP
        list+=${list:+,}$kind:$each
    done
    printf '%s' "$list"
}

names_of() { # the subjectAltName of a certificate, as `alternatives` writes it
    openssl x509 -in "$1" -noout -ext subjectAltName 2>/dev/null | sed -n 's/IP Address:/IP:/g; s/, /,/g; s/^ *\(\(DNS\|IP\):.*\)/\1/p'
}

known() { # NAME
    [[ $1 != */* && -s $dir/issued/$1.pem ]] || fail "nothing was issued for $1" "$0 --dir $dir list"
}

case $verb in
ca)
    [ $# -le 1 ] || fail "ca takes one name"
    [[ ${1:-nibbled} =~ ^[A-Za-z0-9\ ._-]{1,64}$ ]] || fail "$1 is no name for an authority"
    make_authority "${1:-nibbled authority}"
    ;;
server)
    [ $# -ge 1 ] || fail "server needs the name that clients connect to"
    need_authority
    for host in "$@"; do check_host "$host"; done
    configure "$(alternatives "$@")"
    first servers "$1" ''
    ;;
device | operator)
    [ $# -eq 1 ] || { [ $# -eq 3 ] && [ "$2" = --csr ]; } || fail "$verb takes one name, and --csr FILE"
    need_authority
    check_name "$1"
    [ $# -eq 1 ] || [ -r "$3" ] || fail "no file $3"
    configure ""
    first "${verb}s" "$1" "${3:-}"
    ;;
renew)
    [ $# -ge 1 ] || fail "renew takes one name, and --csr FILE"
    need_authority
    known "$1"
    name=$1 file=$dir/issued/$1.pem request=''
    role=$(role_of "$file") names=$(names_of "$file")
    if [ "$role" = servers ]; then
        for host in "$@"; do check_host "$host"; done
        [ $# -eq 1 ] || names=$(alternatives "$@")
    elif [ $# -eq 3 ] && [ "$2" = --csr ]; then
        request=$3
        [ -r "$request" ] || fail "no file $request"
    else
        [ $# -eq 1 ] || fail "renew takes one name, and --csr FILE"
        [ -e "$dir/issued/$name.key" ] || fail "the key of $name is not here" "give a new request: renew $name --csr FILE"
    fi
    configure "$names"
    issue "$role" "$name" "$request"
    ;;
revoke)
    [ $# -eq 1 ] || fail "revoke takes one name"
    need_authority
    known "$1"
    configure ""
    # An earlier certificate of this name may be valid still: all of them are revoked.
    while read -r serial; do
        ssl ca -config "$dir/openssl.cnf" -revoke "$dir/serials/$serial.pem"
        say "revoked $1, serial $serial"
    done < <(awk -F '\t' -v end="/CN=$1" '$1 == "V" && substr($6, length($6) - length(end) + 1) == end { print $4 }' "$dir/index.txt")
    make_list
    ;;
crl)
    need_authority
    configure ""
    make_list
    ;;
list)
    need_authority
    for file in "$dir"/issued/*.pem; do
        [ -e "$file" ] || continue
        name=${file##*/}
        is_valid "$file" && word=valid || word='revoked or ended'
        printf '%-10s %-32s %s, until %s\n' "$(role_of "$file")" "${name%.pem}" "$word" "$(openssl x509 -in "$file" -noout -enddate | cut -d= -f2)"
    done
    ;;
-h | --help) usage ;;
*)
    usage >&2
    exit 2
    ;;
esac
