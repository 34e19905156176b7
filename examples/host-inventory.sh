#!/bin/sh
# host-inventory.sh: what this host is, as one JSON object.
#
# Profile:    host (reads the host's files; needs no network and no root)
# Parameters: none
# Result:     {"hostname", "kernel": {"name", "release", "version", "machine"}, "os": {"id", …},
#              "cpu": {"count", "model"}, "memory": {"total_bytes", …}, "uptime_seconds",
#              "disks": [{"source", "mount", "type", "size_bytes", "used_bytes", "available_bytes"}],
#              "addresses": [{"interface", "family", "address", "prefix"}]}
#
#   sally run --all --profile host examples/host-inventory.sh -o json
#
# It needs sh, awk, df and uname. `disks` are local file systems, each device once. `addresses` come from `ip`; where
# that is missing or not allowed, from /proc/net. What a host does not say is null or left out.
set -u
PATH="${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin"
LC_ALL=C
export PATH LC_ALL

# report KEY: adds the JSON on standard input to the result.
report() {
    if command -v sally-task >/dev/null 2>&1; then
        valid_utf8 | sally-task set "$1:=@-"
    else
        { printf '{"%s":' "$1" && valid_utf8 && printf '}\n'; } >&3
    fi
}

# JSON is UTF-8; a label or a mount point need not be. Without iconv every byte beyond ASCII becomes `?`.
valid_utf8() {
    if command -v iconv >/dev/null 2>&1; then
        iconv -c -f UTF-8 -t UTF-8
    else
        tr '\200-\377' '?'
    fi
}

# The awk function q(s) makes a JSON string of any text.
q='
BEGIN { for (i = 1; i < 32; i++) esc[sprintf("%c", i)] = sprintf("\\u%04x", i); esc["\""] = "\\\""; esc["\\"] = "\\\\" }
function q(s,   i, c, out) {
    for (i = 1; i <= length(s); i++) { c = substr(s, i, 1); out = out ((c in esc) ? esc[c] : c) }
    return "\"" out "\""
}
'

# The value comes through the environment: awk would read escapes in an argument.
quote() { VALUE=$1 awk "$q"'BEGIN { printf "%s", q(ENVIRON["VALUE"]) }'; }

quote "$(uname -n)" | report hostname

printf '{"name":%s,"release":%s,"version":%s,"machine":%s}' \
    "$(quote "$(uname -s)")" "$(quote "$(uname -r)")" "$(quote "$(uname -v)")" "$(quote "$(uname -m)")" | report kernel

for release in /etc/os-release /usr/lib/os-release; do
    [ -r "$release" ] || continue
    # KEY=value, with or without quotes; inside quotes a backslash keeps the next character.
    awk "$q"'
        /^[A-Z][A-Z0-9_]*=/ {
            at = index($0, "="); key = tolower(substr($0, 1, at - 1)); value = substr($0, at + 1)
            sub(/[ \t\r]+$/, "", value)
            mark = substr(value, 1, 1)
            if ((mark == "\"" || mark == "\047") && substr(value, length(value)) == mark) {
                value = substr(value, 2, length(value) - 2)
            }
            if (mark == "\"") {
                plain = ""
                for (i = 1; i <= length(value); i++) {
                    c = substr(value, i, 1)
                    if (c == "\\") { i++; c = substr(value, i, 1) }
                    plain = plain c
                }
                value = plain
            }
            if (!(key in seen)) order[++n] = key
            seen[key] = value
        }
        END {
            printf "{"
            for (i = 1; i <= n; i++) printf "%s%s:%s", (i > 1 ? "," : ""), q(order[i]), q(seen[order[i]])
            printf "}"
        }' "$release" | report os
    break
done

count=$(getconf _NPROCESSORS_ONLN 2>/dev/null) || count=$(grep -c '^processor' /proc/cpuinfo 2>/dev/null)
model=$(awk -F': *' '/^(model name|Model|cpu model)[ \t]*:/ { print $2; exit }' /proc/cpuinfo 2>/dev/null)
{
    printf '{"count":%s,"model":' "${count:-null}"
    if [ -n "$model" ]; then quote "$model"; else printf null; fi
    printf '}'
} | report cpu

if [ -r /proc/meminfo ]; then
    awk '
        $1 == "MemTotal:" { total = $2 } $1 == "MemAvailable:" { available = $2 }
        $1 == "SwapTotal:" { swap = $2 } $1 == "SwapFree:" { free = $2 }
        function bytes(k) { return k == "" ? "null" : sprintf("%.0f", k * 1024) }
        END {
            printf "{\"total_bytes\":%s,\"available_bytes\":%s,\"swap_total_bytes\":%s,\"swap_free_bytes\":%s}", \
                bytes(total), bytes(available), bytes(swap), bytes(free)
        }' /proc/meminfo | report memory
fi

[ -r /proc/uptime ] && awk '{ printf "%d", $1 }' /proc/uptime | report uptime_seconds

