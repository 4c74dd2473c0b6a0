"""The programs that make load: how each backend and each client is started, and how to read what
the client prints."""

import json
import os
import random
import re
import sys
from pathlib import Path

from .system import Failure
from .targets import CPUS

GIB = 1 << 30
DATAGRAMS = Path(__file__).with_name("datagrams.py")
MANY = Path(__file__).with_name("many.py")
SLOW = Path(__file__).with_name("slow.py")
SCRAPE = Path(__file__).with_name("scrape.py")
DATAGRAM = 1200                     # bytes: what QUIC begins with
SESSIONS = 1200  # bulk sessions at once: more than the pipes of an unprivileged user are for
# Bytes of /large: no buffer on the way takes so much, so whoever reads it slowly is not done.
LARGE = 256 << 20


# Backends: (folder, port) -> argv

def iperf3_server(_folder, port):
    return ["iperf3", "-s", "-B", "127.0.0.1", "-p", port]


def redis_server(folder, port):
    return ["redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no",
            "--daemonize", "no", "--dir", folder]


HTTP = """\
user root;
worker_processes {cpus};
daemon off;
pid {folder}/backend.pid;
events {{
    worker_connections 16384;
}}
http {{
    access_log off;
    client_body_temp_path {folder}/t1;
    proxy_temp_path {folder}/t2;
    fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4;
    scgi_temp_path {folder}/t5;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    default_type text/plain;
    server {{
        listen 127.0.0.1:{port} reuseport;
        location / {{
            return 200 "a small body\\n";
        }}
        location = /large {{
            root {folder};
        }}
    }}
}}
"""


def http_server(folder, port):
    (folder / "large").touch()
    os.truncate(folder / "large", LARGE)        # zeros, which take no room on the disk
    path = folder / "backend.conf"
    path.write_text(HTTP.format(cpus=CPUS, folder=folder, port=port))
    return ["nginx", "-e", "stderr", "-p", folder, "-c", path]


# rrl-ratelimit: by default too many queries of one kind from one address stay unanswered.
NSD = """\
server:
    ip-address: 127.0.0.1@{port}
    server-count: 1
    username: ""
    zonesdir: "{folder}"
    database: ""
    zonelistfile: "{folder}/zone.list"
    xfrdfile: "{folder}/xfrd.state"
    xfrdir: "{folder}"
    pidfile: "{folder}/nsd.pid"
    rrl-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: bench.test
    zonefile: zone
"""
# In the zone, and in the file of queries that is gone through again and again.
NAMES, QUERIES = 300, 10_000


def name_server(folder, port):
    """nsd with a zone, and the queries for it beside it: names of 1 to 40 letters, answers of one
    to four records."""
    dice = random.Random(1)
    zone, queries = ["$TTL 3600", "@ SOA ns hostmaster 1 3600 900 86400 300", "@ NS ns", "ns A 192.0.2.1"], []
    for number in range(NAMES):
        name = f"{'n' * dice.randint(1, 40)}{number}"
        for kind, value in (("A", lambda: f"192.0.2.{dice.randint(1, 254)}"),
                            ("AAAA", lambda: f"2001:db8::{dice.randint(1, 0xffff):x}"),
                            ("TXT", lambda: f'"{"t" * dice.randint(1, 80)}"')):
            zone += [f"{name} {kind} {value()}" for _ in range(dice.randint(1, 4))]
            queries.append(f"{name}.bench.test {kind}")
    (folder / "zone").write_text("\n".join(zone) + "\n")
    (folder / "queries").write_text("\n".join(dice.choices(queries, k=QUERIES)) + "\n")
    path = folder / "nsd.conf"
    path.write_text(NSD.format(folder=folder, port=port))
    return ["nsd", "-d", "-c", path]


def datagrams(role, *more):
    """A backend that is a role of datagrams.py."""
    return lambda _folder, port: [sys.executable, DATAGRAMS, role, port, *more]


def many_server(_folder, port):
    return [sys.executable, MANY, "serve", port]


def sockperf_server(*more):
    return lambda _folder, port: ["sockperf", "server", "-i", "127.0.0.1", "-p", port, *more]


# Clients: (folder, port, size) -> argv

def redis_get(clients, *more, command="get"):
    return lambda _folder, port, size: ["redis-benchmark", "-h", "127.0.0.1", "-p", port, "-c", clients, "-n", size,
                                        "-t", command, "--csv", "--precision", 3, *more]


def redis_set(clients, *more):
    return redis_get(clients, "-d", 3, *more, command="set")


def redis_value(length):
    return lambda port: ["redis-benchmark", "-h", "127.0.0.1", "-p", port, "-c", 1, "-n", 1, "-t", "set", "-d", length,
                         "--csv"]


