#!/usr/bin/env python3
"""Tells over HTTP whether a PostgreSQL server is a primary, as agents of clusters do: 200, or 503.
Used by limits.

    role.py PORT POSTGRES_PORT

It asks the server every 50 ms, on one connection.
"""

import http.server
import sys
import threading
import time

from callers import Connection

PORT, SERVER = map(int, sys.argv[1:])
is_primary = False


def watch():
    global is_primary
    while True:
        try:
            with Connection(SERVER, timeout=1) as connection:
                while True:
                    is_primary = connection.query(b"select pg_is_in_recovery()") == b"f"
                    time.sleep(0.05)
        except (OSError, RuntimeError):
            is_primary = False
            time.sleep(0.05)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if is_primary else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_OPTIONS = do_HEAD = do_GET

    def log_message(self, *_):
        pass


threading.Thread(target=watch, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
