#!/usr/bin/env python3
"""Sends, counts and echoes UDP datagrams. All of them end by themselves: with stdin, when done, or
when their time is over.

    datagrams.py sink PORT SIZE [gro]       counts datagrams of SIZE bytes; answers a line on stdin, once nothing more comes,
                                            with "arrived N"; `gro` lets the kernel hand over several at once
    datagrams.py send PORT SIZE COUNT RATE [gso]    COUNT datagrams from 8 sockets in turn, at most RATE a second, as runs of
                                            8 (one call, 8 datagrams) or, with `gso`, of 54 (one buffer that the kernel cuts up)
    datagrams.py echo PORT                  sends every datagram back, until stdin ends
    datagrams.py client PORT N              N flows, obeys the same orders as hold.py's client
"""

import ctypes
import json
import select
import socket
import sys
import time

import hold

SOCKETS = 8                             # of the sender: flows, in the eyes of a proxy
RUN = 8  # datagrams from one socket before it is the turn of the next
SEGMENTS = 54  # the same with gso: 64,800 bytes, about the most that one send may carry
QUIET = 0.1                             # seconds without a datagram: the rest is lost
LATE = 4  # the sender gives up after so many times the time it should take
SO_RCVBUFFORCE, UDP_SEGMENT, UDP_GRO = 33, 103, 104
PR_SET_TIMERSLACK = 29
LIBC = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class Header(ctypes.Structure):         # struct msghdr
    _fields_ = [("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("parts", ctypes.POINTER(Iovec)),
                ("part_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
                ("flags", ctypes.c_int)]


class Message(ctypes.Structure):        # struct mmsghdr
    _fields_ = [("header", Header), ("sent", ctypes.c_uint)]


def server(port):
    """A socket whose own buffer is no reason to lose anything: 64 MiB (the kernel doubles what is
    asked for)."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
    bound.bind(("127.0.0.1", port))
    bound.setblocking(False)
    return bound


def until_stdin_speaks(bound, take):
    """Calls `take` whenever there is something to read; returns the next line of stdin, empty at
    its end."""
    poll = select.epoll()
    poll.register(bound, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == sys.stdin.fileno():
                return sys.stdin.readline()
            try:
                while True:
                    take()
            except BlockingIOError:
                continue


def sink(port, size, gro):
    bound = server(port)
    if gro:
        bound.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    buffer = bytearray(1 << 16)
    arrived, wrong = 0, 0

    def take():
        nonlocal arrived, wrong
        whole, rest = divmod(bound.recv_into(buffer), size)
        if rest or not whole or (whole > 1 and not gro):
            wrong += 1
        else:
            arrived += whole

    while until_stdin_speaks(bound, take):
        while select.select([bound], [], [], QUIET)[0]:
            take()
        if wrong:
            sys.exit(f"{wrong} datagrams were not of {size} bytes")
        print("arrived", arrived, flush=True)


def runs_of(sender, size):
    """A function that sends one run of plain datagrams, and returns how many went out."""
    payload = ctypes.create_string_buffer(size)
    part = Iovec(ctypes.addressof(payload), size)
    messages = (Message * RUN)(*[Message(Header(parts=ctypes.pointer(part), part_count=1)) for _ in range(RUN)])
    fd = sender.fileno()

    def send(most):
        sent = LIBC.sendmmsg(fd, messages, min(RUN, most), 0)
        if sent < 0:
            raise OSError(ctypes.get_errno(), "sendmmsg")
        return sent
    send.keep = sender, payload, part      # the messages point to them
    return send


def segments_of(sender, size):
    """The same, as one buffer that the kernel cuts into datagrams."""
    sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    payload = memoryview(bytes(size * SEGMENTS))
    return lambda most: sender.send(payload[:min(SEGMENTS, most) * size]) // size


def send(port, size, count, rate, gso):
    LIBC.prctl(PR_SET_TIMERSLACK, 1000)  # nanoseconds; by default a sleep may last 50 us longer
    sends = []
    for _ in range(SOCKETS):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(("127.0.0.1", port))
        sends.append((segments_of if gso else runs_of)(sender, size))
    gap = (SEGMENTS if gso else RUN) / rate
    started = due = time.monotonic()
    sent, turn = 0, 0
    while sent < count:
        now = time.monotonic()
        if now - started > LATE * count / rate:
            sys.exit(f"only {sent} of {count} datagrams sent in {LATE} times the time planned")
        if now < due:
            time.sleep(due - now)
        sent += sends[turn % SOCKETS](count - sent)
        turn += 1
        # Who was held up does not make up for it: that would be a burst.
        due = max(due, now - 2 * gap) + gap
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - started}))


def echo(port):
    bound = server(port)

    def take():
        data, peer = bound.recvfrom(1 << 16)
        bound.sendto(data, peer)

    while until_stdin_speaks(bound, take):
        pass


def open_flow(port, _number):
    flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flow.settimeout(10)
    flow.connect(("127.0.0.1", port))
    return flow


def main(role, port, *more):
    numbers, words = [int(part) for part in more if part.isdigit()], more[-1:]
    if role == "sink":
        sink(port, *numbers, "gro" in words)
    elif role == "send":
        send(port, *numbers, "gso" in words)
    elif role == "echo":
        echo(port)
    else:
        hold.client(port, *numbers, open_flow)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
