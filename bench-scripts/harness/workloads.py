"""What is measured. Each workload runs once against one target and returns its figures.

A new one is an entry in WORKLOADS: a Load (a backend, a client that ends by itself, a parser for what it prints),
or a class of its own with the same `run`, as Idle is.
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
from .tools import (http_server, iperf3, iperf3_server, parse_iperf3, parse_redis, parse_wrk, redis_get, redis_server,
                    redis_value, wrk)

HOLD = Path(__file__).with_name("hold.py")


@dataclass(frozen=True)
class Figure:
    key: str
    title: str
    better: str                     # "less" or "more"


class Bench:
    """What the measurements of one run share: the namespace, the temporary folder, ports, sizes."""

    def __init__(self, namespace, folder, quick, sessions):
        self.namespace, self.folder, self.quick, self.sessions = namespace, Path(folder), quick, sessions
        # A fresh pair each time, so that no TIME_WAIT of an earlier measurement matters; all below the ephemeral ports.
        self._ports = itertools.cycle(range(2000, 9998, 2))
        self.configs = {}

    def ports(self):
        front = next(self._ports)
        return front, front + 1

    @contextmanager
    def setting(self, target, backend_argv, pipes=False):
        """A backend and, but for `direct`, a fresh proxy before it, both listening."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder)))
            front, back = self.ports()
            backend = stack.enter_context(
                Child(self.namespace, backend_argv(folder, back), folder / "backend.log", pipes=pipes))
            backend.wait_listening(back)
            proxy = None
            if target.template:
                path = folder / target.file
                path.write_text(target.config(folder, front, back, self.sessions))
                self.configs.setdefault(target.name, path.read_text())
                proxy = Child(self.namespace, target.argv(path), folder / "proxy.log")
                stack.enter_context(proxy)
                proxy.wait_listening(front)
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
}
LATENCY = (Figure("p50", "p50 us", "less"), Figure("p99", "p99 us", "less"))


@dataclass(frozen=True)
class Load:
    name: str
    about: str
    unit: str
    commands: tuple
    backend: Callable               # (folder, port) -> argv
    client: Callable                # (port, size) -> argv
    parse: Callable                 # (text, size) -> (units, figures)
    full: int                       # the size: GiB, seconds or requests, whichever the client takes
    quick: int
    prepare: Callable | None = None  # (port of the backend) -> argv, run once before
    direct = True

    @property
    def figures(self):
        rate = Figure("throughput", f"{self.unit}{'' if self.unit == 'GiB' else 's'} / s", "more")
        return (CPU_PER[self.unit][0], rate, *(() if self.unit == "GiB" else LATENCY))

    def run(self, bench, target):
        size = self.quick if bench.quick else self.full
        limit = 90 if bench.quick else 240
        with bench.setting(target, self.backend) as at:
            if self.prepare:
                run_client(bench.namespace, self.prepare(at.back), at.folder / "prepare.log", 20)
            argv = [str(part) for part in self.client(at.port, size)]
            machine = measure.Machine()
            used = measure.Usage(at.proxy.pid) if at.proxy else None
            served = measure.Usage(at.backend.pid)
            text, elapsed, client_cpu = run_client(bench.namespace, argv, at.folder / "client.log", limit)
            time.sleep(0.1)                     # the proxy closes what the client has left
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

class Idle:
    name = "idle"
    about = "idle sessions held through the proxy: its memory, descriptors and CPU for them"
    unit, commands, direct = "session", (), False
    figures = (
        Figure("bytes", "bytes / session (Pss)", "less"),
        Figure("anonymous", "bytes / session (anonymous)", "less"),
        Figure("rss", "bytes / session (Rss)", "less"),
        Figure("descriptors", "descriptors / session", "less"),
        Figure("idle_cpu", "CPU ms / s, all idle", "less"),
        Figure("held", "sessions alive at the end", "more"),
    )

    def run(self, bench, target):
        count = bench.sessions
        settle, watch = (1, 2) if bench.quick else (2, 5)
        backend = lambda _folder, port: [sys.executable, HOLD, "backend", port]
        with bench.setting(target, backend, pipes=True) as at, \
                Child(bench.namespace, [sys.executable, HOLD, "client", at.port, count], at.folder / "client.log",
                      pipes=True) as client:
            self.warm_up(bench, at)
            before, open_before = measure.memory(at.proxy.pid), measure.descriptors(at.proxy.pid)
            machine, started = measure.Machine(), time.monotonic()
            opened = self.order(client, "open")
            opening = time.monotonic() - started
            time.sleep(settle)
            after, open_after = measure.memory(at.proxy.pid), measure.descriptors(at.proxy.pid)
            used, quiet = measure.Usage(at.proxy.pid), time.monotonic()
            time.sleep(watch)
            cpu, ticks, warning = measure.Usage(at.proxy.pid).since(used)
            quiet = time.monotonic() - quiet
            busy, stolen, span = measure.Machine().since(machine)
            held = self.order(client, "check")
            self.order(client, "close")
            if opened != count:
                raise Failure(f"only {opened} of {count} sessions could be opened")
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

    @staticmethod
    def warm_up(bench, at):
        """One session before the first look, so that the program's own first use is not charged to the sessions."""
        with Child(bench.namespace, [sys.executable, HOLD, "client", at.port, CPUS], at.folder / "client.log",
                   pipes=True) as first:
            for order in ("open", "close"):
                Idle.order(first, order)
        time.sleep(0.2)

    @staticmethod
    def order(client, word):
        client.process.stdin.write(word + "\n")
        client.process.stdin.flush()
        answer = client.process.stdout.readline().split()
        if len(answer) != 2:
            raise Failure(f"the holder ended at '{word}': {client.tail()}")
        return int(answer[1])


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
    Idle(),
)}
