#!/bin/sh
# Builds the programs that packages hold: optimised, static, without symbols, the same bytes wherever they are built from
# the same sources by the same toolchain. Prints the folder that has them.
#
# Against musl when the toolchain has that target, else against a static glibc; it says which. Environment: ARCH (amd64 or
# arm64; default: this machine's), CARGO, CARGO_TARGET_DIR (default: target).
set -eu

CARGO=${CARGO:-cargo}
cd "$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)"
say() { printf 'static: %s\n' "$*" >&2; }

machine=$(uname -m)
case "${ARCH:-$machine}" in
    amd64 | x86_64) cpu=x86_64 ;;
    arm64 | aarch64) cpu=aarch64 ;;
    *) say "ARCH is '$ARCH': it can be amd64 or arm64"; exit 2 ;;
esac

has_target() { [ -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ]; }
if has_target "$cpu-unknown-linux-musl"; then
    target=$cpu-unknown-linux-musl
    if ! command -v musl-gcc >/dev/null 2>&1; then
        # SQLite calls the C library, so plain headers of another one will not do.
        say "the toolchain has $target, but there is no musl-gcc for the C in it (Debian: musl-tools)"
        exit 1
    fi
elif has_target "$cpu-unknown-linux-gnu"; then
    target=$cpu-unknown-linux-gnu
    say "this toolchain has no $cpu-unknown-linux-musl; against a static glibc instead"
else
    say "this toolchain builds nothing for $cpu: rustup target add $cpu-unknown-linux-musl"
    exit 1
fi
if [ "$cpu" != "$machine" ]; then
    linker=$cpu-linux-gnu-gcc
    command -v "$linker" >/dev/null 2>&1 || { say "$linker is missing (Debian: gcc-$(echo "$cpu" | tr _ -)-linux-gnu)"; exit 1; }
    upper=$(echo "$target" | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${upper}_LINKER=$linker"
fi

# Where sources were is in panic messages; it is no one's business and differs from machine to machine.
home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=/usr/src/sally --remap-path-prefix=$home=/usr/src/cargo"
export CFLAGS="${CFLAGS:-} -ffile-prefix-map=$PWD=/usr/src/sally -ffile-prefix-map=$home=/usr/src/cargo"
export CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_INCREMENTAL=0
folder=${CARGO_TARGET_DIR:-target}/packages
"$CARGO" build --locked --release --target "$target" --target-dir "$folder" --package sally --package sally-agent >&2
for program in sally sally-agent; do
    file=$folder/$target/release/$program
    # An interpreter in the program headers is what makes a program dynamic.
    if readelf -lW "$file" | grep -q INTERP || readelf -dW "$file" | grep -q NEEDED; then
        say "$file is not static"
        exit 1
    fi
done
echo "$folder/$target/release"
