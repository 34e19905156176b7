#!/bin/bash
# Becomes a command in a control group of its own that belongs to a user, as a unit with `Delegate=yes` has one.
#
#   unit.sh UID COMMAND [ARG]...
#
# A scope and not a service: the process stays the caller's child, whom tests wait for and signal.
set -euo pipefail

if [ "${SALLY_IN_SCOPE:-}" != yes ]; then
    exec env SALLY_IN_SCOPE=yes systemd-run --quiet --scope --collect --property=Delegate=yes -- "$0" "$@"
fi
uid=$1
shift
group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
# What systemd gives to the user of a delegated service.
chown "$uid:$uid" "$group" "$group"/cgroup.{procs,threads,subtree_control}
exec env -u SALLY_IN_SCOPE "$@"
