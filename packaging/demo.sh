#!/bin/bash
# The demo: a broker, a controller and three agents on this machine, one script run on all of them inside a sandbox, its
# answers as a table and as JSON; then everything is stopped. State is kept in build/demo.
#
# Environment: TARGET_DIR (default: target), SALLY_DEMO_DIR (default: build/demo).
set -euo pipefail

cd "$(dirname "$0")/.."
sally=${TARGET_DIR:-target}/debug/sally
dir=${SALLY_DEMO_DIR:-build/demo}
script=examples/host-inventory.sh
READY_SECONDS=60
STOP_SECONDS=20

say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] && [ -z "${NO_COLOR:-}" ] || say() { printf '\n%s\n' "$*" >&2; }

mkdir -p "$dir"
out=$(mktemp "$dir/up.out.XXXXXX")
up=
# Ends the one process that this script started; it ends all that it started itself.
stop() {
    status=$?
    trap - EXIT
    if [ -n "$up" ] && kill -TERM "$up" 2>/dev/null; then
        # A bound: without it a demo that cannot stop would hang. One process, so that ending it leaves none behind.
        sleep "$STOP_SECONDS" &
        watchdog=$! ended=0
        wait -n "$up" "$watchdog" || ended=$?
        if kill -KILL "$up" 2>/dev/null || [ "$ended" -ne 0 ]; then
            [ "$status" -ne 0 ] || status=1
            echo "demo: sally up did not end cleanly" >&2
        fi
        kill "$watchdog" 2>/dev/null || true
        wait || true
    fi
    rm -f "$out"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "sally up --dir $dir --agents 3"
"$sally" up --dir "$dir" --agents 3 >"$out" &
up=$!
deadline=$((SECONDS + READY_SECONDS))
until grep -qx ready "$out"; do
    kill -0 "$up" 2>/dev/null || { up=; echo "demo: sally up ended before it was ready" >&2; exit 1; }
    [ "$SECONDS" -lt "$deadline" ] || { echo "demo: not ready after $READY_SECONDS s" >&2; exit 1; }
    sleep 0.05
done

run=("$sally" --context "$dir/context.toml" run --all --profile host "$script")

say "sally run --all --profile host $script"
"${run[@]}"

say "the same with -o json: one of the answers"
if command -v jq >/dev/null; then
    "${run[@]}" -o json | jq '.runs[0] | {agent, state, result_state, result, sandbox}'
else
    "$sally" --context "$dir/context.toml" run -a local-1 --profile host "$script" -o json
fi

say "stopping"
