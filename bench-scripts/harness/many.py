#!/usr/bin/env python3
"""Many bulk sessions at once, whose bytes are checked.

    many.py serve PORT                  to each connection that says its number and a size, so many bytes of that session, then the end
    many.py fetch PORT SESSIONS SIZE    opens all SESSIONS, asks, waits until everything on the way is full, then reads and compares;
                                        prints one line of JSON

A session is a piece of one pattern, which begins at a place of its own: bytes of another session,
or of another place, differ.
"""

import fcntl
import json
import random
import select
import socket
import struct
import sys
import termios
import time

# The pattern repeats; no multiple of a page or a buffer, so that a shift shows.
PERIOD = (1 << 20) + 7
STEP = 4099                             # sessions with neighbouring numbers begin so far apart
ASK = struct.Struct("!QQ")              # number, size
PIECE = 256 << 10  # at most so much for one session before it is the turn of the next
QUIET = 10                              # seconds without a byte: what is missing then is lost
FULL = 0.2  # seconds without a byte before anything was read: everything on the way is full


def pattern():
    """So long that a piece which begins within the first period never has to wrap."""
    block = random.Random(1).randbytes(PERIOD)
    return block + block[:PIECE]


def serve(port):
    data = memoryview(pattern())
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    peers, todo = {}, {}                # by descriptor; (place, bytes left)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                try:
                    while True:
                        peer, _ = listener.accept()
                        peer.setblocking(False)
                        peers[peer.fileno()] = peer
                        poll.register(peer, select.EPOLLIN)
                except BlockingIOError:
                    continue
            try:
                if fd not in todo:
                    number, left = ASK.unpack(peers[fd].recv(ASK.size))
                    todo[fd] = number * STEP % PERIOD, left
                    poll.modify(fd, select.EPOLLOUT)
                else:
                    start, left = todo[fd]
                    sent = peers[fd].send(data[start:start + min(left, PIECE)])
                    todo[fd] = (start + sent) % PERIOD, left - sent
                done = not todo[fd][1]
            except BlockingIOError:
                continue
            except (OSError, struct.error):     # the session counts as unfinished at the other end
                done = True
            if done:
                peers.pop(fd).close()
                todo.pop(fd, None)


def waiting(sessions):
    """Bytes that could be read."""
    return sum(struct.unpack("i", fcntl.ioctl(session, termios.FIONREAD, bytes(4)))[0] for session in sessions)


def wait_until_full(sessions):
    """Returns how long nothing had come any more."""
    seen, last = 0, time.monotonic()
    while True:
        time.sleep(FULL / 10)
        now, there = time.monotonic(), waiting(sessions)
        if there != seen:
            seen, last = there, now
        elif now - last > (FULL if seen else QUIET):
            return now - last


def fetch(port, sessions, size):
    data, buffer = pattern(), memoryview(bytearray(PIECE))
    opened = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(sessions)]
    started = last = time.monotonic()
    for number, peer in enumerate(opened):
        peer.sendall(ASK.pack(number, size))
        peer.setblocking(False)
    waited = wait_until_full(opened)
    peers = {peer.fileno(): peer for peer in opened}
    first = {peer.fileno(): number * STEP for number, peer in enumerate(opened)}
    got, wrong, surplus = dict.fromkeys(peers, 0), 0, 0
    poll = select.epoll()
    for fd in peers:
        poll.register(fd, select.EPOLLIN)
    while peers:
        ready = poll.poll(QUIET)
        if not ready:
            break
        for fd, _ in ready:
            try:
                count = peers[fd].recv_into(buffer)
            except BlockingIOError:
                continue
            except OSError:
                count = 0
            if count:
                last = time.monotonic()
                if got[fd] + count <= size and data.startswith(buffer[:count], (first[fd] + got[fd]) % PERIOD):
                    got[fd] += count
                    continue
                wrong += 1  # it is not listened to any longer: the rest of it counts as lost
                surplus += max(0, got[fd] + count - size)
            poll.unregister(fd)
            peers.pop(fd).close()
    good = sum(got.values())
    print(json.dumps({"sessions": sessions, "bytes": good, "lost": sessions * size - good + surplus, "sessions_wrong": wrong,
                      "sessions_unfinished": sum(count < size for count in got.values()), "seconds": last - started - waited}))


if __name__ == "__main__":
    {"serve": serve, "fetch": fetch}[sys.argv[1]](*map(int, sys.argv[2:]))
