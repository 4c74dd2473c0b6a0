"""What is measured. Each workload runs once against one target and returns its figures.

A new one is an entry in WORKLOADS: a Load (a backend, a client that ends by itself, a parser for
what it prints), or a class of its own with the same `run`, as Idle is. A target whose configuration
knows no such protocol is passed over.
"""

import itertools
import os
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from . import measure
from .system import Child, Failure, run_client
from .targets import CPUS
from .tools import (DATAGRAM, DATAGRAMS, LARGE, SCRAPE, SESSIONS, SLOW, datagrams, dnsperf, fetch, http_server, iperf3,
                    iperf3_paced, iperf3_server, many_server, name_server, parse_dnsperf, parse_fetch, parse_iperf3, parse_redis,
                    parse_sockperf, parse_sockperf_udp, parse_stream, parse_wrk, redis_get, redis_server, redis_set, redis_value, sockperf,
                    sockperf_server, stream, wrk)

HOLD = Path(__file__).with_name("hold.py")
NOBODY = 65534  # the user and group without rights, for proxies that are not to run as root
# pdeathsig: with the change of user the kernel forgets that this process is to end with its parent.
AS_NOBODY = ("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--pdeathsig", "TERM")


@dataclass(frozen=True)
class Figure:
    key: str
    title: str
    better: str                     # "less" or "more"
    # Derived: that other figure, less what `direct` had in the same round.
    over_direct: str | None = None


class Bench:
    """What the measurements of one run share: the namespace, the temporary folder, ports, sizes."""

    def __init__(self, namespace, folder, quick, sessions, flows):
        self.namespace, self.folder, self.quick = namespace, Path(folder), quick
        self.sessions, self.flows = sessions, flows
        # A fresh pair each time, so that no TIME_WAIT of an earlier measurement matters; all below
        # the ephemeral ports.
        self._ports = itertools.cycle(range(2000, 9998, 2))
        self.configs = {}

    def ports(self):
        front = next(self._ports)
        return front, front + 1

    @contextmanager
    def setting(self, target, protocol, backend_argv, pipes=False, unprivileged=False, metrics=False):
        """A backend and, but for `direct`, a fresh proxy before it, both listening.

        `unprivileged`: the proxy runs as nobody. `metrics`: a proxy that can tells its metrics.
        """
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder)))
            front, back = self.ports()
            backend = stack.enter_context(
                Child(self.namespace, backend_argv(folder, back), folder / "backend.log", pipes=pipes))
            backend.wait_listening(back, protocol)
            proxy = None
            if target.templates:
                admin = self.ports()[0] if target.scraped or (metrics and target.metrics) else None
                path = folder / target.file
                path.write_text(target.config(protocol, folder, front, back, max(self.sessions, SESSIONS), self.flows, admin))
                kind = " ".join([target.name] + ["udp"] * (protocol == "udp") + ["admin"] * bool(admin and not target.scraped))
                self.configs.setdefault(kind, path.read_text())
                argv = target.argv(path)
                if unprivileged:
                    argv = [*AS_NOBODY, *argv]
                    self.let_in(folder, path)
                proxy = Child(self.namespace, argv, folder / "proxy.log")
                stack.enter_context(proxy)
                proxy.wait_listening(front, protocol)
                until = time.monotonic() + 5
                while len(measure.family(proxy.pid)) < target.processes and time.monotonic() < until:
                    time.sleep(0.01)
                time.sleep(0.15)                # let it finish its start
                if admin:
                    proxy.wait_listening(admin, "tcp")
            yield Setting(self, folder, backend, proxy, front if proxy else back, back, admin if proxy else None)
            if proxy and not proxy.alive():
                raise Failure(f"{target.name} died: {proxy.tail()}")

    def let_in(self, folder, path):
        """Gives nobody the folder and the configuration in it, and lets it come as far as that."""
        for parent in self.folder.parents:
            if not parent.stat().st_mode & 0o001:
                raise Failure(f"{parent} may not be entered by user {NOBODY}, as whom the proxy is to run: set TMPDIR to a folder "
                              "that everybody may enter")
        self.folder.chmod(0o711)
        for belongs in (folder, path):
            os.chown(belongs, NOBODY, NOBODY)


