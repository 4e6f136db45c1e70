"""A web server on the loopback address that serves files as their hosts do, and misbehaves when it is told to."""

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """What is served, and what was asked.

    `faults` are used up one per GET: a status; `("break", n)` closes the connection after n bytes; `"silent"` sends the
    head and nothing more; `("stall", n)` sends n bytes and then nothing.
    """

    def __init__(self):
        self.files, self.moved, self.tags, self.faults, self.asked = {}, {}, {}, [], []
        self.ranges = self.lengths = True
        self.leaving = threading.Event()
        self.address = ""

    def ranges_asked(self):
        return [span for _, _, span in self.asked]


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_HEAD(self):
        self.site.asked.append(("HEAD", self.path, None))
        self.send_error(403)

    def do_GET(self):
        site, span = self.site, self.headers.get("Range")
        site.asked.append(("GET", self.path, span))
        fault = site.faults.pop(0) if site.faults else None
        if self.path in site.moved:
            self.send_response(302)
            self.send_header("Location", site.moved[self.path])
            self.end_headers()
        elif isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path not in site.files:
            self.send_error(404)
        else:
            self._send(site.files[self.path], span if site.ranges else None, fault)

    def _send(self, body, span, fault):
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span else 0
        beyond = span is not None and start >= len(body)
        self.send_response(416 if beyond else 206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {'*' if beyond else f'{start}-{len(body) - 1}'}/{len(body)}")
        if self.path in self.site.tags:
            self.send_header("ETag", self.site.tags[self.path])
        rest = b"" if beyond else body[start:]
        if self.site.lengths:
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        what, n = fault if isinstance(fault, tuple) else (fault, 0)
        self.wfile.write(rest if what is None else rest[:n])
        self.wfile.flush()
        if what in ("silent", "stall"):
            self.site.leaving.wait(30)

    def log_message(self, *_):
        pass


@contextmanager
def served():
    """A `Site` that answers at its `address` until the end."""
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.leaving.set()
        server.shutdown()
        thread.join()
        server.server_close()
