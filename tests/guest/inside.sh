#!/bin/bash
# What run.sh has done inside the guest. Prints a judgement for each part; the exit code is 0 if all are good.
#
#   inside.sh AGENT
set -uo pipefail
agent=$1
cd /tmp
export SALLY_TEST_UNIT=/root/unit.sh SALLY_LOG=warn RUST_BACKTRACE=0
verdicts=()

judge() {
    local name=$1 since=$SECONDS status=0
    shift
    echo "== $name"
    "$@" || status=$?
    verdicts+=("$(printf '%-44s %4d s  %s' "$name" $((SECONDS - since)) "$([ $status = 0 ] && echo passed || echo FAILED)")")
    [ $status = 0 ] || failed=1
}
failed=0

# What a launcher in a unit of its own would have: everything that control groups give.
doctor_in_a_unit() {
    local user=$1 text
    text=$(systemd-run --quiet --wait --pipe --property=Delegate=yes --property=User="$user" "$agent" doctor) || return 1
    echo "$text"
    grep -q '^PASS  control groups' <<<"$text"
}
# In a group with others it takes nothing, and says what to do.
doctor_beside_others() {
    local text
    text=$(systemd-run --quiet --wait --pipe --property=Delegate=yes sh -c "sleep 300 & other=\$!; '$agent' doctor; kill \$other") || return 1
    grep -A1 '^WARN  control groups' <<<"$text"
}

# A name that no test has would pass with nothing run.
attacks() {
    local log=/tmp/attacks.log status=0
    /root/attacks --exact --nocapture every_attack_is_refused_in_a_unit >$log 2>&1 || status=$?
    grep -v '^$' $log
    [ $status = 0 ] && grep -q 'ok. 1 passed' $log
}
in_whole_groups() {
    local log=/tmp/limits.log status=0
    /root/limits --test-threads 1 >$log 2>&1 || status=$?
    cat $log
    [ $status = 0 ] && grep -q 'test in_a_unit_of_its_own_a_launcher_has_whole_groups ... .*ok$' <(tr '\n' ' ' <$log | sed 's/ test /\ntest /g')
}

# The share of the processors and the rates of the disks that an operator's profile sets.
rates() {
    local log=/tmp/rates.log status=0
    /root/profiles --exact --nocapture limits_rates_and_required_layers_are_the_definitions >$log 2>&1 || status=$?
    cat $log
    [ $status = 0 ] && grep -q 'ok. 1 passed' $log
}

echo "kernel $(uname -r), $(systemctl --version | head -n 1), controllers: $(cat /sys/fs/cgroup/cgroup.controllers)"
judge "doctor in a unit, as root" doctor_in_a_unit root
judge "doctor in a unit, as an ordinary user" doctor_in_a_unit nobody
judge "doctor in a group with others" doctor_beside_others
judge "limits by control groups of version 2" in_whole_groups
judge "shares of processors and disks" rates
judge "attacks, all layers" attacks
echo
printf '%s\n' "${verdicts[@]}"
exit $failed
