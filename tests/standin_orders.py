"""A server on loopback that carries out orders: each POST takes one from a list, and is answered as that says."""

import json
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from limits import NeverWaiting


class Server(NeverWaiting, ThreadingHTTPServer):
    request_queue_size = 64


class Ordered:
    """Each request takes one order from `orders`; none left: `usual`. A stand-in says what is seen and what is sent."""

    usual = "answer"

    def __init__(self):
        self.orders, self.requests = deque(), []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                stand_in.begun()
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.requests.append(stand_in.seen(self, query))
                stand_in.carry_out(self, stand_in.orders.popleft() if stand_in.orders else stand_in.usual, query)

            def log_message(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server.server_port}/"

    def begun(self):
        """A request has come."""

    def seen(self, request, query):
        """What is kept of it."""
        return query

    def carry_out(self, request, order, query):
        """Do an order, as a rule by `send`."""
        raise NotImplementedError

    @staticmethod
    def send(request, status, body, headers):
        try:
            request.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(body)
        except OSError:  # the client did not wait
            pass
