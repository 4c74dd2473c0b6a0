"""`limits queue`: many clients of a PostgreSQL server that takes few, each with a connection for
each transaction.

The server has `max_connections = 20`, of which it keeps three for superusers. pgbench connects
within its threads, so each client has one of its own.
"""

import json
import re
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from . import measure, system, targets
from .postgres import Postgres, parse_pgbench, pgbench
from .system import Child, Failure

PLACES = 17

TEMBUKU = """\
[log]
access = "{folder}/access.log"

[listeners.bench]
bind = "127.0.0.1:{front}"
upstream = "u"

[upstreams.u]
queue_timeout = "1m"
backends = [{{ address = "127.0.0.1:{back}", max_connections = {places} }}]
"""

HAPROXY = """\
global
    nbthread {cpus}
    maxconn 4000
    log stdout format raw local0
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 10m
    timeout server 10m
    timeout queue 1m
listen bench
    log global
    log-format "waited %Tw"
    bind 127.0.0.1:{front}
    server one 127.0.0.1:{back} maxconn {places}
"""


class Tembuku:
    name, template, file = "tembuku", TEMBUKU, "tembuku.toml"

    def __init__(self, binary):
        self.binary = binary

    def argv(self, path):
        return [self.binary, "run", "-c", path]

    def waits(self, folder):
        records = map(json.loads, (folder / "access.log").read_text().splitlines())
        return [1e3 * record.get("queue_time", 0.0) for record in records]


class Haproxy:
    name, template, file = "HAProxy", HAPROXY, "haproxy.cfg"

    def argv(self, path):
        return ["haproxy", "-db", "-f", path]

    def waits(self, folder):
        return [float(wait) for wait in re.findall(r"waited (-?\d+)", (folder / "proxy.log").read_text())]


def once(program, namespace, folder, postgres, front, options):
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        path = folder / program.file
        path.write_text(program.template.format(folder=folder, front=front, back=postgres.port, places=PLACES, cpus=targets.CPUS))
        proxy = stack.enter_context(Child(namespace, program.argv(path), folder / "proxy.log"))
        proxy.wait_listening(front, "tcp")
        before = measure.Usage(proxy.pid)
        argv = pgbench(front, "-S", "-C", "-c", options.clients, "-j", options.clients, "-T", int(options.seconds))
        text, _, _ = system.run_client(namespace, argv, folder / "client.log", options.seconds + 120)
        cpu, _, _ = measure.Usage(proxy.pid).since(before)
        errors = (folder / "client.log").read_text().count("error")
        transactions, rate, failed = parse_pgbench(text)
        time.sleep(1.2)                 # lines of the log are written together
        waits = sorted(program.waits(folder))
    if len(waits) < transactions:
        raise Failure(f"{program.name} has logged {len(waits)} of {transactions} connections")
    at = lambda part: waits[min(len(waits) - 1, int(len(waits) * part))]  # noqa: E731
    return {"rate": rate, "errors": errors + failed, "cpu": 1e6 * cpu / transactions, "p10": at(0.1), "p50": at(0.5), "p99": at(0.99),
            "longest": waits[-1]}


def run(options, namespace, folder, binary):
    programs, results = [Tembuku(binary), Haproxy()], {}
    with Postgres(namespace, folder, "server", 1999, {"max_connections": 20}) as postgres:
        postgres.sql("create role bench login superuser")
        env = pgbench(1999, "-i", "-q", "-s", 1)
        system.run_client(namespace, env, folder / "init.log", 60)
        postgres.sql("alter role bench nosuperuser")
        postgres.sql("grant all on all tables in schema public to bench")
        for number in range(options.rounds):
            turn = number % len(programs)
            for program in programs[turn:] + programs[:turn]:
                result = once(program, namespace, folder, postgres, 2000 + 2 * number, options)
                results.setdefault(program.name, []).append(result)
                print(f"round {number + 1} {program.name}: " + ", ".join(f"{k} {v:.1f}" for k, v in result.items()),
                      file=sys.stderr, flush=True)
    print(f"{options.clients} clients, {PLACES} places, {options.rounds} rounds of {options.seconds:.0f} s: median (least to most)\n")
    print("| | transactions/s | errors | CPU us each | waited, ms: 10 % | 50 % | 99 % | longest |")
    print("|---|---|---|---|---|---|---|---|")
    keys = ("rate", "errors", "cpu", "p10", "p50", "p99", "longest")
    for name, group in results.items():
        cells = (f"{statistics.median(v):.0f} ({min(v):.0f} to {max(v):.0f})" for v in ([r[key] for r in group] for key in keys))
        print(f"| {name} | " + " | ".join(cells) + " |")
    ratios = [a["rate"] / b["rate"] for a, b in zip(*results.values())]
    print(f"\ntransactions/s of HAProxy's in the same round: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return 0 if not any(r["errors"] for r in results["tembuku"]) else 1
