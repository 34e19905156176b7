#!/usr/bin/python3
"""disk-report.py: how full the local file systems are; fails when one is above a threshold.

Profile:    host (needs no network and no root)
Parameters: threshold_percent (number, 90), mounts (list of mount points; all local ones if left out)
Result:     a list, fullest first: [{"mount", "source", "type", "size_bytes", "used_bytes", "available_bytes",
            "used_percent", "inodes_used_percent", "over"}]
Failure:    DISK_OVER_THRESHOLD, with exit code 1; BAD_PARAMETER with exit code 2

    sally run --all --profile host -p threshold_percent:=80 examples/disk-report.py

`used_percent` is what `df` shows: used of what users may use, rounded up.
"""
import json
import os
import re
import sys

LOCAL = re.compile(r"^(ext[234]|xfs|btrfs|zfs|f2fs|jfs|reiserfs|vfat|exfat|ntfs3?|bcachefs|overlay)$")


def say(value):
    """Writes one JSON value to the result door."""
    line = (json.dumps(value, allow_nan=False) + "\n").encode()
    try:
        os.write(int(os.environ.get("SALLY_RESULT_FD", "3")), line)
    except OSError:
        with open(os.environ["SALLY_RESULT_FILE"], "ab") as door:
            door.write(line)


def fail(code, text, status):
    say({"@fail": {"code": code, "text": text}})
    sys.exit(status)


def parameters():
    path = os.environ.get("SALLY_PARAMS_FILE")
    if not path:
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def mounts():
    """Local file systems, each source once, under its shortest mount point."""
    found = {}
    with open("/proc/mounts", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            source, mount, kind = line.split(" ")[:3]
            mount = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount)
            if LOCAL.match(kind) and (source not in found or len(mount) < len(found[source][0])):
                found[source] = (mount, kind)
    return [(source, mount, kind) for source, (mount, kind) in found.items()]


def percent(used, available):
    whole = used + available
    return -(-100 * used // whole) if whole else 0


def report(source, mount, kind, threshold):
    fs = os.statvfs(mount)
    used = (fs.f_blocks - fs.f_bfree) * fs.f_frsize
    available = fs.f_bavail * fs.f_frsize
    used_percent = percent(used, available)
    inodes_percent = percent(fs.f_files - fs.f_ffree, fs.f_favail) if fs.f_files else None
    return {
        "mount": mount.encode("utf-8", "replace").decode(),
        "source": source.encode("utf-8", "replace").decode(),
        "type": kind,
        "size_bytes": fs.f_blocks * fs.f_frsize,
        "used_bytes": used,
        "available_bytes": available,
        "used_percent": used_percent,
        "inodes_used_percent": inodes_percent,
        "over": used_percent > threshold or (inodes_percent or 0) > threshold,
    }


def main():
    params = parameters()
    threshold = params.get("threshold_percent", 90)
    wanted = params.get("mounts")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 100:
        fail("BAD_PARAMETER", "threshold_percent must be a number from 0 to 100 (-p threshold_percent:=80)", 2)
    if wanted is not None and not isinstance(wanted, list):
        fail("BAD_PARAMETER", "mounts must be a list (-p 'mounts:=[\"/var\"]')", 2)
    found = mounts()
    missing = [mount for mount in wanted or [] if mount not in [known for _, known, _ in found]]
    if missing:
        fail("BAD_PARAMETER", "no local file system is mounted at " + ", ".join(map(str, missing)), 2)
    disks = []
    for source, mount, kind in found:
        if wanted is None or mount in wanted:
            try:
                disks.append(report(source, mount, kind, threshold))
            except OSError as error:
                print(f"{mount}: {error.strerror}, left out", file=sys.stderr)
    disks.sort(key=lambda disk: -disk["used_percent"])
    say(disks)
    for disk in disks:
        print(f"{disk['used_percent']:3}%  {disk['mount']}{'  OVER' if disk['over'] else ''}")
    over = [disk["mount"] for disk in disks if disk["over"]]
    if over:
        fail("DISK_OVER_THRESHOLD", f"above {threshold}%: " + ", ".join(over), 1)


main()
