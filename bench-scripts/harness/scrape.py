#!/usr/bin/env python3
"""Asks tembuku's admin listener for its metrics, as a monitoring system does. Ends with stdin; a
scrape that fails ends it, too.

    scrape.py PORT [SECONDS]    with SECONDS: one scrape in so many. Obeys lines on stdin, answers each with one line:
        scrapes     how many there were                         -> "scrapes N"
        NAME        the sum of that metric over all its labels  -> "NAME N"
"""

import http.client
import re
import select
import sys
import time


def scrape(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    if answer.status != 200 or not text.endswith("\n"):
        sys.exit(f"/metrics answered {answer.status} with {len(text)} characters")
    return text


def total(text, name):
    found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)", text, re.M)
    if not found:
        sys.exit(f"there is no metric {name}")
    return int(sum(map(float, found)))


def main(port, every=None):
    scrapes = 0
    due = time.monotonic()
    while True:
        wait = None if every is None else max(0.0, due - time.monotonic())
        if not select.select([sys.stdin], [], [], wait)[0]:
            scrape(port)
            scrapes += 1
            due += every
            continue
        word = sys.stdin.readline().strip()
        if not word:
            return
        print(word, scrapes if word == "scrapes" else total(scrape(port), word), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(float, sys.argv[2:]))
