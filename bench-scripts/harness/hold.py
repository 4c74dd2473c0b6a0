#!/usr/bin/env python3
"""Holds idle TCP sessions. Two processes, because a process may have too few descriptors for both
ends.

    hold.py echo PORT         echoes whatever arrives on any number of connections, until stdin ends
    hold.py client PORT N     obeys lines on stdin, answers each with one line:
        open     N connections, each proven by a message there and back  -> "open N"
        check    one more message there and back over every connection   -> "alive N"
        close    all of them                                             -> "closed N"
"""

import select
import socket
import sys

MESSAGE = b"sixteen bytes..."
BATCH = 100  # connections between two looks at the echoes: bounds the backlog needed
PER_SOURCE = 20000  # connections per source address, well below the number of ports
IP_BIND_ADDRESS_NO_PORT = 24


def echo(port):
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN)
    held = {}
    while True:
        for fd, _ in poll.poll():
            if fd == sys.stdin.fileno():
                return
            if fd == listener.fileno():
                try:
                    while True:
                        peer, _ = listener.accept()
                        held[peer.fileno()] = peer
                        poll.register(peer, select.EPOLLIN)
                except BlockingIOError:
                    continue
            try:
                data = held[fd].recv(65536)
                held[fd].sendall(data)
            except OSError:
                data = b""
            if not data:
                held.pop(fd).close()


def ask(sessions):
    for session in sessions:
        try:
            session.sendall(MESSAGE)
        except OSError:
            pass                        # hear() will count it as lost


def hear(sessions):
    """How many of them have echoed the message."""
    good = 0
    for session in sessions:
        try:
            got = b""
            while len(got) < len(MESSAGE):
                part = session.recv(len(MESSAGE) - len(got))
                if not part:
                    break
                got += part
            good += got == MESSAGE
        except OSError:
            pass
    return good


def open_session(port, number):
    session = socket.socket()
    session.settimeout(10)
    if number >= PER_SOURCE:
        session.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        session.bind((f"127.0.1.{number // PER_SOURCE}", 0))
    session.connect(("127.0.0.1", port))
    return session


def client(port, count, open_session):
    held = []
    for line in sys.stdin:
        order = line.strip()
        if order == "open":
            good = 0
            for start in range(0, count, BATCH):
                batch = [open_session(port, number) for number in range(start, min(start + BATCH, count))]
                held += batch
                ask(batch)
                good += hear(batch)
            print("open", good, flush=True)
        elif order == "check":
            good = 0
            for start in range(0, len(held), BATCH):
                ask(held[start:start + BATCH])
                good += hear(held[start:start + BATCH])
            print("alive", good, flush=True)
        elif order == "close":
            for session in held:
                session.close()
            print("closed", len(held), flush=True)
            held = []


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(int(sys.argv[2]))
    else:
        client(int(sys.argv[2]), int(sys.argv[3]), open_session)
