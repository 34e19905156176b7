#!/bin/sh
# The fault suite outside of `make test`.
#
#   packaging/faults.sh guarantees    every row once, then the table of docs/guarantees.md is written
#   packaging/faults.sh soak          the random walk, over three brokers, each with default sync and with sync_interval: always
#   packaging/faults.sh walk          one schedule: SALLY_SEED=N
#   packaging/faults.sh oldest        the rows that depend on the broker, with the oldest that is supported
#
# SALLY_GUARANTEES=FILE keeps the numbers: first with soak, then with guarantees, and the table has both.
# Environment: SOAK_MINUTES (30, over all), SOAK_SEED (the first seed), SALLY_NATS_SERVER (walk and guarantees: this broker).
set -eu

cd "$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)"
CARGO=${CARGO:-cargo}
OLDEST=2.10.27
NEWEST=2.15.1

# The programs are built with the suite: what it drives stands beside it.
rows() { # filter, then arguments of the test program
    filter=$1
    shift
    $CARGO build --quiet --workspace
    $CARGO test --quiet --package sally-tests --test suite -- "$filter" "$@"
}

server() { # version: the path of that broker
    packaging/get-nats-server.sh "$1" >&2
    echo "$PWD/${SALLY_BUILD_DIR:-build}/nats-server/$1/nats-server"
}

case "${1:-}" in
    guarantees)
        numbers=${SALLY_GUARANTEES:-}
        if [ -z "$numbers" ]; then
            numbers=$(mktemp)
            trap 'rm -f "$numbers"' EXIT
        fi
        SALLY_GUARANTEES=$numbers rows faults::rows::
        SALLY_GUARANTEES=$numbers rows faults::table::write_the_table --ignored
        ;;
    soak)
        minutes=${SOAK_MINUTES:-30}
        each=$(awk "BEGIN { print $minutes / 6 }")
        failed=0
        for version in $OLDEST 2.12.8 $NEWEST; do
            SALLY_NATS_SERVER=$(server "$version")
            export SALLY_NATS_SERVER
            for sync in default always; do
                echo "== nats-server $version, sync $sync, $each minutes"
                SALLY_TEST_SYNC=$sync SOAK_MINUTES=$each rows faults::rows::everything_at_random --nocapture || failed=1
            done
        done
        exit $failed
        ;;
    walk)
        : "${SALLY_SEED:?the seed of the schedule}"
        rows faults::rows::everything_at_random --nocapture
        ;;
    oldest)
        SALLY_NATS_SERVER=$(server $OLDEST)
        export SALLY_NATS_SERVER
        rows faults::rows::broker_ faults::rows::link_ faults::rows::messages_ faults::rows::many_ faults::rows::everything
        ;;
    *)
        sed -n 's/^#   /  /p' "$0" >&2
        exit 2
        ;;
esac
