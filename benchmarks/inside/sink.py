"""A collector of traces that swallows everything, in a process of its own, which is not counted:
`python sink.py` writes its port on a line, and answers GET with how much has come."""

import asyncio
import json
import sys

HOST = "127.0.0.1"


class Sink:
    """Counts what it is given."""

    def __init__(self) -> None:
        self.exports = 0
        self.bytes = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection until it is closed."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                self.exports += head.startswith(b"post")
                self.bytes += length
                body = json.dumps({"exports": self.exports, "bytes": self.bytes}).encode()
                said = b"" if head.startswith(b"post") else body
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Sink().serve, HOST, 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
