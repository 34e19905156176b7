#!/bin/bash
# Tests what build-packages.sh made, and the units by themselves: contents, sizes, static programs, exposure, lint, and what
# rpm does with changed configuration. Says aloud what it skips. Debian: systemd, lintian, rpm, rpmlint, binutils.
#
#   packaging/test-packages.sh [FOLDER]      default: build/packages/ARCH of this machine; without one only the units
set -uo pipefail
cd "$(dirname "$0")/.."
dir=${1:-build/packages/$(dpkg --print-architecture)}
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $*"; }
bad() { failed=$((failed + 1)); echo "FAILED: $*"; }
check() { local what=$1; shift; if "$@"; then ok "$what"; else bad "$what"; fi; }
have() { command -v "$1" >/dev/null 2>&1 || { echo "SKIP: $2, because $1 is not here"; return 1; }; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Exposure, highest that is allowed (0 is best). The launcher's is what works: see its unit.
if have systemd-analyze "the units"; then
    while read -r unit most; do
        # Offline, as if nothing else were installed.
        systemd-analyze security --offline=true --no-pager --threshold="${most/./}" "packaging/systemd/$unit" >"$work/exposure" 2>&1
        status=$?
        found=$(tail -n 1 "$work/exposure")
        check "exposure of $unit is at most $most: ${found#→ }" test "$status" = 0
        # The programs need not be installed; systemd before 254 does not know DelegateSubgroup, and does without.
        systemd-analyze verify --man=no "packaging/systemd/$unit" 2>&1 |
            grep -v -e 'Command /usr/bin/sally.* is not executable' -e "Unknown key.*'DelegateSubgroup'" >"$work/verify"
        check "systemd-analyze verify $unit: $(cat "$work/verify")" test ! -s "$work/verify"
    done <<'UNITS'
sally-agent.service 2.5
sally-controller.service 2.0
sally-launcher.service 6.5
UNITS
fi

if [ ! -d "$dir" ]; then
    echo "SKIP: the packages, because $dir is not here; make packages makes it"
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
    exit
fi

have_file() { grep -qx "$1" "$work/list"; }
for file in "$dir"/*.deb; do
    name=$(dpkg-deb -f "$file" Package)
    dpkg-deb -c "$file" | awk '{print substr($6, 2)}' >"$work/list"
    mkdir "$work/$name" && dpkg-deb -x "$file" "$work/$name"
    case $name in
        sally-agent) wanted="/usr/bin/sally-agent /etc/sally/agent.toml /usr/lib/systemd/system/sally-agent.service
            /usr/lib/systemd/system/sally-launcher.service /usr/lib/sysusers.d/sally-agent.conf /usr/lib/tmpfiles.d/sally-agent.conf
            /usr/share/sally-agent/apparmor-profile /usr/share/doc/sally-agent/sally-agent.cdx.json.gz /usr/share/man/man1/sally-agent.1.gz
            /usr/share/bash-completion/completions/sally-agent /usr/share/doc/sally-agent/copyright" ;;
        sally) wanted="/usr/bin/sally /usr/share/man/man1/sally-run.1.gz /usr/share/doc/sally/sally.cdx.json.gz" ;;
        sally-controller) wanted="/etc/sally/serve.toml /usr/lib/systemd/system/sally-controller.service" ;;
        *) wanted=/nothing/is/known/of/it ;;
    esac
    for path in $wanted; do check "$name has $path" have_file "$path"; done
    for conffile in $(cd "$work/$name" && find etc -type f 2>/dev/null); do
        check "$name: /$conffile is a conffile" sh -c "dpkg-deb --info '$file' conffiles | grep -qx '/$conffile'"
    done
done
for program in sally-agent/usr/bin/sally-agent sally/usr/bin/sally; do
    check "$program is static" sh -c "! readelf -lW '$work/$program' | grep -q INTERP"
done
size=$(du -sk --apparent-size "$work/sally-agent" | cut -f1)
check "sally-agent installed is $size KiB, at most 12 MiB" test "$size" -le 12288

# Tags that are let through, each with its reason.
#   bogus-mail-host  the project has no address that a package could name
#   statically-linked-binary  on purpose: one program for every distribution
#   shared-library-lacks-prerequisites  a static program that is position independent looks like a library to it
#   initial-upload-closes-no-bugs  no upload to Debian is meant
allowed='bogus-mail-host|statically-linked-binary|shared-library-lacks-prerequisites|initial-upload-closes-no-bugs'
if have lintian "lintian"; then
    lintian --allow-root "$dir"/*.deb 2>&1 | grep -E '^[EW]:' | grep -Ev " ($allowed)( |$)" >"$work/lint"
    check "lintian: $(cat "$work/lint")" test ! -s "$work/lint"
fi
#   invalid-license  the list of this rpmlint is older than SPDX names
#   no-*-tag, no-signature, no-changelogname-tag  who publishes packages signs them and says who and where
#   manpage-not-compressed, no-manual-page-for-binary  it looks for bzip2; man reads gzip everywhere
#   only-non-binary-in-usr-lib, no-binary  units and accounts are text
#   statically-linked-binary  on purpose
allowed='invalid-license|no-(packager|group|changelogname|buildhost|url)-tag|no-signature|manpage-not-compressed|no-manual-page-for-binary|only-non-binary-in-usr-lib|no-binary|statically-linked-binary'
if have rpmlint "rpmlint"; then
    rpmlint "$dir"/*.rpm 2>&1 | grep -E ': [EW]: ' | grep -Ev ": [EW]: ($allowed)( |$)" >"$work/lint"
    check "rpmlint: $(cat "$work/lint")" test ! -s "$work/lint"
fi
if have rpm "rpm in an empty root"; then
    root=$work/root
    mkdir -p "$root"
    quiet() { rpm --root "$root" --force-debian --nodeps --noscripts "$@" >>"$work/rpm.log" 2>&1; }
    check "rpm installs" quiet -i "$dir"/sally-agent-*.rpm "$dir"/sally-[0-9]*.rpm "$dir"/sally-controller-*.rpm
    echo '# changed' >>"$root/etc/sally/agent.toml"
    check "rpm installs again over it" quiet -U --replacepkgs --oldpackage "$dir"/sally-agent-*.rpm
    check "a changed configuration stays" grep -q changed "$root/etc/sally/agent.toml"
    check "rpm removes" quiet -e sally-controller sally sally-agent
    check "no program is left" sh -c "! ls '$root'/usr/bin/sally* 2>/dev/null | grep -q ."
    check "a changed configuration is kept as .rpmsave" test -e "$root/etc/sally/agent.toml.rpmsave"
fi
(cd "$dir" && sha256sum --quiet -c SHA256SUMS) && ok "SHA256SUMS" || bad "SHA256SUMS"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
