"""From measurements to figures: medians, ratios round by round, verdicts, the table and the raw
file."""

import json
from dataclasses import dataclass
from statistics import median

from . import chart
from .workloads import WORKLOADS

OURS, OBSERVED = "tembuku", "tembuku-observed"
PEERS = ("nginx", "haproxy", "haproxy-splice")
BEST = "best"                       # the better one of the peers, round by round
NOISY = 0.1                         # the share of other work from which a measurement is marked
LOSSY = 1                           # percent of the datagrams lost, the same


# Statistics

def spread(values):
    """{median, min, max, n}, or None without values."""
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)} if values else None


def values(measurements, workload, target, key):
    """{round: value} of what was measured without an error; of `best`, what the better peer had in
    that round."""
    if target == BEST:
        figure = next(figure for figure in WORKLOADS[workload].figures if figure.key == key)
        choose, rounds = (max if figure.better == "more" else min), {}
        for peer in PEERS:
            for number, value in values(measurements, workload, peer, key).items():
                rounds.setdefault(number, []).append(value)
        return {number: choose(found) for number, found in rounds.items()}
    return {m["round"]: m["figures"][key] for m in measurements
            if m["workload"] == workload and m["target"] == target and key in m.get("figures", {})}


def ratio(measurements, workload, key, peer, target=OURS):
    """The target's over the peer's, of each round in which both were measured. Over nothing, or
    less, there is no ratio."""
    ours, theirs = (values(measurements, workload, name, key) for name in (target, peer))
    return spread([ours[number] / theirs[number] for number in sorted(ours) if theirs.get(number, 0) > 0])


def derive(measurements):
    """Adds the figures that are differences to `direct` in the same round."""
    for m in measurements:
        for figure in WORKLOADS[m["workload"]].figures:
            if figure.over_direct and figure.over_direct in m.get("figures", {}) and m["target"] != "direct":
                base = values(measurements, m["workload"], "direct", figure.over_direct).get(m["round"])
                if base is not None:
                    m["figures"][figure.key] = m["figures"][figure.over_direct] - base


def compared(targets):
    """The pairs of which the table shows the ratio: (target, peer)."""
    peers = [name for name in targets if name in PEERS] if OURS in targets else []
    return ([(OURS, peer) for peer in peers] + [(OURS, BEST)] * bool(peers)
            + [(OBSERVED, OURS)] * (OBSERVED in targets and OURS in targets))


def summary(measurements, workloads, targets):
    """One row for each figure of each workload: its spread for each target, and the ratios."""
    rows = []
    for name in workloads:
        for figure in WORKLOADS[name].figures:
            row = {"workload": name, "figure": figure.key, "title": figure.title, "better": figure.better,
                   "targets": {target: spread(list(values(measurements, name, target, figure.key).values()))
                               for target in targets},
                   "ratios": {f"{target} / {peer}": ratio(measurements, name, figure.key, peer, target)
                              for target, peer in compared(targets)}}
            rows.append(row)
    return rows


def foreign_share(measurement):
    """The share of the machine's CPU that neither proxy nor client nor backend used, where all are
    known."""
    own = [measurement.get(key) for key in ("client_cpu_seconds", "backend_cpu_seconds")]
    if None in own or not measurement.get("machine_span_seconds"):
        return None
    rest = measurement["machine_busy_seconds"] - sum(own) - measurement.get("cpu_seconds", 0)
    return max(0.0, rest / (measurement["machine_span_seconds"] * measurement["cpus"]))


def warnings(measurement):
    """What makes a measurement doubtful: its own warnings, loss, and a machine that was busy with
    something else."""
    share, loss = measurement.get("foreign_share") or 0, measurement.get("figures", {}).get("loss", 0)
    found = list(measurement.get("warnings", []))
    if loss > LOSSY:
        found.append(f"{loss:.1f} % of the datagrams were lost")
    if share > NOISY:
        found.append(f"{100 * share:.0f} % of the machine's CPU went to something else")
    return found


# Verdicts

@dataclass(frozen=True)
class Limit:
    workload: str
    figure: str
    bound: float
    peer: str | None = None         # None: the limit is on the figure itself, the worst round of it
    least: bool = False             # the bound is the least that will do, not the most
    target: str = OURS

    @property
    def text(self):
        subject = self.workload if self.target == OURS else f"{self.target}: {self.workload}"
        kind = "least" if self.least else "most"
        return f"{subject} {self.figure} at {kind} {self.bound:g}" + (f" x {self.peer}" if self.peer else "")


