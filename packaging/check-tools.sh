#!/bin/sh
# Says what is missing to build Sally, or with the argument `test` to test it, and how to get it on Debian. Installs nothing.
set -eu

missing=
packages=
need() {
    command -v "$1" >/dev/null 2>&1 && return
    missing="$missing $1"
    packages="$packages $2"
}

# sqlite and the cryptography are compiled from C.
need cc gcc
if [ "${1:-}" = test ]; then
    # The tests look at the system from outside, and run scripts in Python.
    need ss iproute2
    need jq jq
    need python3 python3
fi

if [ -n "$missing" ]; then
    echo "missing:$missing" >&2
    echo "on Debian, as root: apt-get install$packages" >&2
    exit 1
fi
if ! command -v cargo >/dev/null 2>&1; then
    echo "missing: cargo (Rust 1.94 or newer); see the Rust project's installation page" >&2
    exit 1
fi
