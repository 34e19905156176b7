#!/usr/bin/python3
"""config-collect.py: configuration files with their digests, owners and contents, to compare across hosts.

Profile:    host (files that the run's user may not read are listed with an error)
Parameters: paths (list of paths or glob patterns, or one text with commas), max_bytes (number, 65536: larger files
            come without content), content (true or false, true)
Result:     {"files": {PATH: {"size_bytes", "mode", "uid", "gid", "modified_at", "sha256", "content",
            "encoding": "utf-8" or "base64", "omitted", "link_to", "error"}}, "not_found": [PATTERN]}

    sally run --all --profile host -p 'paths:=["/etc/ssh/sshd_config","/etc/ssh/sshd_config.d/*"]' \\
        examples/config-collect.py -o json

A key that does not apply is left out. Never more than 1000 files and about 700 KB of contents: what is beyond
has a digest and `omitted` says why there is no content. Do not collect secrets with it: results are kept.
"""
import base64
import datetime
import glob
import hashlib
import json
import os
import stat
import sys

DEFAULT_PATHS = [
    "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/os-release", "/etc/fstab", "/etc/nsswitch.conf",
    "/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/*.conf", "/etc/sysctl.conf", "/etc/sysctl.d/*.conf",
]  # fmt: skip
CONTENT_BYTES = 700_000  # a result has at most 1 MiB; the rest is room for the other keys
FILES = 1000


def say(value):
    """Writes one JSON value to the result door."""
    line = (json.dumps(value, allow_nan=False, ensure_ascii=False) + "\n").encode()
    try:
        door = os.fdopen(os.dup(int(os.environ.get("SALLY_RESULT_FD", "3"))), "wb")
    except OSError:
        door = open(os.environ["SALLY_RESULT_FILE"], "ab")
    with door:  # a buffered file writes until all is through, one os.write may write less
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


def describe(path, max_bytes, room):
    """What is known about one file, and how much room its content took."""
    row = {}
    if os.path.islink(path):
        row["link_to"] = text(os.readlink(path))
    try:
        # Without O_NONBLOCK a named pipe would hold the script up.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        row["error"] = error.strerror
        return row, 0
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        row["mode"] = f"{stat.S_IMODE(info.st_mode):04o}"
        row["uid"], row["gid"] = info.st_uid, info.st_gid
        modified = datetime.datetime.fromtimestamp(int(info.st_mtime), datetime.timezone.utc)
        row["modified_at"] = modified.strftime("%Y-%m-%dT%H:%M:%SZ")
        if not stat.S_ISREG(info.st_mode):
            row["error"] = "not a regular file"
            return row, 0
        row["size_bytes"] = info.st_size
        digest, kept, size = hashlib.sha256(), [], 0
        try:
            for block in iter(lambda: file.read(1 << 16), b""):
                digest.update(block)
                size += len(block)
                if size <= max_bytes:
                    kept.append(block)
        except OSError as error:
            row["error"] = error.strerror
            return row, 0
    row["sha256"] = digest.hexdigest()
    if size > max_bytes:
        row["omitted"] = f"larger than {max_bytes} bytes"
        return row, 0
    content = b"".join(kept)
    try:
        shown, encoding = content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        shown, encoding = base64.b64encode(content).decode("ascii"), "base64"
    length = len(json.dumps(shown, ensure_ascii=False).encode())
    if length > room:
        row["omitted"] = "the result has no more room"
        return row, 0
    row["content"], row["encoding"] = shown, encoding
    return row, length


def text(path):
    """A path for JSON: names need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


def main():
    params = parameters()
    patterns = params.get("paths", DEFAULT_PATHS)
    if isinstance(patterns, str):
        patterns = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    absolute = isinstance(patterns, list) and all(isinstance(p, str) and p.startswith("/") for p in patterns)
    if not absolute or not patterns:
        fail("BAD_PARAMETER", "paths must be absolute paths or patterns (-p paths=/etc/hosts,/etc/cron.d/*)", 2)
    max_bytes = params.get("max_bytes", 65536)
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
        fail("BAD_PARAMETER", "max_bytes must be a whole number (-p max_bytes:=65536)", 2)
    room = CONTENT_BYTES if params.get("content", True) is not False else -1
    files, not_found, total = {}, [], 0
    for pattern in patterns:
        found = sorted(path for path in glob.glob(pattern) if not os.path.isdir(path))
        if not found:
            not_found.append(pattern)
        for path in found:
            if text(path) in files:
                continue
            if len(files) == FILES:
                fail("TOO_MANY_FILES", f"more than {FILES} files match; give narrower patterns", 2)
            row, taken = describe(path, max_bytes, room)
            if room < 0 and "omitted" in row:
                row["omitted"] = "not asked for"
            room -= taken
            total += 1
            files[text(path)] = row
    say({"files": files, "not_found": not_found})
    print(f"{total} files, {len(not_found)} patterns without a file")


main()