LIMITS = (
    *(Limit(name, "cpu", 0.65, "haproxy-splice") for name in ("bulk", "bulk-up", "bulk8", "bulk8-up")),
    Limit("bulk", "throughput", 1.2, BEST, least=True),
    *(Limit(name, "cpu", 0.95, BEST) for name in ("wrk", "redis50", "redis50-set", "wrk-churn", "redis-churn")),
    *(Limit(name, "added", 1.0, BEST) for name in ("redis1", "sockperf-tcp")),
    *(Limit(name, "cpu", 0.85, BEST) for name in ("v16k", "v64k")),
    Limit("slow", "p99", 1.0, BEST),
    Limit("bulk1200", "lost", 0),
    Limit("bulk1200", "fallbacks", 1, least=True),
    Limit("bulk1200", "throughput", 1.0, "nginx", least=True),
    Limit("idle", "bytes", 0.45, "haproxy"),
    Limit("idle", "anonymous", 0.45, "haproxy"),
    Limit("idle", "descriptors", 2.01),         # two, and a few that belong to the process
    Limit("dns", "cpu", 0.85, "nginx"),
    Limit("dns", "lost", 0),
    Limit("oneway", "cpu", 0.75, "nginx"),
    Limit("gso", "cpu", 0.2, "nginx"),
    Limit("udp-flows", "bytes", 0.12, "nginx"),
    Limit("udp-flows", "anonymous", 0.12, "nginx"),
    *(Limit(name, "cpu", 1.05, OURS, target=OBSERVED) for name in ("wrk", "redis50")),
)


def verdicts(measurements, workloads, targets):
    """[{limit, verdict: pass | fail | not measured, found}] for the limits on these workloads and
    targets."""
    found = []
    for limit in LIMITS:
        if limit.workload not in workloads or limit.target not in targets:
            continue
        if limit.peer:
            seen = ratio(measurements, limit.workload, limit.figure, limit.peer, limit.target)
            value = seen and seen["median"]
        else:
            seen = spread(list(values(measurements, limit.workload, limit.target, limit.figure).values()))
            value = seen and seen["min" if limit.least else "max"]
        text = limit.text
        # A peer that was left out makes the limit an easier one: say who was there.
        if limit.peer == BEST:
            there = [peer for peer in PEERS if values(measurements, limit.workload, peer, limit.figure)]
            text += f" of {', '.join(there)}" if there else ""
        met = value is not None and (value >= limit.bound if limit.least else value <= limit.bound)
        verdict = "not measured" if value is None else "pass" if met else "fail"
        found.append({"limit": text, "verdict": verdict, "value": value, "found": seen})
    return found


# Text

def number(value):
    """Three digits that matter, thousands grouped."""
    if value < 0:
        return "-" + number(-value)
    if value >= 10_000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.4f}"


def cell(found):
    if not found:
        return "-"
    if found["min"] == found["max"]:
        return number(found["median"])
    return f"{number(found['median'])} ({number(found['min'])}-{number(found['max'])})"


def ratio_cell(found):
    return f"{found['median']:.2f} ({found['min']:.2f}-{found['max']:.2f})" if found else "-"


