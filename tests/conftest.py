"""An S3 server of our own (moto), and a proxy before it that counts requests and spoils some of them."""

import http.client
import logging
import os
import random
import threading
import time
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from compal.workspace import Remote

FAULTS = ("refused", "lost", "cut", "short", "late")


class Proxy:
    """Forwards to a server. `rate` of the requests go wrong:

    refused  503, the server never hears of it
    lost     the server did it, the answer is a closed connection
    cut      the body ends before its declared length
    short    the body ends early and its declared length agrees, as from a broken cache
    late     the answer comes after the client's patience
    """

    def __init__(self, target, rate=0.0, seed=0, late=0.8):
        self.rate, self.late, self.draw = rate, late, random.Random(seed)
        self.requests, self.spoiled = [], dict.fromkeys(FAULTS, 0)
        self.lock = threading.Lock()
        host, port = target
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                with proxy.lock:
                    proxy.requests.append((self.command, self.path, self.headers.get("Range")))
                    fault = proxy.draw.choice(FAULTS) if proxy.draw.random() < proxy.rate else ""
                    if fault == "late" and proxy.spoiled["late"] >= 3:
                        fault = "refused"  # each costs a second
                    if fault:
                        proxy.spoiled[fault] += 1
                length = int(self.headers.get("Content-Length") or 0)
                sent = self.rfile.read(length)
                if fault == "refused":
                    return self.reply(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                link = http.client.HTTPConnection(host, port, timeout=30)
                headers = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
                link.request(self.command, self.path, sent, headers)
                found = link.getresponse()
                body, status, headers = found.read(), found.status, dict(found.getheaders())
                link.close()
                if fault == "late":
                    time.sleep(proxy.late)
                if fault == "lost":
                    self.close_connection = True
                    return None
                if fault == "short" and self.command == "GET":
                    return self.reply(status, headers, body[: len(body) // 2])
                return self.reply(status, headers, body, cut=fault == "cut")

            def reply(self, status, headers, body, cut=False):
                try:
                    self.send_response_only(status)
                    for key, value in headers.items():
                        if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                            self.send_header(key, value)
                    declared = headers.get("Content-Length") if self.command == "HEAD" else len(body)
                    self.send_header("Content-Length", str(declared or 0))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body[: len(body) // 2] if cut else body)
                    self.wfile.flush()
                    self.close_connection = cut
                except OSError:
                    self.close_connection = True  # the client went first

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def gets(self, of):
        """The ranges of the GET requests whose path contains `of`."""
        return [span for method, path, span in self.requests if method == "GET" and of in path]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def s3_server():
    """(host, port) of a moto server in this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """`s3(endpoint=None, **options)`: a remote; all of one test share a fresh bucket."""
    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "none"}.items():
        monkeypatch.setitem(os.environ, name, value)
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    endpoint = "http://{}:{}".format(*s3_server)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()

    def make(through=None, **options):
        given = {"endpoint": through or endpoint, "allow_http": True, "timeout": 5, **options}
        return Remote("team", f"s3://{bucket}/features", given)

    make.bucket = bucket
    make.endpoint = endpoint
    return make


@pytest.fixture
def proxy(s3_server):
    """`proxy(rate=0.2, seed=0)`: a `Proxy` before the S3 server."""
    made = []

    def make(**options):
        made.append(Proxy(s3_server, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
