#!/usr/bin/env python3
"""Sessions and flows in steady exchange: how long each message takes there and back.

    exchange.py serve PORT              echoes messages over TCP and UDP, each with the client's port as it is seen here, until stdin ends
    exchange.py tcp PORT N PERIOD       N sessions, a message of each every PERIOD seconds, evenly spread; never two under way
    exchange.py udp PORT N PERIOD       the same with flows
    exchange.py probe PORT PERIOD       a new connection every PERIOD seconds, one message through it

The last three print "open" once all run, and answer a line on stdin with one line of JSON about the
time since the one before: messages, the longest delay of each session in ms (p50, p99 and max of
these), what is under way for longer than three seconds ("missing"), what was cut or lost, and for
how many the port at the server has changed ("moved"). An empty line ends them.
"""

import collections
import gc
import json
import select
import socket
import sys
import time

SIZE = 16                               # of a message; the echo has the port in its last six bytes
STALE = 3.0                             # seconds


def serve(port):
    listener = socket.create_server(("127.0.0.1", port), backlog=8192)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)           # SO_RCVBUFFORCE
    datagrams.bind(("127.0.0.1", port))
    poll, held = select.epoll(), {}
    for one in (listener, datagrams):
        one.setblocking(False)
        poll.register(one, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN)
    gc.disable()
    while True:
        for fd, _ in poll.poll():
            if fd == datagrams.fileno():
                try:
                    while True:
                        data, peer = datagrams.recvfrom(64)
                        datagrams.sendto(data[:10] + b"%06d" % peer[1], peer)
                except BlockingIOError:
                    continue
            elif fd == listener.fileno():
                try:
                    while True:
                        peer, address = listener.accept()
                        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        held[peer.fileno()] = peer, b"%06d" % address[1]
                        poll.register(peer, select.EPOLLIN)
                except BlockingIOError:
                    continue
            elif fd == sys.stdin.fileno():
                return
            else:
                peer, seen = held[fd]
                try:
                    data = peer.recv(SIZE)
                    if data:
                        peer.send(data[:10] + seen)
                except OSError:
                    data = b""
                if not data:
                    held.pop(fd)[0].close()


class Figures:
    def __init__(self):
        self.reset()

    def reset(self):
        self.count, self.longest, self.cut, self.lost, self.moved = 0, {}, 0, 0, 0

    def note(self, who, delay):
        self.count += 1
        if delay > self.longest.get(who, 0):
            self.longest[who] = delay

    def take(self, missing=0):
        delays = sorted(self.longest.values())
        at = lambda part: round(1e3 * delays[min(len(delays) - 1, int(part * len(delays)))], 3) if delays else None
        said = {"messages": self.count, "sessions": len(delays), "p50": at(0.5), "p99": at(0.99), "max": at(1), "missing": missing,
                "cut": self.cut, "lost": self.lost, "moved": self.moved}
        self.reset()
        return json.dumps(said)


def answer(figures, missing=0):
    """Returns whether to go on."""
    if not sys.stdin.readline().strip():
        return False
    print(figures.take(missing), flush=True)
    return True


def connect(port, kind):
    one = socket.socket(socket.AF_INET, kind)
    one.settimeout(20)
    one.connect(("127.0.0.1", port))
    if kind == socket.SOCK_STREAM:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def exchange(port, count, period, kind):
    sessions, seen, poll = {}, {}, select.epoll()
    for n in range(count):
        one = connect(port, kind)
        one.send(b"%010d%06d" % (n, 0))
        seen[one.fileno()] = one.recv(SIZE)[10:]
        one.setblocking(False)
        sessions[one.fileno()] = one
        poll.register(one, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN)
    print("open", flush=True)
    figures, sent, number = Figures(), {}, 0
    turns = collections.deque(sessions)
    gap, due = period / count, time.monotonic()
    gc.disable()
    while True:
        now = time.monotonic()
        while due <= now and turns:
            due += gap
            turns.rotate(-1)
            fd = turns[0]
            if fd in sent:
                if kind == socket.SOCK_STREAM or now - sent[fd][0] < STALE:
                    continue
                figures.lost += 1       # of UDP: it does not come any more
            number += 1
            try:
                sessions[fd].send(b"%010d%06d" % (number, 0))
                sent[fd] = now, number
            except OSError:
                pass                    # its end is seen below
        for fd, _ in poll.poll(max(0, due - time.monotonic())):
            if fd == sys.stdin.fileno():
                late = time.monotonic() - STALE
                if not answer(figures, sum(at < late for at, _ in sent.values())):
                    return
                continue
            try:
                data = sessions[fd].recv(SIZE)
            except BlockingIOError:
                continue
            except ConnectionRefusedError:
                continue                # UDP: it counts as lost
            except OSError:
                data = b""
            now = time.monotonic()
            if not data:
                figures.cut += 1
                sessions.pop(fd).close()
                sent.pop(fd, None)
                turns.remove(fd)
                continue
            if fd in sent and int(data[:10]) == sent[fd][1]:
                figures.note(fd, now - sent.pop(fd)[0])
                if data[10:] != seen[fd]:
                    seen[fd] = data[10:]
                    figures.moved += 1


def probe(port, period):
    figures, due = Figures(), time.monotonic()
    poll = select.epoll()
    poll.register(sys.stdin, select.EPOLLIN)
    print("open", flush=True)
    while True:
        if poll.poll(max(0, due - time.monotonic())):
            if not answer(figures):
                return
            continue
        began = time.monotonic()
        try:
            with connect(port, socket.SOCK_STREAM) as one:
                one.send(b"%016d" % 0)
                if one.recv(SIZE):
                    figures.note(began, time.monotonic() - began)
                else:
                    figures.cut += 1
        except OSError:
            figures.cut += 1
        due = max(due + period, time.monotonic())


if __name__ == "__main__":
    role, port, *more = sys.argv[1:]
    if role == "serve":
        serve(int(port))
    elif role == "probe":
        probe(int(port), float(more[0]))
    else:
        exchange(int(port), int(more[0]), float(more[1]), socket.SOCK_STREAM if role == "tcp" else socket.SOCK_DGRAM)