def table(rows, targets):
    pairs = list(rows[0]["ratios"]) if rows else []
    lines = ["| workload | figure | better | " + " | ".join([*targets, *pairs]) + " |",
             "|---|---|---|" + "---:|" * (len(targets) + len(pairs))]
    last = None
    for row in rows:
        name = f"**{row['workload']}**" if row["workload"] != last else ""
        last = row["workload"]
        cells = [cell(row["targets"][target]) for target in targets]
        cells += [ratio_cell(row["ratios"][pair]) for pair in pairs]
        lines.append(f"| {name} | {row['title']} | {row['better']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def noise(measurements):
    """How quiet the machine was, in one sentence."""
    shares = [m["foreign_share"] for m in measurements if m.get("foreign_share") is not None]
    if not shares:
        return "Other work on the machine: not known."
    stolen = sum(m.get("machine_stolen_seconds", 0) for m in measurements)
    span = sum(m.get("machine_span_seconds", 0) * m["cpus"] for m in measurements if "machine_span_seconds" in m)
    return (f"CPU used during the measurements by anything but proxy, client and backend (kernel threads count): median "
            f"{100 * median(shares):.0f} %, at worst {100 * max(shares):.0f} % of the machine; stolen by the hypervisor: "
            f"{100 * stolen / span:.1f} %.")


def markdown(run, drawn=None):
    host, rows = run["machine"], run["summary"]
    failed = [m for m in run["measurements"] if "error" in m]
    warned = [(m, text) for m in run["measurements"] for text in warnings(m)]
    head = f"{host['cpu']}, {host['cpus']} CPUs, {host['memory']}, {host['system']}, Linux {host['kernel']}"
    label = f" ({run['label']})" if run["label"] else ""
    twice = f" (twice as many of {', '.join(run['twice'])})" if run["twice"] else ""
    parts = [
        f"# Comparison of {run['date']}, commit {run['commit']}{label}",
        f"{head}. Rounds: {run['rounds']}{' of short loads (--quick)' if run['quick'] else ''}{twice}, order rotated, "
        f"a fresh proxy for each measurement. Figures are medians (min-max); ratios are medians of the ratios of each round. "
        f"CPU is that of the proxy's own processes, user and system.",
        *([f"![CPU and memory of each proxy beside the better peer]({drawn})"] if drawn else []),
        table(rows, run["targets"]),
        noise(run["measurements"]),
        "\n".join(f"- {name}: {text}" for name, text in run["versions"].items()),
    ]
    if run["verdicts"]:
        parts.append("## Limits\n\n" + "\n".join(verdict_line(v, "- ") for v in run["verdicts"]))
    if failed or warned:
        lines = [f"- {m['workload']}, {m['target']}, round {m['round']}: failed: {m['error']}" for m in failed]
        lines += [f"- {m['workload']}, {m['target']}, round {m['round']}: {text}" for m, text in warned]
        parts.append("## Failures and warnings\n\n" + "\n".join(lines))
    parts.append("Repeat: `" + run["command"] + "`")
    return "\n\n".join(parts) + "\n"


def verdict_line(verdict, prefix=""):
    found = verdict["found"]
    seen = f"{number(verdict['value'])} ({number(found['min'])}-{number(found['max'])})" if found else "no figure"
    return f"{prefix}{verdict['verdict']}: {verdict['limit']}: {seen}"


def picture(run):
    """The chart: CPU for each workload and memory, of every proxy, as the ratio to the better peer;
    None without ratios."""
    def group(name, figure):
        bars = []
        for target in (*PEERS, OURS, OBSERVED):
            found = ratio(run["measurements"], name, figure.key, BEST, target)
            own = spread(list(values(run["measurements"], name, target, figure.key).values()))
            if found:
                bars.append((target, found, f"{number(own['median'])} {figure.title}"))
        return name, bars

    sections = []
    for heading, key in (("CPU of the proxy per unit of work", "cpu"), ("Memory of the proxy", "bytes")):
        groups = [group(row["workload"], figure) for row in run["summary"] for figure in WORKLOADS[row["workload"]].figures
                  if row["figure"] == figure.key and figure.key == key]
        groups = [(name, bars) for name, bars in groups if len(bars) > 1]
        if groups:
            sections.append((heading, groups))
    if not sections:
        return None
    host = run["machine"]
    return chart.draw(
        f"{OURS} beside nginx and HAProxy: CPU and memory",
        [f"Ratio to the better peer of the same round, which is 1; less is better. Bars: median of {run['rounds']} "
         f"round{'s' if run['rounds'] > 1 else ''}{' or twice as many' if run['twice'] else ''}; whiskers: least and most. On the right the median itself.",
         f"{run['date'][:10]}, commit {run['commit']}{' (--quick)' if run['quick'] else ''}. {host['cpu']}, {host['cpus']} CPUs, "
         f"{host['system']}, Linux {host['kernel']}."], sections)


def save(run, folder):
    """Writes the raw .json, the .md and, if there is anything to compare, the .svg, under a name
    that is not taken."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [run["date"][:10], run["commit"], run["label"], "quick" if run["quick"] else ""]
    stem = "-".join(part for part in parts if part)
    unique, count = stem, 1
    while (folder / f"{unique}.json").exists():
        count += 1
        unique = f"{stem}-{count}"
    paths = [folder / f"{unique}.json", folder / f"{unique}.md"]
    paths[0].write_text(json.dumps(run, indent=1) + "\n")
    drawn = picture(run)
    if drawn:
        paths.append(folder / f"{unique}.svg")
        paths[2].write_text(drawn)
    paths[1].write_text(markdown(run, paths[2].name if drawn else None))
    return paths
