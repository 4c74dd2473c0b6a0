"""A bare root in which systemd runs, and clients and a server in its network."""

import ctypes
import os
import re
import socket
import subprocess
import threading
import time

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
# How long a condition is waited for, in seconds.
PATIENCE = 30
BLOCK = 4096


def wait_until(what, condition, patience=PATIENCE):
    """Returns what the condition returns, once that is true."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"waited {patience} s for: {what}")


class Machine:
    """Everything in it ends with `stop`."""

    def __init__(self, root):
        self.root = root
        boot = os.path.join(os.path.dirname(os.path.abspath(__file__)), "boot")
        self.log = open(f"{root}.boot.log", "w")
        self.process = subprocess.Popen([boot, root], stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.first = int(self.process.stdout.readline())
        is_up = lambda: self.try_run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")
        wait_until("systemd has started", is_up, 60)
        # From here on sockets of this process are in the network of that one.
        with open(f"/proc/{self.first}/ns/net") as network:
            if LIBC.setns(network.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def try_run(self, *command):
        enter = ["nsenter", "--target", str(self.first)]
        enter += ["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "env", "-i"]
        enter += ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER="]
        return subprocess.run(enter + list(command), capture_output=True, text=True, timeout=120)

    def run(self, *command):
        """What the command says, which must succeed."""
        ran = self.try_run(*command)
        assert ran.returncode == 0, f"{command}: {ran.returncode}\n{ran.stdout}{ran.stderr}\n{self.journal()}"
        return ran.stdout + ran.stderr

    def journal(self, unit="tembuku"):
        return self.try_run("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout

    def show(self, name, unit="tembuku"):
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def path(self, name):
        return f"/proc/{self.first}/root{name}"

    def write(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w") as file:
            file.write(text)

    def outside(self, pid):
        """The number that a process in there has here."""
        for entry in os.listdir("/proc"):
            try:
                with open(f"/proc/{entry}/status") as file:
                    numbers = re.search(r"^NSpid:\s+(.*)$", file.read(), re.M).group(1).split()
                if len(numbers) > 1 and numbers[-1] == str(pid) and self.owns(entry):
                    return int(entry)
            except (OSError, AttributeError):
                pass
        raise AssertionError(f"no process {pid}")

    def owns(self, pid):
        space = lambda pid: os.readlink(f"/proc/{pid}/ns/pid")
        return space(pid) == space(self.first)


class Echo:
    """A server that greets and then echoes."""

    def __init__(self, address):
        self.listener = socket.create_server(address, backlog=1024)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.echo, args=(client,), daemon=True).start()

    @staticmethod
    def echo(client):
        try:
            client.sendall(b"hello\n")
            while data := client.recv(65536):
                client.sendall(data)
        except OSError:
            pass
        client.close()


class Session:
    """Its bytes are numbered."""

    def __init__(self, address, patience=PATIENCE):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.stream = socket.socket(family, socket.SOCK_STREAM)
        self.stream.settimeout(patience)
        self.stream.connect(address)
        self.sent = 0

    def greeting(self):
        return self.receive(6)

    def receive(self, length):
        data = b""
        while len(data) < length:
            part = self.stream.recv(length - len(data))
            if not part:
                raise ConnectionResetError("the session has ended")
            data += part
        return data

    def exchange(self):
        block = bytes((self.sent + n) % 251 for n in range(BLOCK))
        self.stream.sendall(block)
        assert self.receive(BLOCK) == block, "other bytes came back"
        self.sent += BLOCK

    def is_cut(self):
        try:
            self.exchange()
            return False
        except (ConnectionError, TimeoutError):
            return True


def session(address):
    """One that is established to the server."""
    opened = Session(address)
    assert opened.greeting() == b"hello\n"
    opened.exchange()
    return opened


def refused(address):
    """Whether nothing listens there; a client that waits in a queue is another thing."""
    try:
        Session(address).stream.close()
    except ConnectionRefusedError:
        return True
    return False


class Load:
    """Clients that come one after the other, until `end`."""

    def __init__(self, address):
        self.address = address
        self.served, self.refused, self.cut, self.longest = 0, [], [], 0.0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.come, daemon=True)
        self.thread.start()

    def come(self):
        while not self.stopped.is_set():
            began = time.monotonic()
            try:
                client = Session(self.address)
            except OSError as error:
                self.refused.append(str(error))
                continue
            try:
                client.greeting()
                client.exchange()
                self.served += 1
            except OSError as error:
                self.cut.append(str(error))
            client.stream.close()
            self.longest = max(self.longest, time.monotonic() - began)

    def end(self):
        """What has become of them."""
        before = self.served
        wait_until("clients are served", lambda: self.served > before + 3)
        self.stopped.set()
        self.thread.join()
        return self
