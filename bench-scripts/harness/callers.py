#!/usr/bin/env python3
"""Clients of PostgreSQL that connect, write a row and leave, again and again. Used by limits.

    callers.py PORT CLIENTS

Until a line arrives on stdin; then prints all calls as JSON: when each began, when the server let
it in, when it ended, and what went wrong, if something did.
"""

import json
import socket
import struct
import sys
import threading
import time

STARTUP = b"".join(part + b"\0" for part in (b"user", b"postgres", b"database", b"postgres", b""))
PAUSE = 0.01


class Connection:
    """One that the server has let in."""

    def __init__(self, port, timeout):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.stream = self.socket.makefile("rb")
        try:
            self.socket.sendall(struct.pack("!II", len(STARTUP) + 8, 196608) + STARTUP)
            self.answer()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.socket.close()

    def answer(self):
        """The first column of the last row, if there is one."""
        value = None
        while True:
            head = self.stream.read(5)
            if len(head) < 5:
                raise ConnectionError("the connection ended")
            kind, size = struct.unpack("!cI", head)
            body = self.stream.read(size - 4)
            if kind == b"D":
                value = body[6:6 + struct.unpack("!i", body[2:6])[0]]
            if kind == b"E":
                fields = [field for field in body.split(b"\0") if field[:1] == b"M"]
                raise RuntimeError(fields[0][1:].decode(errors="replace") if fields else "an error")
            if kind == b"Z":
                return value

    def query(self, text):
        self.socket.sendall(b"Q" + struct.pack("!I", len(text) + 5) + text + b"\0")
        return self.answer()

    def end(self):
        self.socket.sendall(b"X" + struct.pack("!I", 4))


def call(port, record):
    with Connection(port, timeout=60) as connection:
        record["let_in"] = time.monotonic()
        connection.query(b"insert into marks default values")
        connection.end()


def main():
    port, clients = int(sys.argv[1]), int(sys.argv[2])
    calls, over = [], threading.Event()

    def client():
        while not over.is_set():
            record = {"began": time.monotonic()}
            try:
                call(port, record)
            except (OSError, RuntimeError) as reason:
                record["error"] = str(reason)
            record["ended"] = time.monotonic()
            calls.append(record)
            time.sleep(PAUSE)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    over.set()
    for thread in threads:
        thread.join()
    json.dump(calls, sys.stdout)


if __name__ == "__main__":
    main()
