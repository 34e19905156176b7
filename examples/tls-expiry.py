#!/usr/bin/python3
"""tls-expiry.py: when the certificates of TLS servers run out, as seen from this zone.

Profile:    net
Parameters: hosts (list of "host" or "host:port", or one text with commas; required), warn_days (number, 30),
            timeout_seconds (number, 5)
Result:     {"hosts": [{"host", "port", "days_left", "not_after", "verified", "ok", "error"}]}, soonest first
Failure:    TLS_EXPIRING, TLS_UNREACHABLE or TLS_UNTRUSTED, with exit code 1; BAD_PARAMETER with exit code 2

    sally run -z dmz --profile net -p hosts=intranet.example,ldap.example:636 examples/tls-expiry.py

A certificate that this host does not trust (an own authority, a wrong name, already expired) is still read:
`verified` is false and `error` says why. It needs Python 3.7 and its ssl module, nothing else.
"""
import concurrent.futures
import datetime
import json
import os
import socket
import ssl
import sys


def say(value):
    """Writes one JSON value to the result door."""
    line = (json.dumps(value, allow_nan=False) + "\n").encode()
    try:
        os.write(int(os.environ.get("SALLY_RESULT_FD", "3")), line)
    except OSError:
        with open(os.environ["SALLY_RESULT_FILE"], "ab") as door:
            door.write(line)


def fail(code, text, status):
    say({"@fail": {"code": code, "text": text, "retryable": code == "TLS_UNREACHABLE"}})
    sys.exit(status)


def parameters():
    path = os.environ.get("SALLY_PARAMS_FILE")
    if not path:
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def split(target):
    """"host", "host:port", "[address]:port" or a bare IPv6 address."""
    if target.startswith("["):
        host, _, port = target[1:].partition("]")
        return host, int(port.lstrip(":") or 443)
    if target.count(":") == 1:
        host, _, port = target.partition(":")
        return host, int(port)
    return target, 443


def element(der, at):
    """One DER element: where its content begins and where it ends."""
    length, at = der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(der[at : at + size], "big"), at + size
    return at, at + length


def not_after(der):
    """The end of validity in a DER certificate; Python itself only reads it of certificates it trusts."""
    at, _ = element(der, 0)  # Certificate
    at, _ = element(der, at)  # TBSCertificate
    if der[at] == 0xA0:
        at = element(der, at)[1]  # version
    for _ in range(3):
        at = element(der, at)[1]  # serial number, signature algorithm, issuer
    at, _ = element(der, at)  # Validity
    at = element(der, at)[1]  # not before
    start, end = element(der, at)
    text = der[start:end].decode("ascii")
    if der[at] == 0x17:  # UTCTime has two digits for the year
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.timezone.utc)


def certificate(host, port, timeout, verify):
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((host, port), timeout) as plain:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            return secure.getpeercert(binary_form=True)


def look(target, timeout):
    host, port = split(target)
    row = {"host": host, "port": port, "days_left": None, "not_after": None, "verified": False, "ok": False, "error": None}
    try:
        try:
            der = certificate(host, port, timeout, True)
            row["verified"] = True
        except ssl.SSLCertVerificationError as error:
            row["error"] = error.verify_message
            der = certificate(host, port, timeout, False)
        end = not_after(der)
        left = end - datetime.datetime.now(datetime.timezone.utc)
        row["not_after"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
        row["days_left"] = left.days
    except (OSError, ValueError, IndexError) as error:
        row["error"] = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return row


def number(params, key, default):
    value = params.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        fail("BAD_PARAMETER", f"{key} must be a number above 0 (-p {key}:={default})", 2)
    return value


def main():
    params = parameters()
    hosts = params.get("hosts")
    if isinstance(hosts, str):
        hosts = [host.strip() for host in hosts.split(",") if host.strip()]
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) and host for host in hosts):
        fail("BAD_PARAMETER", "hosts is missing: -p hosts=a.example,b.example:8443", 2)
    try:
        for host in hosts:
            split(host)
    except ValueError:
        fail("BAD_PARAMETER", f"{host}: the port is not a number", 2)
    warn, timeout = number(params, "warn_days", 30), number(params, "timeout_seconds", 5)
    rows = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        for row in pool.map(lambda host: look(host, timeout), hosts):
            row["ok"] = row["verified"] and row["days_left"] >= warn
            rows.append(row)
            say({"@progress": {"done": len(rows), "total": len(hosts), "text": row["host"]}})
    rows.sort(key=lambda row: (row["days_left"] is None, row["days_left"] or 0))
    say({"hosts": rows})
    for row in rows:
        print(f"{row['host']}:{row['port']}  {row['not_after'] or '-'}  {row['error'] or 'ok'}")
    expiring = [row["host"] for row in rows if row["days_left"] is not None and row["days_left"] < warn]
    if expiring:
        fail("TLS_EXPIRING", f"fewer than {warn} days left: " + ", ".join(expiring), 1)
    unreachable = [row["host"] for row in rows if row["days_left"] is None]
    if unreachable:
        fail("TLS_UNREACHABLE", "no certificate from " + ", ".join(unreachable), 1)
    untrusted = [row["host"] for row in rows if not row["verified"]]
    if untrusted:
        fail("TLS_UNTRUSTED", "not trusted here: " + ", ".join(untrusted), 1)


main()
