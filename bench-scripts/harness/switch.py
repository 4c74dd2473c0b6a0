"""`limits hold`: the primary of two PostgreSQL servers is killed under load; its replica is
promoted three seconds later.

tembuku and HAProxy stand before the same two servers at the same time, each with clients of its own
that connect, write a row and leave. tembuku asks the servers for their role itself; HAProxy asks an
agent beside each, every 100 ms both. HAProxy's own means against an outage are on: `retries 3` and
`option redispatch`.
"""

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from . import targets
from .measure import family
from .postgres import Postgres
from .system import Child, Failure

CALLERS = Path(__file__).with_name("callers.py")
ROLE = Path(__file__).with_name("role.py")
# Seconds: load, from the death to the promotion, and from there on.
BEFORE, DOWN, AFTER = 2.0, 3.0, 3.0

TEMBUKU = """\
[listeners.bench]
bind = "127.0.0.1:{front}"
upstream = "u"

[upstreams.u]
hold_timeout = "10s"
backends = ["127.0.0.1:{one}", "127.0.0.1:{two}"]

[upstreams.u.check]
kind = "postgres"
role = "primary"
user = "postgres"
interval = "100ms"
timeout = "1s"
rise = 1
fall = 2
"""

HAPROXY = """\
global
    nbthread {cpus}
defaults
    mode tcp
    timeout connect 5s
    timeout client 10m
    timeout server 10m
    timeout queue 10s
listen bench
    bind 127.0.0.1:{front}
    retries 3
    option redispatch
    option httpchk
    default-server inter 100ms rise 1 fall 2
    server one 127.0.0.1:{one} check port {agent_one}
    server two 127.0.0.1:{two} check port {agent_two}
"""


def once(namespace, folder, binary, port, clients):
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        folder.chmod(0o755)
        (one, two), agents, fronts = (port, port + 1), (port + 2, port + 3), (port + 4, port + 5)
        primary = stack.enter_context(Postgres(namespace, folder, "one", one, {"max_connections": 200}))
        primary.sql("create table marks (id bigserial primary key)")
        replica = stack.enter_context(Postgres(namespace, folder, "two", two, {"max_connections": 200}, replica_of=primary))
        for agent, server in zip(agents, (one, two)):
            argv = [sys.executable, ROLE, agent, server]
            stack.enter_context(Child(namespace, argv, folder / "agent.log")).wait_listening(agent, "tcp")
        values = {"one": one, "two": two, "agent_one": agents[0], "agent_two": agents[1], "cpus": targets.CPUS}
        programs = {"tembuku": (TEMBUKU, "tembuku.toml", lambda path: [binary, "run", "-c", path]),
                    "HAProxy": (HAPROXY, "haproxy.cfg", lambda path: ["haproxy", "-db", "-f", path])}
        loads = {}
        for (name, (template, file, argv)), front in zip(programs.items(), fronts):
            path = folder / file
            path.write_text(template.format(front=front, **values))
            stack.enter_context(Child(namespace, argv(path), folder / f"{name}.log")).wait_listening(front, "tcp")
        time.sleep(1.0)                 # both have found the primary
        for name, front in zip(programs, fronts):
            argv = [sys.executable, CALLERS, front, clients]
            loads[name] = stack.enter_context(Child(namespace, argv, folder / f"{name}.load.log", pipes=True))
        time.sleep(BEFORE)
        for pid in family(primary.child.pid):
            with suppress(ProcessLookupError):      # one that served a session may have ended
                os.kill(pid, signal.SIGKILL)
        primary.child.process.wait()
        died = time.monotonic()
        time.sleep(DOWN)
        replica.promote()
        promoted = time.monotonic()
        time.sleep(AFTER)
        for load in loads.values():
            load.process.stdin.write("\n")
            load.process.stdin.flush()
        calls = {name: json.loads(load.process.stdout.read()) for name, load in loads.items()}
    return {name: judge(of, died, promoted) for name, of in calls.items()}


def judge(calls, died, promoted):
    """Connections from before the death may be lost with it; the others are new."""
    before = [c for c in calls if c["ended"] < died and "error" not in c]
    if not before:
        raise Failure("no call was answered before the death of the primary")
    new = [c for c in calls if c["began"] > died]
    lost = [c for c in calls if c["began"] <= died and "error" in c]
    good = [c for c in new if "error" not in c]
    first = min((c["ended"] for c in good), default=None)
    return {"before": len(before), "lost": len(lost), "new": len(new), "errors": len(new) - len(good),
            "longest": max((c["ended"] - c["began"] for c in good), default=0.0),
            "after": first - promoted if first else float("nan"), "messages": sorted({c["error"][:60] for c in new if "error" in c})}


def run(options, namespace, folder, binary):
    results = {}
    for number in range(options.rounds):
        for name, result in once(namespace, folder, binary, 2000 + 10 * number, options.clients).items():
            results.setdefault(name, []).append(result)
            print(f"round {number + 1} {name}: {result}", file=sys.stderr, flush=True)
    print(f"{options.clients} clients each; the primary is killed, and its replica promoted {DOWN:.0f} s later; {options.rounds} rounds\n")
    print("| | new connections | of them failed | longest, s | first answer after the promotion, s | lost with the primary |")
    print("|---|---|---|---|---|---|")
    for name, group in results.items():
        column = lambda key, form: (form(statistics.median(r[key] for r in group)) + f" ({form(min(r[key] for r in group))} to "  # noqa: E731
                                    f"{form(max(r[key] for r in group))})")
        print(f"| {name} | {column('new', '{:.0f}'.format)} | {column('errors', '{:.0f}'.format)} | {column('longest', '{:.2f}'.format)} | "
              f"{column('after', '{:.2f}'.format)} | {column('lost', '{:.0f}'.format)} |")
    return 0 if not any(r["errors"] for r in results["tembuku"]) else 1
