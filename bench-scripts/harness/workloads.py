"""What is measured. Each workload runs once against one target and returns its figures.

A new one is an entry in WORKLOADS: a Load (a backend, a client that ends by itself, a parser for what it prints),
or a class of its own with the same `run`, as Idle is. A target whose configuration knows no such protocol is passed over.
"""

import itertools
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from . import measure
from .system import Child, Failure, run_client
from .targets import CPUS
from .tools import (DATAGRAM, DATAGRAMS, datagrams, dnsperf, http_server, iperf3, iperf3_server, name_server, parse_dnsperf,
                    parse_iperf3, parse_redis, parse_stream, parse_wrk, redis_get, redis_server, redis_value, stream, wrk)

HOLD = Path(__file__).with_name("hold.py")


@dataclass(frozen=True)
class Figure:
    key: str
    title: str
    better: str                     # "less" or "more"


class Bench:
    """What the measurements of one run share: the namespace, the temporary folder, ports, sizes."""

    def __init__(self, namespace, folder, quick, sessions, flows):
        self.namespace, self.folder, self.quick = namespace, Path(folder), quick
        self.sessions, self.flows = sessions, flows
        # A fresh pair each time, so that no TIME_WAIT of an earlier measurement matters; all below the ephemeral ports.
        self._ports = itertools.cycle(range(2000, 9998, 2))
        self.configs = {}

    def ports(self):
        front = next(self._ports)
        return front, front + 1

    @contextmanager
    def setting(self, target, protocol, backend_argv, pipes=False):
        """A backend and, but for `direct`, a fresh proxy before it, both listening."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder)))
            front, back = self.ports()
            backend = stack.enter_context(
                Child(self.namespace, backend_argv(folder, back), folder / "backend.log", pipes=pipes))
            backend.wait_listening(back, protocol)
            proxy = None
            if target.templates:
                path = folder / target.file
                path.write_text(target.config(protocol, folder, front, back, self.sessions, self.flows))
                self.configs.setdefault(target.name if protocol == "tcp" else f"{target.name} {protocol}", path.read_text())
                proxy = Child(self.namespace, target.argv(path), folder / "proxy.log")
                stack.enter_context(proxy)
                proxy.wait_listening(front, protocol)
                until = time.monotonic() + 5
                while len(measure.family(proxy.pid)) < target.processes and time.monotonic() < until:
                    time.sleep(0.01)
                time.sleep(0.15)                # let it finish its start
            yield Setting(self, folder, backend, proxy, front if proxy else back, back)
            if proxy and not proxy.alive():
                raise Failure(f"{target.name} died: {proxy.tail()}")


@dataclass
class Setting:
    bench: Bench
    folder: Path
    backend: Child
    proxy: Child | None
    port: int                       # where clients go
    back: int                       # the backend itself


# Load: a client that ends by itself

CPU_PER = {                         # unit of work -> the first figure, and its scale from seconds
    "GiB": (Figure("cpu", "CPU s / GiB", "less"), 1),
    "request": (Figure("cpu", "CPU us / request", "less"), 1e6),
    "connection": (Figure("cpu", "CPU us / connection", "less"), 1e6),
    "datagram": (Figure("cpu", "CPU us / datagram", "less"), 1e6),
}
LATENCY = (Figure("p50", "p50 us", "less"), Figure("p99", "p99 us", "less"))
DNS = (Figure("throughput", "queries / s", "more"), Figure("lost", "queries lost", "less"),
       Figure("latency", "mean us", "less"))
STREAM = (Figure("throughput", "datagrams / s", "more"), Figure("loss", "% lost", "less"))


@dataclass(frozen=True)
class Load:
    name: str
    about: str
    unit: str
    commands: tuple
    backend: Callable               # (folder, port) -> argv
    client: Callable                # (folder, port, size) -> argv
    parse: Callable                 # (text, size) -> (units, figures)
    full: int                       # the size: GiB, seconds, requests or datagrams, whichever the client takes
    quick: int
    prepare: Callable | None = None  # (port of the backend) -> argv, run once before
    beside: tuple | None = None     # the figures beside CPU, if they are not rate and latency
    ask: bool = False               # whether the backend, too, is asked for what it has seen
    protocol: str = "tcp"
    direct, holds = True, None

    @property
    def figures(self):
        if self.beside:
            return (CPU_PER[self.unit][0], *self.beside)
        rate = Figure("throughput", f"{self.unit}{'' if self.unit == 'GiB' else 's'} / s", "more")
        return (CPU_PER[self.unit][0], rate, *(() if self.unit == "GiB" else LATENCY))

    def run(self, bench, target):
        size = self.quick if bench.quick else self.full
        limit = 90 if bench.quick else 240
        with bench.setting(target, self.protocol, self.backend, pipes=self.ask) as at:
            if self.prepare:
                run_client(bench.namespace, self.prepare(at.back), at.folder / "prepare.log", 20)
            argv = [str(part) for part in self.client(at.folder, at.port, size)]
            machine = measure.Machine()
            used = measure.Usage(at.proxy.pid) if at.proxy else None
            served = measure.Usage(at.backend.pid)
            text, elapsed, client_cpu = run_client(bench.namespace, argv, at.folder / "client.log", limit)
            time.sleep(0.1)                     # the proxy closes what the client has left
            if self.ask:
                text += f"arrived {order(at.backend, 'count')}\n"
            result = {"commands": {"backend": at.backend.argv, "client": argv}, "size": size, "elapsed": elapsed,
                      "warnings": []}
            cpu = 0.0
            if at.proxy:
                cpu, ticks, warning = measure.Usage(at.proxy.pid).since(used)
                result["commands"]["proxy"] = at.proxy.argv
                result |= {"cpu_seconds": cpu, "cpu_seconds_by_ticks": ticks}
                result["warnings"] += [warning] if warning else []
            busy, stolen, span = measure.Machine().since(machine)
            units, figures = self.parse(text, size)
            if not units:
                raise Failure(f"{argv[0]} reports no work done")
            if at.proxy:
                figures["cpu"] = cpu * CPU_PER[self.unit][1] / units
            backend_cpu = measure.Usage(at.backend.pid).since(served)[0] if at.backend.alive() else None
            result |= {"units": units, "figures": figures, "client_cpu_seconds": client_cpu,
                       "backend_cpu_seconds": backend_cpu, "machine_busy_seconds": busy,
                       "machine_stolen_seconds": stolen, "machine_span_seconds": span}
        if at.proxy:
            result["warnings"] += at.proxy.notes
        return result


# Idle: sessions that do nothing

def order(child, word):
    """Writes a line to a process that answers each with a word and a number; the number."""
    try:
        child.process.stdin.write(word + "\n")
        child.process.stdin.flush()
        answer = child.process.stdout.readline().split()
    except BrokenPipeError:
        answer = []
    if len(answer) != 2:
        raise Failure(f"{Path(child.argv[1]).name} ended at '{word}': {child.tail()}")
    return int(answer[1])


@dataclass(frozen=True)
class Idle:
    name: str
    about: str
    unit: str
    protocol: str
    holds: str                      # the option that says how many
    program: Path                   # its roles `client` and `echo` hold the ends
    commands, direct = (), False

    @property
    def figures(self):
        return (
            Figure("bytes", f"bytes / {self.unit} (Pss)", "less"),
            Figure("anonymous", f"bytes / {self.unit} (anonymous)", "less"),
            Figure("rss", f"bytes / {self.unit} (Rss)", "less"),
            Figure("descriptors", f"descriptors / {self.unit}", "less"),
            Figure("idle_cpu", "CPU ms / s, all idle", "less"),
            Figure("held", f"{self.unit}s alive at the end", "more"),
        )

    def run(self, bench, target):
        count = getattr(bench, self.holds)
        settle, watch = (1, 2) if bench.quick else (2, 5)
        backend = lambda _folder, port: [sys.executable, self.program, "echo", port]
        with bench.setting(target, self.protocol, backend, pipes=True) as at, self.holder(bench, at, count) as client:
            self.warm_up(bench, at)
            before, open_before = measure.memory(at.proxy.pid), measure.descriptors(at.proxy.pid)
            machine, started = measure.Machine(), time.monotonic()
            opened = order(client, "open")
            opening = time.monotonic() - started
            time.sleep(settle)
            after, open_after = measure.memory(at.proxy.pid), measure.descriptors(at.proxy.pid)
            used, quiet = measure.Usage(at.proxy.pid), time.monotonic()
            time.sleep(watch)
            cpu, ticks, warning = measure.Usage(at.proxy.pid).since(used)
            quiet = time.monotonic() - quiet
            busy, stolen, span = measure.Machine().since(machine)
            held = order(client, "check")
            order(client, "close")
            if opened != count:
                raise Failure(f"only {opened} of {count} {self.unit}s could be opened")
            per_session = {key: (after[key] - before[key]) / count for key in after}
            result = {
                "commands": {"backend": at.backend.argv, "client": client.argv, "proxy": at.proxy.argv},
                "size": count, "units": count, "elapsed": opening, "warnings": [warning] if warning else [],
                "memory_before": before, "memory_after": after,
                "descriptors_before": open_before, "descriptors_after": open_after,
                "cpu_seconds": cpu, "cpu_seconds_by_ticks": ticks,
                "machine_busy_seconds": busy, "machine_stolen_seconds": stolen, "machine_span_seconds": span,
                "figures": {"bytes": per_session["pss"], "anonymous": per_session["anonymous"],
                            "rss": per_session["rss"], "descriptors": (open_after - open_before) / count,
                            "idle_cpu": 1000 * cpu / quiet, "held": held},
            }
            time.sleep(0.3)
        result["warnings"] += at.proxy.notes
        return result

    def holder(self, bench, at, count):
        return Child(bench.namespace, [sys.executable, self.program, "client", at.port, count], at.folder / "client.log",
                     pipes=True)

    def warm_up(self, bench, at):
        """One session per CPU before the first look, so that the program's own first use is not charged to the sessions."""
        with self.holder(bench, at, CPUS) as first:
            for word in ("open", "close"):
                order(first, word)
        time.sleep(0.2)


