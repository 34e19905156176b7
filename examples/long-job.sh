#!/bin/sh
# long-job.sh: a job that takes its time and says how far it is.
#
# Profile:    strict (touches nothing but its work folder)
# Parameters: steps (whole number, 10), seconds (whole number for each step, 1)
# Result:     {"steps", "done", "stopped": true if it was told to end early}
# Artifact:   long-job.log
#
#   sally run -a local-1 -p steps:=20 examples/long-job.sh
#
# On TERM (timeout or cancellation) it finishes the line it is at, reports, and ends: that is what --grace is for.
set -u

# number KEY DEFAULT: a whole number out of the parameters. The file is one compact JSON object, and these keys
# hold no text, so this much is safe without a JSON tool.
number() {
    value=$(sed -n "s/^{\(.*,\)\{0,1\}\"$1\":\([0-9]\{1,6\}\)[,}].*/\2/p" "${SALLY_PARAMS_FILE:-/dev/null}")
    echo "${value:-$2}"
}

# say LINE: one JSON value. All values here are numbers and fixed words, so the shell may write them itself.
say() { printf '%s\n' "$1" >&3; }

steps=$(number steps 10)
seconds=$(number seconds 1)
stopped=false
trap 'stopped=true' TERM INT

done=0
while [ "$done" -lt "$steps" ] && [ "$stopped" = false ]; do
    # `wait` ends at once when the signal comes, `sleep` alone would not.
    sleep "$seconds" &
    wait $!
    [ "$stopped" = true ] && break
    done=$((done + 1))
    echo "step $done of $steps" | tee -a long-job.log
    say "{\"@progress\":{\"done\":$done,\"total\":$steps,\"text\":\"step $done\"}}"
done

[ -e long-job.log ] && say '{"@artifact":{"path":"long-job.log"}}'
say "{\"steps\":$steps,\"done\":$done,\"stopped\":$stopped}"
[ "$stopped" = false ]