@dataclass
class Setting:
    bench: Bench
    folder: Path
    backend: Child
    proxy: Child | None
    port: int                       # where clients go
    back: int                       # the backend itself
    admin: int | None               # where the proxy tells its metrics


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
ADDED = Figure("added", "p50 us, less direct's", "less", over_direct="p50")
PING = (Figure("throughput", "round trips / s", "more"), *LATENCY, ADDED, Figure("lost", "messages lost", "less"))
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
    full: int  # the size: GiB, seconds, requests or datagrams, whichever the client takes
    quick: int
    prepare: Callable | None = None  # (port of the backend) -> argv, run once before
    beside: tuple | None = None     # the figures beside CPU, if they are not rate and latency
    more: tuple = ()                # figures after those
    ask: bool = False               # whether the backend, too, is asked for what it has seen
    protocol: str = "tcp"
    unprivileged: bool = False      # whether the proxy runs as nobody
    # (figure, metric): read from a proxy that tells its metrics, once the client has ended
    metrics: tuple = ()
    slow: tuple | None = None       # (idle clients, slow readers) that slow.py holds meanwhile
    sysctls: tuple = ()             # ((name, value), ...) of the namespace meanwhile
    direct: bool = True             # whether it is measured without a proxy, too
    holds: int | None = None        # sessions at once, if they are many
    twice: bool = False  # whether it is so near its limit that it gets twice as many rounds

    @property
    def figures(self):
        cpu = CPU_PER[self.unit][0]
        if self.beside:
            return (cpu, *self.beside)
        rate = Figure("throughput", f"{self.unit}{'' if self.unit == 'GiB' else 's'} / s", "more")
        if self.slow:                           # what others make one wait is what it is about
            return (LATENCY[1], cpu, rate, LATENCY[0])
        return (cpu, rate, *(() if self.unit == "GiB" else LATENCY), *self.more)

    def run(self, bench, target):
        size = self.quick if bench.quick else self.full
        limit = 60 if bench.quick else 120
        with ExitStack() as stack:
            stack.enter_context(bench.namespace.with_sysctls(dict(self.sysctls)))
            at = stack.enter_context(bench.setting(target, self.protocol, self.backend, pipes=self.ask,
                                                   unprivileged=self.unprivileged, metrics=bool(self.metrics)))
            if self.prepare:
                run_client(bench.namespace, self.prepare(at.back), at.folder / "prepare.log", 20)
            holder = stack.enter_context(self.holder(bench, at))
            scraper = stack.enter_context(
                Child(bench.namespace, [sys.executable, SCRAPE, at.admin, *([1] if target.scraped else [])],
                      at.folder / "scrape.log", pipes=True) if at.admin else nullcontext())
            argv = [str(part) for part in self.client(at.folder, at.port, size)]
            machine = measure.Machine()
            helpers = [(child, measure.Usage(child.pid)) for child in (holder, scraper) if child]
            used = measure.Usage(at.proxy.pid) if at.proxy else None
            served = measure.Usage(at.backend.pid)
            text, elapsed, client_cpu = run_client(bench.namespace, argv, at.folder / "client.log", limit)
            time.sleep(0.1)                     # the proxy closes what the client has left
            if self.ask:
                text += f"arrived {order(at.backend, 'count')}\n"
            result = {"commands": {"backend": at.backend.argv, "client": argv}, "size": size, "elapsed": elapsed,
                      "sysctls": dict(self.sysctls), "warnings": []}
            cpu = 0.0
            if at.proxy:
                cpu, ticks, warning = measure.Usage(at.proxy.pid).since(used)
                result["commands"]["proxy"] = at.proxy.argv
                result |= {"cpu_seconds": cpu, "cpu_seconds_by_ticks": ticks}
                result["warnings"] += [warning] if warning else []
            busy, stolen, span = measure.Machine().since(machine)
            client_cpu += sum(measure.Usage(child.pid).since(before)[0] for child, before in helpers if child.alive())
            units, figures = self.parse(text, size)
            if not units:
                raise Failure(f"{argv[0]} reports no work done")
            if at.proxy:
                figures["cpu"] = cpu * CPU_PER[self.unit][1] / units
            backend_cpu = measure.Usage(at.backend.pid).since(served)[0] if at.backend.alive() else None
            if holder:
                result["held"] = self.still_held(holder)
            if target.scraped:
                result["scrapes"] = order(scraper, "scrapes")
                if not result["scrapes"]:
                    raise Failure("the metrics were not scraped during the load")
            if at.admin:
                figures |= {key: order(scraper, metric) for key, metric in self.metrics}
            result |= {"units": units, "figures": figures, "client_cpu_seconds": client_cpu,
                       "backend_cpu_seconds": backend_cpu, "machine_busy_seconds": busy,
                       "machine_stolen_seconds": stolen, "machine_span_seconds": span}
        if at.proxy:
            result["warnings"] += at.proxy.notes
        return result

    def holder(self, bench, at):
        """The idle clients and slow readers, all of them there."""
        if not self.slow:
            return nullcontext()
        child = Child(bench.namespace, [sys.executable, SLOW, at.port, *self.slow, LARGE], at.folder / "slow.log", pipes=True)
        try:
            opened = order(child, "open")
            if opened != sum(self.slow):
                raise Failure(f"only {opened} of {sum(self.slow)} idle clients and slow readers could be opened")
            time.sleep(0.5)                     # the buffers on the slow ones' way fill
        except BaseException:
            child.stop()
            raise
        return child

    def still_held(self, holder):
        held = order(holder, "check")
        if held != sum(self.slow):
            raise Failure(f"at the end there were {holder.tail().splitlines()[-1]}")
        return held


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
    # A program without sessions has nothing to be looked at.
    commands, direct, twice = (), False, False

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
        settle, watch = (1, 1) if bench.quick else (1, 3)
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
        """One session per CPU before the first look, so that the program's own first use is not
        charged to the sessions."""
        with self.holder(bench, at, CPUS) as first:
            for word in ("open", "close"):
                order(first, word)
        time.sleep(0.2)


