"""Who is compared: each proxy with its best fair configuration, one listener, TCP or UDP, in front
of one backend."""

import hashlib
import os
import re
from pathlib import Path

from . import system

CPUS = len(os.sched_getaffinity(0))
MODULE_LINE = "load_module {};\n"

# Defaults, but for: one worker per CPU, a listening socket for each, enough connections for the
# idle sessions. proxy_buffer_size stays at its default, 16k a direction; access_log is off by
# default in a stream block.
NGINX = """\
{module}user root;
worker_processes {cpus};
daemon off;
pid {folder}/nginx.pid;
events {{
    worker_connections 16384;
}}
stream {{
    upstream bench {{
        server 127.0.0.1:{back};
    }}
    server {{
        listen 127.0.0.1:{front} reuseport;
        proxy_pass bench;
        proxy_timeout 10m;
        tcp_nodelay on;
    }}
}}
"""

# A flow takes two connections, and all may fall to one worker. multi_accept makes it read until
# nothing is left, which costs less than a wake-up for each datagram. rcvbuf: by default it loses
# what comes while it waits for a CPU.
NGINX_UDP = """\
{module}user root;
worker_processes {cpus};
daemon off;
pid {folder}/nginx.pid;
events {{
    worker_connections {nginx_connections};
    multi_accept on;
}}
stream {{
    upstream bench {{
        server 127.0.0.1:{back};
    }}
    server {{
        listen 127.0.0.1:{front} udp reuseport rcvbuf=4m;
        proxy_pass bench;
        proxy_timeout 10m;
    }}
}}
"""

# One listening socket, as by default.
HAPROXY = """\
global
    nbthread {cpus}
    maxconn {connections}
defaults
    mode tcp
    {splice}
    timeout connect 5s
    timeout client 10m
    timeout server 10m
listen bench
    bind 127.0.0.1:{front}
    server one 127.0.0.1:{back}
"""

# Defaults: a worker per CPU, no access log, and no admin listener but where its metrics are a
# figure.
TEMBUKU = """\
{admin}[listeners.bench]
bind = "127.0.0.1:{front}"
upstream = "u"

[upstreams.u]
backends = ["127.0.0.1:{back}"]
"""

# Defaults, but for the idle limit, which is that of nginx.
TEMBUKU_UDP = """\
{admin}[listeners.bench]
bind = "127.0.0.1:{front}"
protocol = "udp"
upstream = "u"
idle_timeout = "10m"

[upstreams.u]
backends = ["127.0.0.1:{back}"]
"""

ADMIN = """\
[admin]
listen = "127.0.0.1:{port}"

"""

# What is switched on where somebody looks after it: metrics, a record of each session, a check each
# second.
TEMBUKU_OBSERVED = """\
{admin}[log]
access = "{folder}/access.log"

[listeners.bench]
bind = "127.0.0.1:{front}"
upstream = "u"

[upstreams.u]
backends = ["127.0.0.1:{back}"]

[upstreams.u.check]
kind = "tcp"
interval = "1s"
"""


class Target:
    """`direct` itself: no proxy at all. The others override what they need."""

    name, about, commands = "direct", "no proxy: the client talks to the backend", ()
    # protocol -> configuration; without one it is not run with such workloads
    templates, file, splice = {}, None, ""
    only_for = None  # the workloads it is run with unless it is asked for by name; None: all
    processes = 1                   # how many there are once it has started
    metrics = False                 # whether it can have an admin listener with metrics
    scraped = False  # whether it has one, always, which is asked each second while there is load

    def config(self, protocol, folder, front, back, sessions, flows, admin=None):
        template = self.templates[protocol]
        return template.format(folder=folder, front=front, back=back, cpus=CPUS, connections=sessions + 200,
                               nginx_connections=max(16384, 2 * flows + 200), splice=self.splice,
                               module=self.module() if "{module}" in template else "",
                               admin=ADMIN.format(port=admin) if admin else "")

    def argv(self, path):
        raise NotImplementedError

    def versions(self):
        return {}


class Nginx(Target):
    name, about, commands = "nginx", "stream module, reuseport, a worker per CPU", ("nginx",)
    templates, file = {"tcp": NGINX, "udp": NGINX_UDP}, "nginx.conf"
    processes = 1 + CPUS

    def module(self):
        path = system.nginx_stream_module()
        return MODULE_LINE.format(path) if path else ""

    def argv(self, path):
        return ["nginx", "-e", "stderr", "-p", path.parent, "-c", path]


class Haproxy(Target):
    name, about, commands = "haproxy", "mode tcp, option splice-auto, a thread per CPU", ("haproxy",)
    templates, file, splice = {"tcp": HAPROXY}, "haproxy.cfg", "option splice-auto"

    def argv(self, path):
        return ["haproxy", "-db", "-f", path]


class HaproxySplice(Haproxy):
    name, about = "haproxy-splice", "the same, but always splicing: option splice-request, option splice-response"
    splice = "option splice-request\n    option splice-response"
    only_for = ("bulk", "bulk-up", "bulk8", "bulk8-up", "paced", "v16k", "v64k")


class Tembuku(Target):
    name, about = "tembuku", "its defaults"
    templates, file = {"tcp": TEMBUKU, "udp": TEMBUKU_UDP}, "tembuku.toml"
    metrics = True

    def __init__(self, binary):
        self.binary = binary

    def argv(self, path):
        return [self.binary, "run", "-c", path]

    def versions(self):
        return {"tembuku": system.output([self.binary, "--version"]).partition("\n")[0],
                "tembuku sha256": hashlib.sha256(Path(self.binary).read_bytes()).hexdigest()}


class TembukuObserved(Tembuku):
    name, about = "tembuku-observed", "with metrics scraped and the backend checked each second, and an access log"
    templates = {"tcp": TEMBUKU_OBSERVED}
    only_for = ("wrk", "redis50", "wrk-churn")
    scraped = True


KINDS = {kind.name: kind for kind in (Target, Nginx, Haproxy, HaproxySplice, Tembuku, TembukuObserved)}


def make(names, binary):
    return [kind(binary) if issubclass(kind, Tembuku) else kind() for name, kind in KINDS.items() if name in names]


def split_names(text):
    return [part for part in re.split(r"[,\s]+", text) if part]
