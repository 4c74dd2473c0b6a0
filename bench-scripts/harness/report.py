"""From measurements to figures: medians, ratios round by round, verdicts, the table and the raw file."""

import json
from dataclasses import dataclass
from statistics import median

from .workloads import WORKLOADS

OURS = "tembuku"
NOISY = 0.1                         # the share of other work from which a measurement is marked
LOSSY = 1                           # percent of the datagrams lost, the same


# Statistics

def spread(values):
    """{median, min, max, n}, or None without values."""
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)} if values else None


def values(measurements, workload, target, key):
    """{round: value} of what was measured without an error."""
    return {m["round"]: m["figures"][key] for m in measurements
            if m["workload"] == workload and m["target"] == target and key in m.get("figures", {})}


def ratio(measurements, workload, key, peer):
    """Ours over the peer's, of each round in which both were measured."""
    ours, theirs = (values(measurements, workload, name, key) for name in (OURS, peer))
    return spread([ours[number] / theirs[number] for number in sorted(ours) if theirs.get(number)])


def summary(measurements, workloads, targets):
    """One row for each figure of each workload: its spread for each target, our ratio to each peer."""
    peers = [name for name in targets if name not in (OURS, "direct")] if OURS in targets else []
    rows = []
    for name in workloads:
        for figure in WORKLOADS[name].figures:
            row = {"workload": name, "figure": figure.key, "title": figure.title, "better": figure.better,
                   "targets": {target: spread(list(values(measurements, name, target, figure.key).values()))
                               for target in targets},
                   "ratios": {peer: ratio(measurements, name, figure.key, peer) for peer in peers}}
            rows.append(row)
    return rows


def foreign_share(measurement):
    """The share of the machine's CPU that neither proxy nor client nor backend used, where all are known."""
    own = [measurement.get(key) for key in ("client_cpu_seconds", "backend_cpu_seconds")]
    if None in own or not measurement.get("machine_span_seconds"):
        return None
    rest = measurement["machine_busy_seconds"] - sum(own) - measurement.get("cpu_seconds", 0)
    return max(0.0, rest / (measurement["machine_span_seconds"] * measurement["cpus"]))


def warnings(measurement):
    """What makes a measurement doubtful: its own warnings, loss, and a machine that was busy with something else."""
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
    most: float
    peer: str | None = None         # None: the limit is on our figure itself, the worst round of it

    @property
    def text(self):
        return f"{self.workload} {self.figure} at most {self.most:g}" + (f" x {self.peer}" if self.peer else "")


LIMITS = (
    Limit("bulk", "cpu", 0.4, "nginx"),
    Limit("bulk-up", "cpu", 0.4, "nginx"),
    Limit("wrk", "cpu", 1.05, "nginx"),
    Limit("redis50", "cpu", 1.05, "nginx"),
    Limit("idle", "bytes", 2048),
    Limit("idle", "anonymous", 2048),
    Limit("idle", "descriptors", 2.01),         # two, and a few that belong to the process
    Limit("dns", "cpu", 0.9, "nginx"),
    Limit("dns", "lost", 0),
    Limit("oneway", "cpu", 0.8, "nginx"),
    Limit("gso", "cpu", 0.25, "nginx"),
    Limit("udp-flows", "bytes", 1228),
    Limit("udp-flows", "anonymous", 1228),
)


def verdicts(measurements, workloads):
    """[{limit, verdict: pass | fail | not measured, found}] for the limits on these workloads."""
    found = []
    for limit in LIMITS:
        if limit.workload not in workloads:
            continue
        if limit.peer:
            seen = ratio(measurements, limit.workload, limit.figure, limit.peer)
            value = seen and seen["median"]
        else:
            seen = spread(list(values(measurements, limit.workload, OURS, limit.figure).values()))
            value = seen and seen["max"]
        verdict = "not measured" if value is None else "pass" if value <= limit.most else "fail"
        found.append({"limit": limit.text, "verdict": verdict, "value": value, "found": seen})
    return found


# Text

def number(value):
    """Three digits that matter, thousands grouped."""
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
    peers = list(rows[0]["ratios"]) if rows else []
    lines = ["| workload | figure | better | " + " | ".join([*targets, *(f"{OURS} / {peer}" for peer in peers)]) + " |",
             "|---|---|---|" + "---:|" * (len(targets) + len(peers))]
    last = None
    for row in rows:
        name = f"**{row['workload']}**" if row["workload"] != last else ""
        last = row["workload"]
        cells = [cell(row["targets"][target]) for target in targets]
        cells += [ratio_cell(row["ratios"][peer]) for peer in peers]
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


def markdown(run):
    host, rows = run["machine"], run["summary"]
    failed = [m for m in run["measurements"] if "error" in m]
    warned = [(m, text) for m in run["measurements"] for text in warnings(m)]
    head = f"{host['cpu']}, {host['cpus']} CPUs, {host['memory']}, {host['system']}, Linux {host['kernel']}"
    label = f" ({run['label']})" if run["label"] else ""
    parts = [
        f"# Comparison of {run['date']}, commit {run['commit']}{label}",
        f"{head}. Rounds: {run['rounds']}{' of short loads (--quick)' if run['quick'] else ''}, order rotated, "
        f"a fresh proxy for each measurement. Figures are medians (min-max); ratios are medians of the ratios of each round. "
        f"CPU is that of the proxy's own processes, user and system.",
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


def save(run, folder):
    """Writes the raw .json and the .md, under a name that is not taken. Returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [run["date"][:10], run["commit"], run["label"], "quick" if run["quick"] else ""]
    stem = "-".join(part for part in parts if part)
    unique, count = stem, 1
    while (folder / f"{unique}.json").exists():
        count += 1
        unique = f"{stem}-{count}"
    raw, text = folder / f"{unique}.json", folder / f"{unique}.md"
    raw.write_text(json.dumps(run, indent=1) + "\n")
    text.write_text(markdown(run))
    return raw, text