# The list

REDIS = ("redis-server", "redis-benchmark")
HTTP_TOOLS = ("nginx", "wrk")
# At most so much waits in sockets: the rest is with the proxy, in pipes or in memory of its own.
SMALL_BUFFERS = (("net.ipv4.tcp_rmem", "4096 131072 262144"), ("net.ipv4.tcp_wmem", "4096 16384 262144"))
LOST = Figure("lost", "bytes lost or wrong", "less")

WORKLOADS = {workload.name: workload for workload in (
    Load("bulk", "one stream from the backend to the client, iperf3 -R, a fixed number of bytes", "GiB", ("iperf3",),
         iperf3_server, iperf3("-R"), parse_iperf3, full=5, quick=2),
    Load("bulk-up", "one stream from the client to the backend, iperf3, a fixed number of bytes", "GiB", ("iperf3",),
         iperf3_server, iperf3(), parse_iperf3, full=5, quick=2, twice=True),
    Load("bulk8", "the same as bulk with eight streams at once", "GiB", ("iperf3",),
         iperf3_server, iperf3("-P", 8, "-R"), parse_iperf3, full=5, quick=2),
    Load("bulk8-up", "the same as bulk-up with eight streams at once", "GiB", ("iperf3",),
         iperf3_server, iperf3("-P", 8), parse_iperf3, full=5, quick=2),
    Load("paced", "eight streams from the backend to the client, 250 Mbit/s each, iperf3 -R -b", "GiB", ("iperf3",),
         iperf3_server, iperf3_paced("250M", "-P", 8, "-R"), parse_iperf3, full=3, quick=2),
    Load("wrk", "HTTP keep-alive, 50 connections, a body of 13 bytes", "request", HTTP_TOOLS,
         http_server, wrk(), parse_wrk, full=3, quick=2),
    Load("redis50", "redis GET of 3 bytes, 50 clients, one request at a time each", "request", REDIS,
         redis_server, redis_get(50), parse_redis, full=120_000, quick=60_000, prepare=redis_value(3)),
    Load("redis50-set", "redis SET of 3 bytes, 50 clients, one request at a time each", "request", REDIS,
         redis_server, redis_set(50), parse_redis, full=120_000, quick=60_000),
    Load("redis1", "redis GET of 3 bytes, one client", "request", REDIS,
         redis_server, redis_get(1), parse_redis, full=30_000, quick=10_000, prepare=redis_value(3),
         more=(ADDED,)),
    Load("sockperf-tcp", "sockperf over TCP, one message of 64 bytes at a time, there and back", "request", ("sockperf",),
         sockperf_server("--tcp"), sockperf("--tcp"), parse_sockperf, full=3, quick=2, beside=PING),
    Load("v16k", "redis GET of 16 KiB values, 50 clients", "request", REDIS,
         redis_server, redis_get(50), parse_redis, full=80_000, quick=40_000, prepare=redis_value(16 << 10), twice=True),
    Load("v64k", "redis GET of 64 KiB values, 50 clients", "request", REDIS,
         redis_server, redis_get(50), parse_redis, full=40_000, quick=20_000, prepare=redis_value(64 << 10)),
    Load("wrk-churn", "HTTP, a connection for each request, 50 at a time", "connection", HTTP_TOOLS,
         http_server, wrk("-H", "Connection: close"), parse_wrk, full=3, quick=2),
    Load("redis-churn", "redis GET of 3 bytes, a connection for each request, 50 at a time", "connection", REDIS,
         redis_server, redis_get(50, "-k", 0), parse_redis, full=30_000, quick=15_000, prepare=redis_value(3),
         twice=True),
    Load("slow", "the same as wrk while 1,000 idle clients and 10 slow readers are held by the same proxy", "request",
         HTTP_TOOLS, http_server, wrk(), parse_wrk, full=3, quick=2, slow=(1000, 10), holds=1100),
    Load("bulk1200", "1,200 streams from the backend at once, every byte checked; the proxy is not root", "GiB", ("setpriv",),
         many_server, fetch, parse_fetch, full=4 << 20, quick=1 << 20, unprivileged=True, sysctls=SMALL_BUFFERS, direct=False, holds=SESSIONS,
         metrics=(("fallbacks", "tembuku_splice_fallbacks_total"),),
         more=(LOST, Figure("fallbacks", "times copied for want of a pipe", "more"))),
    Idle("idle", "idle sessions held through the proxy: its memory, descriptors and CPU for them", "session", "tcp",
         "sessions", HOLD),
    Load("dns", "UDP: dnsperf, 10 sockets, 200 queries under way, answered by nsd", "datagram", ("dnsperf", "nsd"),
         name_server, dnsperf, parse_dnsperf, full=200_000, quick=80_000, beside=DNS, protocol="udp"),
    Load("sockperf", "UDP: sockperf, one message of 64 bytes at a time, there and back", "datagram", ("sockperf",),
         sockperf_server(), sockperf(), parse_sockperf_udp, full=3, quick=2, beside=PING, protocol="udp"),
    Load("oneway", "UDP: 70,000 datagrams of 1,200 bytes a second from 8 sockets in turn", "datagram", (),
         datagrams("sink", DATAGRAM), stream(70_000), parse_stream, full=210_000, quick=140_000, beside=STREAM, ask=True,
         protocol="udp"),
    Load("gso", "UDP: 100,000 a second, sent as the servers of QUIC do, 54 in one call (UDP_SEGMENT)", "datagram", (),
         datagrams("sink", DATAGRAM, "gro"), stream(100_000, "gso"), parse_stream, full=300_000, quick=200_000,
         beside=STREAM, ask=True, protocol="udp"),
    Idle("udp-flows", "UDP: flows that have exchanged a datagram each way and then say nothing", "flow", "udp", "flows",
         DATAGRAMS),
)}
