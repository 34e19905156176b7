#!/bin/bash
# Throws bytes at every parser that takes them from a script or the wire, guided by what each input reaches (libFuzzer).
#
#   packaging/fuzz.sh [TARGET]...      default: all, one after the other; --list names them
#
# FUZZ_SECONDS (20) is for each target. Seeds are fuzz/seeds/TARGET and the golden files of the wire; what was found
# interesting stays in fuzz/corpus/TARGET for the next time. An input that breaks something is kept in fuzz/artifacts and
# named; run it again with `packaging/fuzz.sh TARGET FILE`. Make it a seed when it is mended: the test suite runs those.
#
# Built with the stable compiler and without a sanitizer: outside of agent/src/sandbox/sys.rs there is no unsafe code to
# watch. Installs nothing; cargo fetches the crate libfuzzer-sys, whose engine needs a C++ compiler.
set -euo pipefail

CARGO=${CARGO:-cargo}
here=$(cd "$(dirname "$0")/.." && pwd)
seconds=${FUZZ_SECONDS:-20}
cd "$here/fuzz"

say() { printf 'fuzz: %s\n' "$*" >&2; }

case $seconds in '' | *[!0-9]*) say "FUZZ_SECONDS is '$seconds', which is no number of seconds"; exit 2 ;; esac
targets=$(sed -n 's/^    ("\([a-z]*\)", .*/\1/p' src/targets/mod.rs)
if [ "${1:-}" = --list ]; then
    printf '%s\n' "$targets"
    exit 0
fi
command -v c++ >/dev/null 2>&1 || {
    say "missing: c++; on Debian, as root: apt-get install g++"
    exit 1
}

flags='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters'
flags+=' -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1'
# Naming the target keeps the flags away from build scripts and procedural macros.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="${RUSTFLAGS:-} $flags" "$CARGO" build --release --quiet --target "$host" --target-dir "$here/fuzz/target"
program=$here/fuzz/target/$host/release/sally-fuzz

# One input, again.
if [ $# = 2 ] && [ -f "$OLDPWD/$2" -o -f "$2" ]; then
    file=$2
    [ -f "$file" ] || file=$OLDPWD/$2
    SALLY_FUZZ_TARGET=$1 exec "$program" "$file"
fi

golden=$here/common/golden
# The bodies of the golden files, and with their headers and a NUL before them.
golden_seeds() {
    local file
    for file in "$golden"/*.txt "$golden"/*.json; do
        case $1/$file in
            message/*.json) cp "$file" "$2/" ;;
            message/*) sed '1,/^$/d' "$file" >"$2/$(basename "$file")" ;;
            envelope/*.txt) { sed '/^$/,$d' "$file"; printf '\0'; sed '1,/^$/d' "$file"; } >"$2/$(basename "$file")" ;;
        esac
    done
}

failed=()
for target in ${@:-$targets}; do
    grep -qx "$target" <<<"$targets" || { say "no target is called '$target'; they are: $(echo $targets)"; exit 2; }
    seeds=$here/fuzz/target/seeds/$target
    rm -rf "$seeds"
    mkdir -p "$seeds" "corpus/$target" artifacts
    if [ -d "seeds/$target" ]; then cp "seeds/$target"/* "$seeds/"; fi
    golden_seeds "$target" "$seeds"
    log=$here/fuzz/target/$target.log
    status=0
    SALLY_FUZZ_TARGET=$target nice -n 10 "$program" -max_total_time="$seconds" -max_len=8192 -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="$here/fuzz/artifacts/$target-" "corpus/$target" "$seeds" >"$log" 2>&1 || status=$?
    last=$(grep -E '^#[0-9]+' "$log" | tail -n 1)
    if [ "$status" = 0 ]; then
        say "$target: $(sed -E 's/^#([0-9]+).*cov: ([0-9]+).*corp: ([0-9]+).*/\1 inputs, \2 edges, \3 in the corpus/' <<<"$last")"
    else
        failed+=("$target")
        say "$target BROKE:"
        grep -E 'panicked|^  *(left|right)|ERROR:|Test unit written' -A1 "$log" | head -n 20 >&2 || true
    fi
done
[ ${#failed[@]} = 0 ] || { say "broken: ${failed[*]}; the inputs are in fuzz/artifacts"; exit 1; }