# The list

REDIS = ("redis-server", "redis-benchmark")
HTTP_TOOLS = ("nginx", "wrk")

WORKLOADS = {workload.name: workload for workload in (
    Load("bulk", "one stream from the backend to the client, iperf3 -R, a fixed number of bytes", "GiB", ("iperf3",),
         iperf3_server, iperf3("-R"), parse_iperf3, full=10, quick=3),
    Load("bulk-up", "one stream from the client to the backend, iperf3, a fixed number of bytes", "GiB", ("iperf3",),
         iperf3_server, iperf3(), parse_iperf3, full=10, quick=3),
    Load("wrk", "HTTP keep-alive, 50 connections, a body of 13 bytes", "request", HTTP_TOOLS,
         http_server, wrk(), parse_wrk, full=8, quick=2),
    Load("redis50", "redis GET of 3 bytes, 50 clients, one request at a time each", "request", REDIS,
         redis_server, redis_get(50), parse_redis, full=300_000, quick=40_000, prepare=redis_value(3)),
    Load("redis1", "redis GET of 3 bytes, one client", "request", REDIS,
         redis_server, redis_get(1), parse_redis, full=60_000, quick=8_000, prepare=redis_value(3)),
    Load("v16k", "redis GET of 16 KiB values, 50 clients", "request", REDIS,
         redis_server, redis_get(50), parse_redis, full=150_000, quick=20_000, prepare=redis_value(16 << 10)),
    Load("v64k", "redis GET of 64 KiB values, 50 clients", "request", REDIS,
         redis_server, redis_get(50), parse_redis, full=60_000, quick=10_000, prepare=redis_value(64 << 10)),
    Load("wrk-churn", "HTTP, a connection for each request, 50 at a time", "connection", HTTP_TOOLS,
         http_server, wrk("-H", "Connection: close"), parse_wrk, full=8, quick=2),
    Load("redis-churn", "redis GET of 3 bytes, a connection for each request, 50 at a time", "connection", REDIS,
         redis_server, redis_get(50, "-k", 0), parse_redis, full=50_000, quick=10_000, prepare=redis_value(3)),
    Idle("idle", "idle sessions held through the proxy: its memory, descriptors and CPU for them", "session", "tcp",
         "sessions", HOLD),
    Load("dns", "UDP: dnsperf, 10 sockets, 200 queries under way, answered by nsd", "datagram", ("dnsperf", "nsd"),
         name_server, dnsperf, parse_dnsperf, full=400_000, quick=120_000, beside=DNS, protocol="udp"),
    Load("oneway", "UDP: 70,000 datagrams of 1,200 bytes a second from 8 sockets in turn", "datagram", (),
         datagrams("sink", DATAGRAM), stream(70_000), parse_stream, full=500_000, quick=150_000, beside=STREAM, ask=True,
         protocol="udp"),
    Load("gso", "UDP: 100,000 a second, sent as the servers of QUIC do, 54 in one call (UDP_SEGMENT)", "datagram", (),
         datagrams("sink", DATAGRAM, "gro"), stream(100_000, "gso"), parse_stream, full=800_000, quick=250_000,
         beside=STREAM, ask=True, protocol="udp"),
    Idle("udp-flows", "UDP: flows that have exchanged a datagram each way and then say nothing", "flow", "udp", "flows",
         DATAGRAMS),
)}
