"""`limits bandwidth`: what a limit lets through, how smoothly, and what it costs.

A limited sender waits until its window opens, which happens when the proxy reads. On loopback the
kernel then sends its bytes within the proxy's call, and charges that to the proxy; of an unlimited
one most is sent within the sender's calls. Over a network that is the sender's host's work. So the
proxy has a CPU of its own, and what loopback delivers is handled on the others (RPS), as by another
host; `--together` leaves all that out.
"""

import json
import os
import re
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from . import measure, system, targets
from .system import Child, Failure

STREAM = Path(__file__).with_name("stream.py")
WARM = 1.0
SHARED = 4                          # sessions that share a limit
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
GIB = 1 << 30

TEMBUKU = """\
[process]
workers = {workers}

[listeners.bench]
bind = "127.0.0.1:{front}"
upstream = "u"
{limit}
[upstreams.u]
backends = ["127.0.0.1:{back}"]
"""
KEYS = {"session": "bandwidth", "source": "bandwidth_per_source", "listener": "bandwidth_total"}


def bytes_of(rate):
    digits, unit = re.fullmatch(r"(\d+)([kmg]?)", rate).groups()
    return int(digits) * UNITS[unit]


class Case:
    """One measurement of a round."""

    def __init__(self, program, rate=None, scope=None, paced=False):
        self.program, self.rate, self.scope, self.paced = program, rate, scope, paced
        self.sessions = SHARED if scope in ("source", "listener") else 1
        self.addresses = SHARED if scope == "listener" else 1

    def name(self):
        if self.rate is None:
            return f"{self.program}, no limit"
        limit = "no limit, source paces itself" if self.paced else f"limit of the {self.scope}"
        return f"{self.program}, {limit}"

    def config(self, folder, front, back, workers):
        limited = self.rate is not None and not self.paced
        if self.program == "tembuku":
            limit = f'{KEYS[self.scope]} = {{ down = "{self.rate}" }}\n' if limited else ""
            return "tembuku.toml", TEMBUKU.format(front=front, back=back, limit=limit, workers=workers)
        text = targets.NGINX.format(module=targets.Nginx().module(), cpus=workers, folder=folder, front=front, back=back)
        # nginx does not splice: what it may read at once is its buffer.
        limit = f"proxy_download_rate {bytes_of(self.rate)};" if limited else ""
        return "nginx.conf", text.replace("proxy_timeout 10m;", f"proxy_timeout 10m; {limit}")


def on_cpus(cpus, argv):
    return ["taskset", "-c", ",".join(map(str, cpus)), *argv] if cpus else argv


def measure_one(case, namespace, folder, binary, ports, cpus, seconds):
    front, back = ports
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        rate = [bytes_of(case.rate)] if case.paced else []
        backend = Child(namespace, on_cpus(cpus["others"], [sys.executable, STREAM, "source", back, *rate]), folder / "backend.log")
        stack.enter_context(backend).wait_listening(back, "tcp")
        name, text = case.config(folder, front, back, max(1, len(cpus["proxy"] or range(targets.CPUS))))
        path = folder / name
        path.write_text(text)
        argv = (targets.Tembuku(binary) if case.program == "tembuku" else targets.Nginx()).argv(path)
        proxy = Child(namespace, on_cpus(cpus["proxy"], argv), folder / "proxy.log")
        stack.enter_context(proxy).wait_listening(front, "tcp")
        time.sleep(0.2)
        argv = [sys.executable, STREAM, "sink", front, case.sessions, WARM, seconds, case.addresses]
        sink = stack.enter_context(Child(namespace, on_cpus(cpus["others"], argv), folder / "sink.log", pipes=True))
        lines = []
        for _ in range(2):
            line = sink.process.stdout.readline()
            if not line:
                raise Failure(f"{case.name()}: {sink.tail()} {proxy.tail()}")
            lines.append((json.loads(line), measure.Usage(proxy.pid)))
    (_, before), (result, after) = lines
    cpu, _, warning = after.since(before)
    slots = result["slots"]
    result |= {"rate": result["bytes"] / result["seconds"], "cpu": cpu / result["bytes"] * GIB if result["bytes"] else 0.0,
               "warning": warning, "longest": max(slots) / (sum(slots) / len(slots)) if sum(slots) else 0.0}
    return result


