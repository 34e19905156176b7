#!/bin/sh
# Puts the programs that make packages into build/packaging-tools, each at one pinned version, built from crates.io with
# the lock file that its authors published. Nothing outside of the build folder is touched; running it again does nothing.
#
# Environment: CARGO, SALLY_BUILD_DIR (default: build beside this folder).
set -eu

CARGO=${CARGO:-cargo}
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
build=${SALLY_BUILD_DIR:-$here/build}
home=$build/packaging-tools

say() { printf 'packaging tools: %s\n' "$*" >&2; }

get() { # crate, version
    if [ -x "$home/bin/$1" ] && grep -qs "^\"$1 $2 " "$home/.crates.toml"; then
        return
    fi
    say "building $1 $2 from crates.io"
    mkdir -p "$home"
    # A plain environment: flags meant for Sally's programs are not meant for these.
    env -u RUSTFLAGS -u CARGO_BUILD_TARGET CARGO_TARGET_DIR="$home/target" CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0 \
        "$CARGO" install --quiet --locked --force --root "$home" --version "=$2" "$1" || {
        say "could not build $1 $2: see the lines above"
        exit 1
    }
}

get cargo-deb 3.8.0
get cargo-generate-rpm 0.21.1
get cargo-cyclonedx 0.5.9
# What they were built from is not needed again.
rm -rf "$home/target"
