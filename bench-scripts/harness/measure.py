"""What a proxy has used: CPU, memory, descriptors, summed over all its processes."""

import os
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def family(root):
    """The process and all its descendants."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, [])
    return sorted(found)


class Usage:
    """CPU time of a family of processes at one moment, from two sources.

    `threads` is exact (nanoseconds on a CPU, user and system, from schedstat) but forgets threads
    that have ended; `stat` counts ended threads too, in ticks.
    """

    def __init__(self, root):
        self.threads, self.stat, self.pids = {}, 0.0, family(root)
        for pid in self.pids:
            for task in os.listdir(f"/proc/{pid}/task"):
                self.threads[pid, int(task)] = int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.stat += (int(fields[11]) + int(fields[12])) / TICK

    def since(self, before):
        """(CPU seconds, the same by ticks, a warning or None)."""
        spent = sum(value - before.threads.get(key, 0) for key, value in self.threads.items()) / 1e9
        ticks = self.stat - before.stat
        warning = None
        ended = len(before.threads.keys() - self.threads.keys())
        if set(before.pids) - set(self.pids):
            warning = "a process of the proxy ended during the measurement: its CPU is lost"
        elif abs(spent - ticks) > max(0.05 * ticks, 0.04 * len(self.pids)):
            warning = f"CPU by threads {spent:.3f} s, by ticks {ticks:.3f} s ({ended} threads ended)"
        return spent, ticks, warning


def memory(root):
    """Bytes of the family of processes: {pss, rss, anonymous}."""
    names = {"Pss": "pss", "Rss": "rss", "Anonymous": "anonymous"}
    total = dict.fromkeys(names.values(), 0)
    for pid in family(root):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in names:
                total[names[key]] += int(value.split()[0]) * 1024
    return total


def descriptors(root):
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in family(root))


class Machine:
    """The whole machine's CPU seconds at one moment: busy, and stolen by the hypervisor."""

    def __init__(self):
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _idle, _wait, irq, softirq, steal = (int(field) / TICK for field in fields)
        self.busy, self.stolen, self.at = user + nice + system + irq + softirq, steal, time.monotonic()

    def since(self, before):
        return self.busy - before.busy, self.stolen - before.stolen, self.at - before.at
