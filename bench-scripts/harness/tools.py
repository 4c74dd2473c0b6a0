"""The programs that make load: how each backend and each client is started, and how to read what the client prints."""

import json
import re

from .system import Failure
from .targets import CPUS

GIB = 1 << 30


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
        return 200 "a small body\\n";
    }}
}}
"""


def http_server(folder, port):
    path = folder / "backend.conf"
    path.write_text(HTTP.format(cpus=CPUS, folder=folder, port=port))
    return ["nginx", "-e", "stderr", "-p", folder, "-c", path]


# Clients: (port, size) -> argv

def redis_get(clients, *more):
    return lambda port, size: ["redis-benchmark", "-h", "127.0.0.1", "-p", port, "-c", clients, "-n", size, "-t", "get",
                               "--csv", "--precision", 3, *more]


def redis_value(length):
    return lambda port: ["redis-benchmark", "-h", "127.0.0.1", "-p", port, "-c", 1, "-n", 1, "-t", "set", "-d", length,
                         "--csv"]


def wrk(*more):
    return lambda port, size: ["wrk", "-t", 2, "-c", 50, "-d", f"{size}s", "--latency", *more,
                               f"http://127.0.0.1:{port}/"]


def iperf3(*more):
    return lambda port, size: ["iperf3", "-c", "127.0.0.1", "-p", port, "-n", f"{size}G", "-J", *more]


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
