"""A SOCKS5 proxy on 127.0.0.1 that leads every connection to one port, whatever it asks for."""

import contextlib
import socket
import socketserver
import threading
from contextlib import contextmanager


@contextmanager
def socks_proxy(port):
    """Its address as host:port, and the list of hosts that it was asked for."""
    hosts = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            num_methods = self.rfile.read(2)[1]
            self.rfile.read(num_methods)
            self.wfile.write(b"\x05\x00")
            assert self.rfile.read(4) == b"\x05\x01\x00\x03"  # a name: it is looked up here
            hosts.append(self.rfile.read(self.rfile.read(1)[0]).decode())
            self.rfile.read(2)
            with socket.create_connection(("127.0.0.1", port)) as target:
                self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
                back = threading.Thread(target=_copy, args=(target, self.connection))
                back.start()
                _copy(self.connection, target)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", hosts
        finally:
            server.shutdown()
            thread.join()


def _copy(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
