"""PostgreSQL servers in the namespace, and pgbench."""

import os
import pwd
import re
import shutil
import time
from pathlib import Path

from . import system
from .system import Child, Failure

ENVIRONMENT = {"PGUSER": "bench", "PGDATABASE": "postgres", "PGSSLMODE": "disable", "PGGSSENCMODE": "disable",
               "PGCONNECT_TIMEOUT": "60"}


def tool(name):
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not found:
        raise Failure("PostgreSQL is not installed")
    return str(found[-1])


def as_postgres(argv):
    """It refuses to run as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig", "TERM", *map(str, argv)]


class Postgres:
    """A server; `with` runs it."""

    def __init__(self, namespace, folder, name, port, settings=(), replica_of=None):
        self.namespace, self.port = namespace, port
        self.home = Path(folder) / name
        self.home.mkdir()
        account = pwd.getpwnam("postgres")
        os.chown(self.home, account.pw_uid, account.pw_gid)
        if replica_of is None:
            self.do("initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D", self.home / "data")
        else:
            self.do("pg_basebackup", "-D", self.home / "data", "-R", "-X", "stream", "-c", "fast", "--no-sync",
                    "-h", "127.0.0.1", "-p", replica_of.port, "-U", "postgres")
        own = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": self.home, "fsync": "off"}
        arguments = [f"{key}={value}" for key, value in (own | dict(settings)).items()]
        self.argv = as_postgres([tool("postgres"), "-D", self.home / "data", *(part for a in arguments for part in ("-c", a))])
        self.child = None

    def do(self, program, *arguments):
        done = system.run_client(self.namespace, as_postgres([tool(program), *arguments]), self.home.parent / f"{self.home.name}.log", 60)
        return done[0]

    def __enter__(self):
        self.child = Child(self.namespace, self.argv, self.home.parent / f"{self.home.name}.server.log")
        self.child.wait_listening(self.port, "tcp", 30)
        end = time.monotonic() + 30
        while system.output(self.client("select 1")) != "1":
            if time.monotonic() > end:
                raise Failure(f"PostgreSQL does not answer: {self.child.tail()}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self.child.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def client(self, statement):
        return self.namespace.wrap([tool("psql"), "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", "-XqAt", "-d", "postgres",
                                    "-c", statement])

    def sql(self, statement):
        text, _, _ = system.run_client(self.namespace, self.client(statement)[4:], self.home.parent / "psql.log", 30)
        return text.strip()

    def promote(self):
        self.do("pg_ctl", "promote", "-D", self.home / "data", "-w")


def pgbench(port, *options):
    environment = ["env", *(f"{key}={value}" for key, value in ENVIRONMENT.items()), "PGHOST=127.0.0.1", f"PGPORT={port}"]
    return [*environment, tool("pgbench"), "-n", *map(str, options)]


def parse_pgbench(text):
    """(transactions, a second, failed)."""
    found = re.search(r"number of transactions actually processed: (\d+)", text)
    rate = re.search(r"tps = ([\d.]+)", text)
    failed = re.search(r"number of failed transactions: (\d+)", text)
    if not found:
        raise Failure(f"pgbench says:\n{text}")
    return int(found[1]), float(rate[1]) if rate else 0.0, int(failed[1]) if failed else 0
