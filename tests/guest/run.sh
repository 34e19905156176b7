#!/bin/bash
# The sandbox where control groups are of version 2 and systemd hands them down: limits, attacks and doctor in an emulated
# guest (packaging/guest.sh), as root and as an ordinary user.
#
#   tests/guest/run.sh             everything
#   tests/guest/run.sh --if-changed [COMMIT]   only if sandbox, units or packaging differ from COMMIT (default: the newest one
#                                  that is 12 hours older than this, since what lands is many commits of some hours)
#   tests/guest/run.sh --is-unchanged [COMMIT] only says so by its exit code
#
# SALLY_GUEST_KERNEL=sid boots the newest kernel of Debian instead of 6.1.
set -euo pipefail

CARGO=${CARGO:-cargo}
cd "$(dirname "$0")/../.."
say() { printf 'guest: %s\n' "$*" >&2; }

# What decides how a sandbox behaves on such a host.
watched=(agent/src/sandbox agent/src/local agent/tests packaging tests/guest)

if [ "${1:-}" = --if-changed ] || [ "${1:-}" = --is-unchanged ]; then
    base=${2:-}
    if [ -z "$base" ]; then
        # Without one (a shallow clone, a young project) everything is taken as changed.
        base=$(git rev-list -1 --before=$(($(git log -1 --format=%ct) - 12 * 3600)) HEAD)
    fi
    unchanged=no
    if [ -n "$base" ] && git diff --quiet "$base" -- "${watched[@]}"; then unchanged=yes; fi
    if [ "$1" = --is-unchanged ]; then [ $unchanged = yes ] && exit 0 || exit 1; fi
    if [ $unchanged = yes ]; then
        say "SKIP: nothing in ${watched[*]} changed since $(git rev-parse --short "$base"); make guest runs it all the same"
        exit 0
    fi
    if ! packaging/guest.sh --check; then
        say "SKIP: the sandbox changed, but no guest can be made here (see above): control groups of version 2 are NOT tested"
        exit 0
    fi
fi

build=$("$CARGO" test --no-run --package sally-agent --bin sally-agent --test limits --test attacks --test profiles --message-format json)
program() { sed -n "s/.*\"name\":\"$1\",.*\"executable\":\"\([^\"]*\)\".*/\1/p" <<<"$build" | tail -n 1; }
"$CARGO" build --package sally-agent
agent=${CARGO_TARGET_DIR:-$PWD/target}/debug/sally-agent
# The attacker is made by the first attack, with this machine's compiler.
"$(program attacks)" --exact bpf >/dev/null
attacker=${CARGO_TARGET_DIR:-$PWD/target}/tmp/attacker

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in limits attacks profiles; do strip -o "$work/$name" "$(program $name)"; done
strip -o "$work/sally-agent" "$agent"
# Where the tests, which were built here, look for it.
packaging/guest.sh --kernel "${SALLY_GUEST_KERNEL:-bookworm}" --put "$work/limits:/root/limits" --put "$work/attacks:/root/attacks" --put "$work/profiles:/root/profiles" \
    --put "$work/sally-agent:$agent" --put "$attacker" --put tests/guest/unit.sh:/root/unit.sh \
    --put tests/guest/inside.sh:/root/inside.sh -- /root/inside.sh "$agent"
