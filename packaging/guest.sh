#!/bin/bash
# Runs a command in a guest with a kernel of its own, systemd as process 1 and control groups of version 2: what a
# machine without them cannot show. The guest is emulated (no KVM), made of Debian packages, and forgets everything
# when it ends. Nothing on this system is installed, replaced or configured.
#
#   packaging/guest.sh [OPTION]... [--] COMMAND [ARG]...
#
#   --put FILE[:PATH]   a file or folder of this host, at PATH in the guest (default: the same absolute path)
#   --kernel SUITE      the Debian suite whose kernel boots: bookworm (6.1, default) or sid
#   --packages A,B      more Debian packages of bookworm in the guest
#   --memory MIB        1536
#   --limit SECONDS     how long all of it may take: 1500
#   --check             only says whether a guest can be made here: exit 0, or 1 with what is missing
#
# COMMAND runs as root in a unit of its own (sally-guest.service) once the guest has booted. Its output is printed as it
# comes, and its exit code is this program's; 125 if the guest did not get that far. A boot takes 10 to 20 s,
# everything in it about ten to thirty times as long as outside.
#
# The first time makes a system in build/guest (one or two minutes); later ones take it from there.
# Environment: SALLY_BUILD_DIR (default: build beside this folder).
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
build=${SALLY_BUILD_DIR:-$here/build}/guest
suite=bookworm
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages=systemd,systemd-sysv,dbus,adduser,iproute2,procps,util-linux,python3-minimal,ca-certificates
kernel=bookworm
memory=1536
limit=1500
puts=()

say() { printf 'guest: %s\n' "$*" >&2; }
die() { say "$*"; exit 125; }

# What is not here, as Debian calls it.
missing() {
    local tools=(qemu-system-x86_64 qemu-system-x86 debootstrap debootstrap busybox busybox-static cpio cpio
        xz xz-utils mkfs.ext4 e2fsprogs dpkg-deb dpkg apt-get apt) i
    for ((i = 0; i < ${#tools[@]}; i += 2)); do
        command -v "${tools[i]}" >/dev/null 2>&1 || printf ' %s' "${tools[i + 1]}"
    done
    [ -r "$keyring" ] || printf ' debian-archive-keyring'
}

check() {
    [ "$(uname -m)" = x86_64 ] || { say "a guest is made for x86_64 only; this is $(uname -m)"; return 1; }
    [ "$(id -u)" = 0 ] || { say "a guest's system is made by root; run this as root"; return 1; }
    local packages
    packages=$(missing)
    [ -z "$packages" ] || { say "missing on this system; as root: apt-get install --no-install-recommends$packages"; return 1; }
}

while [ $# -gt 0 ]; do
    case $1 in
        --put) puts+=("${2:?--put wants FILE[:PATH]}"); shift 2 ;;
        --kernel) kernel=${2:?--kernel wants a suite}; shift 2 ;;
        --packages) packages+=,${2:?--packages wants names}; shift 2 ;;
        --memory) memory=${2:?--memory wants MiB}; shift 2 ;;
        --limit) limit=${2:?--limit wants seconds}; shift 2 ;;
        --check) check && exit 0 || exit 1 ;;
        --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
        --) shift; break ;;
        -*) die "'$1' is no option; try $0 --help" ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || die "no command; try $0 --help"