def spread(values, form):
    return form(statistics.median(values)) + (f" ({form(min(values))}-{form(max(values))})" if len(values) > 1 else "")


def say(text):
    print(text, file=sys.stderr, flush=True)


def cases(options):
    yield Case("tembuku")
    yield Case("nginx")
    for rate in options.rates.split(","):
        for scope in options.scopes.split(","):
            yield Case("tembuku", rate, scope)
        yield Case("tembuku", rate, paced=True)
        yield Case("nginx", rate, "session")
        yield Case("nginx", rate, paced=True)


def run(options, namespace, folder, binary):
    apart = not options.together and targets.CPUS > 1
    mine, *others = sorted(os.sched_getaffinity(0))
    cpus = {"proxy": [mine] if apart else [], "others": others if apart else []}
    if apart:
        mask = sum(1 << cpu for cpu in others)
        done = system.output(namespace.wrap(["sh", "-c", f"echo {mask:x} > /sys/class/net/lo/queues/rx-0/rps_cpus"]))
        if done:
            raise Failure(f"cannot hand what loopback delivers to other CPUs: {done}")
    results, front = {}, 2000
    for number in range(options.rounds):
        for case in cases(options):
            front = 2000 + (front + 2 - 2000) % 7000
            try:
                result = measure_one(case, namespace, folder, binary, (front, front + 1), cpus, options.seconds)
            except Failure as reason:
                say(f"round {number + 1} {case.rate or ''} {case.name()}: FAILED: {reason}")
                continue
            results.setdefault((case.rate, case.name()), []).append(result | {"case": case})
            say(f"round {number + 1} {case.rate or ''} {case.name()}: {result['rate'] / (1 << 20):.3f} MiB/s, "
                f"{result['cpu']:.3f} CPU s/GiB, longest 100 ms {result['longest']:.2f} of the mean"
                + (f"; warning: {result['warning']}" if result["warning"] else ""))
    table(results)
    return 0


def table(results):
    print("| rate | what | of the setting | largest 100 ms, of the mean | least and most of sharing sessions, of the mean "
          "| CPU s/GiB | of unlimited | of unlimited with a source at this pace |")
    print("|---|---|---|---|---|---|---|---|")

    def ratio(mine, other):
        pairs = list(zip(mine, other))
        return spread([a["cpu"] / b["cpu"] for a, b in pairs], "{:.2f}".format) if pairs and all(b["cpu"] for _, b in pairs) else ""

    for (rate, name), group in results.items():
        case = group[0]["case"]
        free = results.get((None, f"{case.program}, no limit"), [])
        paced = results.get((rate, f"{case.program}, no limit, source paces itself"), [])
        limited = rate is not None and not case.paced
        reached = [r["rate"] / bytes_of(rate) for r in group] if rate else [r["rate"] / (1 << 20) for r in group]
        shares = ""
        if case.sessions > 1:
            means = [r["bytes"] / case.sessions for r in group]
            shares = f"{min(r['least'] / m for r, m in zip(group, means)):.2f}, {max(r['most'] / m for r, m in zip(group, means)):.2f}"
        print(f"| {rate or ''} | {name} | {spread(reached, '{:.3f}'.format if rate else '{:.0f} MiB/s'.format)} | "
              f"{spread([r['longest'] for r in group], '{:.2f}'.format)} | {shares} | {spread([r['cpu'] for r in group], '{:.3f}'.format)} | "
              f"{ratio(group, free) if rate else ''} | {ratio(group, paced) if limited else ''} |")
