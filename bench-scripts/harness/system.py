"""The machine: packages, the network namespace, child processes, and what the machine is."""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

POLICY = Path("/usr/sbin/policy-rc.d")
PACKAGES = {            # a command that must exist -> the Debian package that brings it
    "ip": "iproute2",
    "sysctl": "procps",
    "nginx": "nginx",
    "haproxy": "haproxy",
    "iperf3": "iperf3",
    "wrk": "wrk",
    "redis-server": "redis-server",
    "redis-benchmark": "redis-tools",
    "dnsperf": "dnsperf",
    "nsd": "nsd",
    "sockperf": "sockperf",
    "setpriv": "util-linux",
}
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1
# The state in /proc/net; a UDP socket that is not connected is "closed".
LISTENING = {"tcp": "0A", "udp": "07"}


class Failure(Exception):
    """A measurement, or the whole run, cannot go on; the text says why."""


def output(argv, **kwargs):
    """What a short command prints, on either stream; empty if it cannot run."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, **kwargs)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


# Packages

def nginx_stream_module():
    """The path of nginx's stream module, None if it is built in; raises if there is no stream at
    all."""
    built = output(["nginx", "-V"])
    if "--with-stream " in built + " ":
        return None
    for part in built.split():
        if part.startswith("--modules-path="):
            module = Path(part.partition("=")[2]) / "ngx_stream_module.so"
            if module.exists():
                return str(module)
    raise Failure("nginx is installed without its stream module")


def missing_packages(commands):
    needed = {"ip", "sysctl", *commands}  # the namespace takes the first two
    lacking = {PACKAGES[name] for name in needed if not shutil.which(name)}
    if "nginx" in commands:
        try:
            nginx_stream_module()
        except Failure:
            lacking.add("libnginx-mod-stream")
    return sorted(lacking)


def install(packages, say):
    """apt-get install, while a policy that forbids starting services stands in for the machine's
    own."""
    if not shutil.which("apt-get"):
        raise Failure(f"missing, and there is no apt-get to install them: {' '.join(packages)}")
    say(f"installing {' '.join(packages)} (no service is started)")
    aside = POLICY.with_name("policy-rc.d.before-tembuku-bench")
    if aside.exists():
        raise Failure(f"{aside} is left over from a run that was killed: put it back as {POLICY} first")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    had_own = POLICY.exists()
    if had_own:
        POLICY.rename(aside)
    try:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
        for argv in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, text=True, timeout=900,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise Failure(f"{' '.join(argv)} failed:\n{done.stdout[-2000:]}")
    finally:
        POLICY.unlink(missing_ok=True)
        if had_own:
            aside.rename(POLICY)


# Limits

def raise_descriptor_limit(needed):
    """The soft limit up to the hard one, and the hard one up to what is needed where that is
    allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, needed)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        raise Failure(f"ulimit -n is {hard} and cannot be raised to the {needed} descriptors needed; "
                      "use fewer --sessions") from None


# The namespace

class Namespace:
    """A network namespace of its own, with loopback, removed at the end of the `with`."""

    SYSCTLS = {
        "net.ipv4.tcp_congestion_control": "reno",  # bbr, the default of some hosts, paces loopback
        "net.ipv4.ip_local_port_range": "10000 65535",      # servers listen below that
    }

    def __init__(self):
        self.name = f"tembuku-bench-{os.getpid()}"
        self.sysctls = {}

    def __enter__(self):
        made = subprocess.run(["ip", "netns", "add", self.name], text=True, capture_output=True)
        if made.returncode:
            raise Failure(f"cannot make a network namespace (root, and not a locked-down container?): {made.stderr.strip()}")
        try:
            self.inode = os.stat(f"/run/netns/{self.name}").st_ino
            self._do("ip", "link", "set", "lo", "up")
            for key, value in self.SYSCTLS.items():
                self._do("sysctl", "-qw", f"{key}={value}")
            for key in (*self.SYSCTLS, "net.core.somaxconn", "net.ipv4.tcp_tw_reuse", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
                        "net.core.rmem_default", "net.core.rmem_max"):
                self.sysctls[key] = " ".join(output(self.wrap(["sysctl", "-n", key])).split())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)

    def wrap(self, argv):
        return ["ip", "netns", "exec", self.name, *map(str, argv)]

    def _do(self, *argv):
        done = subprocess.run(self.wrap(argv), text=True, capture_output=True)
        if done.returncode:
            raise Failure(f"{' '.join(argv)} in the namespace: {done.stderr.strip()}")

    @contextmanager
    def with_sysctls(self, values):
        """Other values for a while: {name: value}."""
        before = {key: output(self.wrap(["sysctl", "-n", key])) for key in values}
        try:
            for key, value in values.items():
                self._do("sysctl", "-qw", f"{key}={value}")
            yield
        finally:
            for key, value in before.items():
                self._do("sysctl", "-qw", f"{key}={value}")

    def holds(self, pid):
        """Whether the process has arrived in the namespace (`ip netns exec` needs a moment)."""
        try:
            return os.stat(f"/proc/{pid}/ns/net").st_ino == self.inode
        except OSError:
            return False

    def listens(self, pid, port, protocol):
        """Whether somebody in the namespace of that process listens on the port. Nothing is sent
        for it."""
        ending = f":{port:04X}"
        try:
            lines = Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]
        except OSError:
            return False
        return any(fields[3] == LISTENING[protocol] and fields[1].endswith(ending) for fields in map(str.split, lines))


