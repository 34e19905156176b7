#!/bin/sh
# Builds the optimised programs: `sally`, and `sally-agent` static, so that one file runs on any Linux of this architecture.
#
# The agent is built against musl when the toolchain has that target; otherwise against a static glibc. It says which.
set -eu

CARGO=${CARGO:-cargo}
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$here"
target_dir=${CARGO_TARGET_DIR:-target}
arch=$(uname -m)

say() { printf 'release: %s\n' "$*" >&2; }

has_target() { [ -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ]; }

"$CARGO" build --release --package sally

musl=$arch-unknown-linux-musl
gnu=$arch-unknown-linux-gnu
if has_target "$musl"; then
    target=$musl
    say "the agent is built static against musl ($target)"
    if ! command -v musl-gcc >/dev/null 2>&1; then
        # The C in the agent is the cryptography's, which calls nothing of the C library but memory functions. Without
        # fortification a plain compiler makes the same of it; anything more would fail to link, not to run.
        export "CC_${arch}_unknown_linux_musl=${CC:-cc}" "CFLAGS_${arch}_unknown_linux_musl=-U_FORTIFY_SOURCE"
    fi
    "$CARGO" build --release --package sally-agent --target "$target"
else
    target=$gnu
    say "this toolchain has no $musl; the agent is built static against glibc ($target)"
    say "for musl: rustup target add $musl"
    # Naming the target keeps the flag away from build scripts and procedural macros, which cannot be static.
    RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
        "$CARGO" build --release --package sally-agent --target "$target"
fi
agent=$target_dir/$target/release/sally-agent

# An interpreter in the program headers is what makes a program dynamic.
if readelf -lW "$agent" | grep -q INTERP || readelf -dW "$agent" | grep -q NEEDED; then
    say "$agent is not static"
    exit 1
fi
# Beside `sally`, where it looks for the agent. Renamed into place: one that runs cannot be written over.
cp "$agent" "$target_dir/release/.sally-agent.$$"
mv -f "$target_dir/release/.sally-agent.$$" "$target_dir/release/sally-agent"
say "$target_dir/release/sally and $target_dir/release/sally-agent (static) are ready"
