#!/usr/bin/env python3
"""Clients of HTTP that burden a proxy without asking much of it: idle ones, and ones that read
slowly.

    slow.py PORT IDLE SLOW BODY   BODY: the length of what /large answers. Obeys lines on stdin, answers each with one line:
        open     IDLE connections, each proven by a small answer, and SLOW ones that have asked for /large and have
                 begun to read it, RATE bytes a second each                                   -> "open N"
        check    the idle ones that answer once more, and the slow ones that went on reading
                 since they were opened and are not through                                   -> "alive N"
"""

import select
import socket
import sys
import time

ASK = b"GET %s HTTP/1.1\r\nHost: bench\r\n\r\n"
SMALL = b"a small body\n"
BATCH = 100  # connections between two looks at the answers: bounds the backlog needed
RATE = 64 << 10
RECEIVE = 16 << 10                      # SO_RCVBUF; the kernel doubles it
TURN = 0.1                              # seconds between two reads of one slow client


def connect(port, receive=None):
    session = socket.socket()
    session.settimeout(10)
    if receive:
        # Before the window is told.
        session.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    session.connect(("127.0.0.1", port))
    return session


def ask(sessions):
    """How many of them answer with the small body."""
    good = 0
    try:
        for session in sessions:
            session.sendall(ASK % b"/")
    except OSError:
        pass                            # it will not answer, either
    for session in sessions:
        try:
            got = b""
            while not got.endswith(b"\r\n\r\n" + SMALL):
                part = session.recv(4096)
                if not part:
                    break
                got += part
            good += got.startswith(b"HTTP/1.1 200 ") and got.endswith(SMALL)
        except OSError:
            pass
    return good


class Slow:
    def __init__(self, port, body):
        self.session, self.body = connect(port, RECEIVE), body
        self.session.sendall(ASK % b"/large")
        head = b""
        while b"\r\n\r\n" not in head:
            part = self.session.recv(4096)
            if not part:
                break
            head += part
        lines, _, rest = head.partition(b"\r\n\r\n")
        if not lines.startswith(b"HTTP/1.1 200 ") or b"\r\nContent-Length: %d\r\n" % body not in lines + b"\r\n":
            sys.exit(f"/large answered: {lines[:200]!r}")
        self.read = self.mark = len(rest)
        self.ended = False
        self.session.setblocking(False)

    def take(self):
        """What is its share of one turn, if that much is there."""
        try:
            part = self.session.recv(int(RATE * TURN))
        except BlockingIOError:
            return
        except OSError:
            part = b""
        self.read += len(part)
        self.ended = self.ended or not part

    def holds(self):
        return not self.ended and self.mark < self.read < self.body


def main(port, idle, slow, body):
    held, readers, due = [], [], time.monotonic()
    while True:
        wait = max(0.0, due - time.monotonic()) if readers else None
        if not select.select([sys.stdin], [], [], wait)[0]:
            for reader in readers:
                reader.take()
            due = max(due + TURN, time.monotonic())
            continue
        word = sys.stdin.readline().strip()
        if word == "open":
            good = 0
            for start in range(0, idle, BATCH):
                batch = [connect(port) for _ in range(start, min(start + BATCH, idle))]
                held += batch
                good += ask(batch)
            readers = [Slow(port, body) for _ in range(slow)]
            due = time.monotonic()
            print("open", good + len(readers), flush=True)
        elif word == "check":
            good = sum(ask(held[start:start + BATCH]) for start in range(0, len(held), BATCH))
            reading = sum(reader.holds() for reader in readers)
            print(f"{good} of {idle} idle clients, {reading} of {slow} slow ones: read "
                  f"{[reader.read - reader.mark for reader in readers]} bytes", file=sys.stderr, flush=True)
            print("alive", good + reading, flush=True)
        else:
            return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