# Children

def _child_setup():
    # No orphans, even when this script is killed outright.
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """A process in the namespace, in a session of its own, ended when the `with` ends."""

    def __init__(self, namespace, argv, log, pipes=False):
        self.argv = [str(part) for part in argv]
        self.log = Path(log)
        self.namespace = namespace
        self.notes = []
        with open(self.log, "ab") as sink:
            self.process = subprocess.Popen(
                namespace.wrap(argv), start_new_session=True, preexec_fn=_child_setup, text=True,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else sink, stderr=sink)
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def tail(self):
        return self.log.read_text(errors="replace")[-1500:].strip()

    def alive(self):
        return self.process.poll() is None

    def wait_listening(self, port, protocol, seconds=10):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.alive():
                raise Failure(f"{self.argv[0]} ended with {self.process.returncode} at its start: {self.tail()}")
            if self.namespace.holds(self.pid) and self.namespace.listens(self.pid, port, protocol):
                return
            time.sleep(0.01)
        raise Failure(f"{self.argv[0]} does not listen on {protocol} port {port} after {seconds} s: {self.tail()}")

    def stop(self):
        """TERM, again after a while (a proxy may be draining), and KILL for what is left of its
        session."""
        for signum, seconds in ((signal.SIGTERM, 3), (signal.SIGTERM, 2), (signal.SIGKILL, 5)):
            if not self.alive():
                break
            if signum == signal.SIGKILL:
                self.notes.append(f"{self.argv[0]} had to be killed: it did not end within 5 s of TERM")
            self.process.send_signal(signum)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
        try:
            # Its own session: workers that outlived their master.
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


def run_client(namespace, argv, log, seconds):
    """Runs a load generator to its end. Returns (stdout, elapsed seconds, its own CPU seconds)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    with open(log, "ab") as sink:
        process = subprocess.Popen(namespace.wrap(argv), start_new_session=True, preexec_fn=_child_setup, text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sink)
    try:
        text, _ = process.communicate(timeout=seconds)
    except BaseException as reason:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if isinstance(reason, subprocess.TimeoutExpired):
            raise Failure(f"{argv[0]} was not done after {seconds} s") from None
        raise
    elapsed = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        said = (text + Path(log).read_text(errors="replace"))[-800:].strip()
        raise Failure(f"{argv[0]} ended with {process.returncode}: {said}")
    return text, elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# What machine, what versions

def machine():
    def first(path, prefix=""):
        try:
            for line in Path(path).read_text().splitlines():
                if line.startswith(prefix):
                    return line.partition(":")[2].strip() if prefix else line.strip()
        except OSError:
            pass
        return ""

    release = {}
    for line in Path("/etc/os-release").read_text().splitlines() if Path("/etc/os-release").exists() else []:
        key, _, value = line.partition("=")
        release[key] = value.strip('"')
    return {
        "cpu": first("/proc/cpuinfo", "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": first("/proc/meminfo", "MemTotal"),
        "kernel": os.uname().release,
        "architecture": os.uname().machine,
        "system": release.get("PRETTY_NAME", ""),
        "clocksource": first("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "transparent_hugepage": first("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_average_at_start": first("/proc/loadavg"),
    }


def versions(commands):
    """The line by which each tool names itself: the first, or one that says no more than the
    version."""
    ways = {"nginx": "-v", "haproxy": "-v", "iperf3": "--version", "wrk": "-v", "redis-server": "--version",
            "redis-benchmark": "--version", "ip": "-V", "dnsperf": "-h", "nsd": "-v", "sockperf": "--version",
            "setpriv": "--version"}
    found = {}
    for name in sorted(commands):
        lines = output([name, ways[name]]).splitlines() or [""]
        found[name] = next((line for line in lines if line.startswith("Version ")), lines[0])
    return found