check || exit 125
mkdir -p "$build"
work=$(mktemp -d "$build/.run.XXXXXX")
machine=
tail=
cleanup() {
    for pid in $machine $tail; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The Debian mirror that this machine already uses; none is written down here.
mirror() {
    {
        apt-get indextargets --format '$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | sed -n 's/^Debian|//p'
        apt-get indextargets --format '$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | sed -n 's/^main|//p'
    } | grep -v -e '-security/*$' | head -n 1
}

# One at a time makes what is kept; others wait for it.
exec 9>"$build/.lock"
flock 9
from=$(mirror)
[ -n "$from" ] || die "the system's apt sources name no Debian mirror"
system=$build/system-$(printf '%s' "$suite $packages" | sha256sum | cut -c1-12).ext4
if [ ! -e "$system" ]; then
    say "making a Debian $suite system (once)"
    debootstrap --variant=minbase --keyring="$keyring" --include="$packages" "$suite" "$work/root" "$from" >"$work/log" 2>&1 ||
        die "debootstrap: $(tail -n 1 "$work/log")"
    rm -rf "$work"/root/var/cache/apt/archives/*.deb
    mkdir -p "$work/root/payload" "$work/root/etc/systemd/system/multi-user.target.wants"
    cat >"$work/root/etc/systemd/system/sally-guest.service" <<'UNIT'
[Unit]
Description=What this guest was started for
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/bash /payload/.main
TimeoutStartSec=infinity
UNIT
    ln -s ../sally-guest.service "$work/root/etc/systemd/system/multi-user.target.wants/"
    for unit in serial-getty@ttyS0 getty@tty1 apt-daily.timer apt-daily-upgrade.timer; do
        case $unit in *.timer) ;; *) unit=$unit.service ;; esac
        ln -sf /dev/null "$work/root/etc/systemd/system/$unit"
    done
    echo guest >"$work/root/etc/hostname"
    echo '127.0.0.1 localhost guest' >"$work/root/etc/hosts"
    truncate -s 3G "$work/system"
    mkfs.ext4 -q -F -d "$work/root" "$work/system"
    rm -rf --one-file-system "$work/root"
    mv "$work/system" "$system"
fi

boot=$build/kernel-$kernel
if [ ! -e "$boot/vmlinuz" ]; then
    say "getting the kernel of Debian $kernel (once)"
    apt=$work/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$work/boot" "$work/packages"
    : >"$apt/status"
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$from" "$kernel" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
CONF
    export APT_CONFIG=$apt/apt.conf
    apt-get -qq update >"$work/log" 2>&1 || die "apt cannot read $kernel: $(tail -n 1 "$work/log")"
    image=$(apt-cache depends linux-image-cloud-amd64 | grep -oE 'linux-image-[0-9][^ ]*' | head -n 1)
    [ -n "$image" ] || die "Debian $kernel has no linux-image-cloud-amd64"
    # Newer suites keep program and modules in packages of their own.
    for name in "$image" "linux-binary-${image#linux-image-}" "linux-modules-${image#linux-image-}"; do
        (cd "$work/packages" && apt-get -qq download "$name") >"$work/log" 2>&1 || [ "$name" != "$image" ] ||
            die "apt cannot get $name: $(tail -n 1 "$work/log")"
    done
    unset APT_CONFIG
    for package in "$work"/packages/*.deb; do dpkg-deb --extract "$package" "$work/unpacked"; done
    modules=$(find "$work/unpacked" -type d -path '*lib/modules/*' -prune | head -n 1)
    program=$(find "$work/unpacked" -name 'vmlinuz*' | head -n 1)
    [ -n "$modules" ] && [ -n "$program" ] || die "no kernel in $image"
    mkdir -p "$work/initrd/m" "$work/initrd/bin" "$work/initrd/mnt" "$work/initrd/proc" "$work/initrd/dev"
    cp "$(command -v busybox)" "$work/initrd/bin/busybox"
    for name in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
        file=$(find "$modules" -name "$name.ko" -o -name "$name.ko.xz" | head -n 1)
        case $file in
            *.xz) xz -dc "$file" >"$work/initrd/m/$name.ko" ;;
            ?*) cp "$file" "$work/initrd/m/$name.ko" ;;
        esac
    done
    # Modules are loaded in the order of their needs by trying all of them three times.
    cat >"$work/initrd/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc p /proc
/bin/busybox mount -t devtmpfs d /dev
for round in 1 2 3; do
    for m in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
        [ -f /m/$m.ko ] && /bin/busybox insmod /m/$m.ko 2>/dev/null
    done
done
n=0
until [ -b /dev/vdb ] || [ $n = 100 ]; do /bin/busybox usleep 100000; n=$((n + 1)); done
/bin/busybox mount -t ext4 /dev/vda /mnt && /bin/busybox mount -t ext4 /dev/vdb /mnt/payload
/bin/busybox umount /proc
/bin/busybox mount --move /dev /mnt/dev
exec /bin/busybox switch_root /mnt /sbin/init
INIT
    chmod 755 "$work/initrd/init"
    (cd "$work/initrd" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/boot/initrd.gz"
    cp "$program" "$work/boot/vmlinuz"
    # Overlays, filters and faults of networks and disks, for those who load them.
    mkdir "$work/boot/modules"
    for name in overlay sch_netem dm-mod dm-flakey nf_tables; do
        file=$(find "$modules" -name "$name.ko" -o -name "$name.ko.xz" | head -n 1)
        case $file in
            *.xz) xz -dc "$file" >"$work/boot/modules/$name.ko" ;;
            ?*) cp "$file" "$work/boot/modules/$name.ko" ;;
        esac
    done
    rm -rf "$boot"
    mv "$work/boot" "$boot"
fi
flock -u 9

# What was put: kept apart from the system, and linked from where it belongs.
payload=$work/payload
mkdir -p "$payload"
links=
number=0
for put in ${puts[@]+"${puts[@]}"}; do
    file=${put%%:*}
    [ -e "$file" ] || die "there is no $file to put into the guest"
    path=$(realpath "$file")
    case $put in *:*) target=${put#*:} ;; *) target=$path ;; esac
    case $target in /*) ;; *) die "'$target' is no absolute path" ;; esac
    number=$((number + 1))
    mkdir "$payload/$number"
    cp -aL "$file" "$payload/$number/"
    links+="mkdir -p $(printf %q "$(dirname "$target")"); ln -sfn $(printf %q "/payload/$number/$(basename "$file")") $(printf %q "$target")"$'\n'
done
cp -a "$boot/modules" "$payload/modules"
cat >"$payload/.main" <<MAIN
exec >/dev/ttyS1 2>&1 </dev/null
stty -F /dev/ttyS1 raw
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
cd /root
ip link set lo up
$links
$(printf '%q ' "$@")
printf '\n@@ guest ended %s\n' "\$?"
systemctl poweroff --force
MAIN
size=$(du -sm "$payload" | cut -f1)
truncate -s "$((size + size / 8 + 64))M" "$work/payload.ext4"
mkfs.ext4 -q -F -d "$payload" "$work/payload.ext4"

: >"$work/out"
nice -n 10 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "$memory" -nic none -no-reboot \
    -display none -monitor none -serial "file:$work/console" -serial "file:$work/out" \
    -kernel "$boot/vmlinuz" -initrd "$boot/initrd.gz" \
    -append "console=ttyS0 quiet root=/dev/vda rw panic=5 mitigations=off systemd.unified_cgroup_hierarchy=1" \
    -drive "file=$system,if=virtio,format=raw,snapshot=on,cache=unsafe" \
    -drive "file=$work/payload.ext4,if=virtio,format=raw,cache=unsafe" </dev/null >"$work/log" 2>&1 &
machine=$!
tail -n +1 -f --pid="$machine" "$work/out" 2>/dev/null | grep --line-buffered -v '^@@ guest ended' &
tail=$!
until=$((SECONDS + limit))
while kill -0 "$machine" 2>/dev/null && [ "$SECONDS" -lt "$until" ]; do
    # Ends with the machine, or looks at the time again.
    timeout 5 tail -f --pid="$machine" /dev/null 2>/dev/null || true
done
status=$(sed -n 's/^@@ guest ended \([0-9]*\)\r\{0,1\}$/\1/p' "$work/out" | tail -n 1)
if [ -z "$status" ]; then
    if kill -0 "$machine" 2>/dev/null; then
        say "not done within $limit s (--limit)"
    else
        say "the machine ended before the command did"
    fi
    sed 's/^/guest: console: /' "$work/log" "$work/console" | tail -n 15 >&2
    exit 125
fi
wait "$machine" 2>/dev/null || true
machine=
wait "$tail" 2>/dev/null || true
tail=
exit "$status"
