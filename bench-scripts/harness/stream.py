#!/usr/bin/env python3
"""Both ends of a measurement of bandwidth. Used by limits.

    stream.py source PORT [RATE]    sends to each that connects: as fast as it can, or RATE bytes a second in pieces of 10 ms
    stream.py sink PORT SESSIONS WARM SECONDS ADDRESSES
                                    reads from so many sessions, of as many source addresses in turn; prints JSON when WARM seconds
                                    are over, and again SECONDS later
"""

import json
import select
import socket
import sys
import threading
import time

PIECE = 1 << 20                     # of one read or write
TICK = 0.010                        # of a source that paces itself
SLOT = 0.100                        # of the sink's record of how smooth it was


def serve(stream, rate):
    block = memoryview(bytes(max(PIECE, int(rate * TICK) + 1)))
    try:
        if not rate:
            while True:
                stream.sendall(block)
        began, sent = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - began + TICK) * rate)
            while sent < due:
                sent += stream.send(block[:min(due - sent, len(block))])
            time.sleep(max(0.0, TICK - (time.monotonic() - began) % TICK))
    except OSError:
        pass


def source(port, rate):
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=serve, args=(stream, rate), daemon=True).start()


def sink(port, sessions, warm, seconds, addresses):
    streams, poll = {}, select.epoll()
    for n in range(sessions):
        stream = socket.create_connection(("127.0.0.1", port), 10, (f"127.0.0.{2 + n % addresses}", 0))
        stream.setblocking(False)
        streams[stream.fileno()] = stream
        poll.register(stream, select.EPOLLIN)
    block = bytearray(PIECE)
    began = time.monotonic()
    total, of_session, slots, from_time, from_total = 0, dict.fromkeys(streams, 0), {}, None, 0
    while True:
        ready = poll.poll(0.05)
        now = time.monotonic()
        if from_time is None and now >= began + warm:
            from_time, from_total, of_session = now, total, dict.fromkeys(streams, 0)
            print(json.dumps({"at": now}), flush=True)
        if from_time is not None and now >= from_time + seconds:
            break
        for fd, _ in ready:
            try:
                n = streams[fd].recv_into(block)
            except BlockingIOError:
                continue
            if n == 0:
                sys.exit("a session ended")
            total += n
            of_session[fd] += n
            if from_time is not None:
                slot = int((now - from_time) / SLOT)
                slots[slot] = slots.get(slot, 0) + n
    counted = list(of_session.values())
    print(json.dumps({"at": now, "bytes": total - from_total, "seconds": now - from_time,
                      "slots": [slots.get(n, 0) for n in range(int(seconds / SLOT))],
                      "least": min(counted), "most": max(counted)}), flush=True)


def main():
    match sys.argv[1:]:
        case ["source", port, *rate]:
            source(int(port), float(rate[0]) if rate else 0.0)
        case ["sink", port, sessions, warm, seconds, addresses]:
            sink(int(port), int(sessions), float(warm), float(seconds), int(addresses))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
