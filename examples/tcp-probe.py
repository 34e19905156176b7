#!/usr/bin/python3
"""tcp-probe.py: which TCP ports can be reached from this zone, and how fast.

Profile:    net
Parameters: targets (list of "host:port", or one text with commas; required), timeout_seconds (number, 3),
            expect ("open" or "closed", "open"): what every target should be; "closed" checks a firewall
Result:     {"targets": [{"target", "address", "state", "ms", "error"}]}, in the order given; state is open,
            refused, timeout or error
Failure:    TCP_UNEXPECTED, with exit code 1; BAD_PARAMETER with exit code 2

    sally run -z payment --profile net -p targets=db.example:5432,queue.example:5671 examples/tcp-probe.py
"""
import concurrent.futures
import json
import os
import socket
import sys
import time


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


def split(target):
    host, _, port = target.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        fail("BAD_PARAMETER", f"{target} is not host:port", 2)
    return host, int(port)


def probe(target, timeout):
    row = {"target": target, "address": None, "state": "error", "ms": None, "error": None}
    started = time.monotonic()
    try:
        with socket.create_connection(split(target), timeout) as connection:
            row["ms"] = round((time.monotonic() - started) * 1000, 3)
            row["address"] = connection.getpeername()[0]
            row["state"] = "open"
    except ConnectionRefusedError:
        row["state"] = "refused"
    except socket.timeout:
        row["state"] = "timeout"
    except OSError as error:
        row["error"] = error.strerror or str(error)
    return row


def main():
    params = parameters()
    targets = params.get("targets")
    if isinstance(targets, str):
        targets = [target.strip() for target in targets.split(",") if target.strip()]
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        fail("BAD_PARAMETER", "targets is missing: -p targets=db.example:5432,web.example:443", 2)
    for target in targets:
        split(target)
    timeout = params.get("timeout_seconds", 3)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout <= 0:
        fail("BAD_PARAMETER", "timeout_seconds must be a number above 0 (-p timeout_seconds:=3)", 2)
    expect = params.get("expect", "open")
    if expect not in ("open", "closed"):
        fail("BAD_PARAMETER", "expect must be open or closed", 2)
    rows = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:
        for row in pool.map(lambda target: probe(target, timeout), targets):
            rows.append(row)
            say({"@progress": {"done": len(rows), "total": len(targets), "text": row["target"]}})
    say({"targets": rows})
    for row in rows:
        print(f"{row['target']}  {row['state']}" + (f"  {row['ms']} ms" if row["state"] == "open" else ""))
    # A name that does not resolve says nothing about a firewall: an error is never what was expected.
    fits = {"open": ("open",), "closed": ("refused", "timeout")}[expect]
    wrong = [f"{row['target']} is {row['state']}" for row in rows if row["state"] not in fits]
    if wrong:
        fail("TCP_UNEXPECTED", f"expected {expect}: " + ", ".join(wrong), 1)


main()