# Local file systems, each source once, under its shortest mount point: a host that has one disk mounted (or
# bound) in ten places has one disk. Network file systems are left out: a dead server would hold the script up.
local_mounts() {
    awk '
        $3 ~ /^(ext[234]|xfs|btrfs|zfs|f2fs|jfs|reiserfs|vfat|exfat|ntfs3?|bcachefs|erofs|overlay)$/ {
            if (!($1 in mount)) { order[++n] = $1 } else if (length($2) >= length(mount[$1])) { next }
            mount[$1] = $2; type[$1] = $3
        }
        END { for (i = 1; i <= n; i++) print order[i], type[order[i]], mount[order[i]] }' /proc/mounts
}
if [ -r /proc/mounts ]; then
    local_mounts | while read -r source type mount; do
        # /proc/mounts writes a space as \040.
        mount=$(printf '%b' "$(printf '%s' "$mount" | sed 's/\\\([0-7][0-7][0-7]\)/\\0\1/g')")
        sizes=$(df -P -k "$mount" 2>/dev/null | awk '
            END { if (match($0, / [0-9]+ +[0-9]+ +-?[0-9]+ +[0-9-]+%? /)) print substr($0, RSTART, RLENGTH) }')
        [ -n "$sizes" ] || continue
        SOURCE=$source TYPE=$type MOUNT=$mount SIZES=$sizes awk "$q"'BEGIN {
            split(ENVIRON["SIZES"], k, " ")
            printf "{\"source\":%s,\"mount\":%s,\"type\":%s,", q(ENVIRON["SOURCE"]), q(ENVIRON["MOUNT"]), q(ENVIRON["TYPE"])
            printf "\"size_bytes\":%.0f,\"used_bytes\":%.0f,\"available_bytes\":%.0f}\n", k[1] * 1024, k[2] * 1024, k[3] * 1024
        }'
    done | awk 'BEGIN { printf "[" } { printf "%s%s", (NR > 1 ? "," : ""), $0 } END { printf "]" }' | report disks
fi

# INTERFACE FAMILY ADDRESS PREFIX, one line each.
addresses_of_ip() {
    ip -o addr show 2>/dev/null | awk '
        $3 == "inet" || $3 == "inet6" {
            split($4, part, "/")
            prefix = part[2] == "" ? ($3 == "inet" ? 32 : 128) : part[2]
            print $2, $3, part[1], prefix
        }'
}
# The same from /proc/net. For IPv4 the kernel lists its own addresses in fib_trie, without interface; the
# narrowest directly connected route that covers an address names it.
addresses_of_proc() {
    [ -r /proc/net/fib_trie ] && awk '
        function hex(s,   i, n) { for (i = 1; i <= 2; i++) n = n * 16 + index("0123456789ABCDEF", substr(s, i, 1)) - 1; return n }
        FILENAME ~ /route$/ {
            if (FNR == 1 || $3 != "00000000" || $8 == "00000000") next
            n++; name[n] = $1; length_of[n] = 0
            for (i = 1; i <= 4; i++) {
                to[n, i] = hex(substr($2, 9 - 2 * i, 2)); mask[n, i] = hex(substr($8, 9 - 2 * i, 2))
                for (m = mask[n, i]; m > 0; m = (m * 2) % 256) length_of[n]++
            }
            next
        }
        $1 == "|--" { address = $2; next }
        $0 ~ /\/32 host LOCAL/ && !(address in seen) {
            seen[address] = 1; split(address, a, "."); best = 0
            for (r = 1; r <= n; r++) {
                for (i = 1; i <= 4; i++) if (a[i] - a[i] % (256 - mask[r, i]) != to[r, i]) break
                if (i == 5 && (!best || length_of[r] > length_of[best])) best = r
            }
            if (a[1] == 127) print "lo inet", address, 8
            else print (best ? name[best] : "-"), "inet", address, (best ? length_of[best] : "-")
        }' /proc/net/route /proc/net/fib_trie
    [ -r /proc/net/if_inet6 ] && awk '
        function hex(s,   i, n) { for (i = 1; i <= length(s); i++) n = n * 16 + index("0123456789abcdef", substr(s, i, 1)) - 1; return n }
        # Groups without leading zeros, the first longest run of two or more zero groups as "::" (RFC 5952).
        {
            best = 0; most = 1; run = 0
            for (i = 1; i <= 8; i++) {
                g[i] = substr($1, 4 * i - 3, 4); sub(/^0+/, "", g[i])
                if (g[i] == "") { g[i] = "0"; run++ } else run = 0
                if (run > most) { most = run; best = i - run + 1 }
            }
            out = ""
            for (i = 1; i <= 8; i++) {
                if (best && i == best) { out = out "::"; i += most - 1; continue }
                out = out (out == "" || out ~ /:$/ ? "" : ":") g[i]
            }
            print $6, "inet6", out, hex($3)
        }' /proc/net/if_inet6
}
addresses=$(addresses_of_ip)
[ -n "$addresses" ] || addresses=$(addresses_of_proc)
printf '%s\n' "$addresses" | awk "$q"'
    BEGIN { printf "[" }
    NF == 4 {
        printf "%s{\"interface\":%s,\"family\":%s,", (n++ ? "," : ""), ($1 == "-" ? "null" : q($1)), q($2)
        printf "\"address\":%s,\"prefix\":%s}", q($3), ($4 == "-" ? "null" : $4)
    }
    END { printf "]" }' | report addresses