def wrk(*more):
    return lambda _folder, port, size: ["wrk", "-t", 2, "-c", 50, "-d", f"{size}s", "--latency", *more,
                                        f"http://127.0.0.1:{port}/"]


def iperf3(*more):
    return lambda _folder, port, size: ["iperf3", "-c", "127.0.0.1", "-p", port, "-n", f"{size}G", "-J", *more]


def iperf3_paced(rate, *more):
    return lambda _folder, port, size: ["iperf3", "-c", "127.0.0.1", "-p", port, "-t", size, "-b", rate, "-J", *more]


# no-rdtsc: the clock of the kernel; how fast the CPU's counter runs would be guessed.
def sockperf(*more):
    return lambda _folder, port, size: ["sockperf", "ping-pong", "-i", "127.0.0.1", "-p", port, "-t", size, "-m", 64,
                                        "--full-rtt", "--no-rdtsc", *more]


def fetch(_folder, port, size):
    return [sys.executable, MANY, "fetch", port, SESSIONS, size]


def dnsperf(folder, port, size):
    return ["dnsperf", "-s", "127.0.0.1", "-p", port, "-d", folder / "queries", "-n", size // QUERIES, "-c", 10, "-T", 1,
            "-q", 200]


def stream(rate, *more):
    return lambda _folder, port, size: [sys.executable, DATAGRAMS, "send", port, DATAGRAM, size, rate, *more]


# Parsers: what the client printed -> (units of work, {figure: value})

def parse_iperf3(text, _size):
    end = json.loads(text)["end"]["sum_received"]
    amount = end["bytes"] / GIB
    return amount, {"throughput": amount / end["seconds"]}


def parse_redis(text, size):
    names, values = (re.findall(r'"([^"]*)"', line) for line in text.strip().splitlines()[-2:])
    row = dict(zip(names, values))
    return size, {"throughput": float(row["rps"]), "p50": 1000 * float(row["p50_latency_ms"]),
                  "p99": 1000 * float(row["p99_latency_ms"])}


MICROSECONDS = {"us": 1, "ms": 1000, "s": 1e6, "m": 6e7}


def parse_wrk(text, _size):
    bad = re.search(r"Socket errors:.*|Non-2xx.*", text)
    if bad:
        raise Failure(f"wrk: {bad.group()}")
    requests = int(re.search(r"(\d+) requests in", text).group(1))
    figures = {"throughput": float(re.search(r"Requests/sec:\s*([\d.]+)", text).group(1))}
    for key, percent in (("p50", "50%"), ("p99", "99%")):
        value, unit = re.search(rf"\s{percent}\s+([\d.]+)(us|ms|s|m)\b", text).groups()
        figures[key] = float(value) * MICROSECONDS[unit]
    return requests, figures


def parse_dnsperf(text, _size):
    def found(label):
        return float(re.search(rf"{label}:\s+([\d.]+)", text).group(1))

    bad = re.sub(r"NOERROR \d+ \([\d.]+%\),? ?", "", re.search(r"Response codes: *(.*)", text).group(1))
    if bad:
        raise Failure(f"dnsperf: answers {bad}")
    completed = found("Queries completed")
    return 2 * completed, {"throughput": found("Queries per second"), "lost": found("Queries lost"),
                           "latency": 1e6 * found(r"Average Latency \(s\)")}


def parse_stream(text, _size):
    sent, arrived = json.loads(text.splitlines()[0]), int(re.search(r"^arrived (\d+)$", text, re.M).group(1))
    if arrived > sent["sent"]:
        raise Failure(f"{arrived} datagrams arrived of {sent['sent']} that were sent")
    return arrived, {"throughput": arrived / sent["seconds"], "loss": 100 * (1 - arrived / sent["sent"])}


def parse_sockperf(text, _size):
    def found(pattern):
        seen = re.search(pattern, text)
        if not seen:
            raise Failure(f"sockperf ended without its figures: {text.strip().splitlines()[-1]}")
        return float(seen.group(1))

    sent, received = found(r"SentMessages=(\d+)"), found(r"ReceivedMessages=(\d+)")
    # The last one is under way when the time is over; all but that one must have come back.
    return received, {"throughput": received / found(r"RunTime=([\d.]+) sec"), "lost": max(0, sent - received - 1),
                             "p50": found(r"percentile 50\.000 =\s*([\d.]+)"), "p99": found(r"percentile 99\.000 =\s*([\d.]+)")}


def parse_sockperf_udp(text, size):
    round_trips, figures = parse_sockperf(text, size)
    return 2 * round_trips, figures


def parse_fetch(text, _size):
    seen = json.loads(text)
    if not seen["bytes"]:
        raise Failure(f"no byte of {SESSIONS} sessions arrived as it was sent")
    amount = seen["bytes"] / GIB
    return amount, {"throughput": amount / seen["seconds"], "lost": seen["lost"]}
