"""An OpenAI-compatible chat server that says what a script tells it, well or badly. Real HTTP over a real socket.

As a program it is a model of fixed speed: python tests/scripted_server.py --latency 1 --slots 64 prints its port.
"""

import argparse
import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from hf_select.demo import teacher


# What a script returns for a request: the text of an answer, or one of these.
class Reply:
    def __init__(
        self, text: str = "", status: int = 200, headers: dict | None = None, raw: str | None = None,
        cut: bool = False, hang: bool = False, finish_reason: str = "stop", delay: float = 0.0,
    ):  # fmt: skip
        self.text, self.status, self.headers, self.raw = text, status, headers or {}, raw
        self.cut, self.hang, self.finish_reason, self.delay = cut, hang, finish_reason, delay

    def body(self, model: str) -> bytes:
        if self.raw is not None:
            return self.raw.encode()
        if self.status != 200:
            return json.dumps({"error": {"message": self.text}}).encode()
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.text},
            "finish_reason": self.finish_reason,
        }
        usage = {"prompt_tokens": 10, "completion_tokens": len(self.text.split()), "total_tokens": 0}
        return json.dumps({"id": "1", "model": model, "created": 0, "choices": [choice], "usage": usage}).encode()


class ScriptedServer:
    """`with ScriptedServer(script) as server`: script(body of the request) -> text or Reply. `seen` has all bodies."""

    def __init__(self, script: Callable[[dict[str, Any]], "str | Reply"], slots: int = 10_000, keep: bool = True):
        self.script, self.slots, self.keep = script, slots, keep
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.busy = self.most_busy = self.connections = self.answered = 0

    async def serve(self) -> int:
        self.free = asyncio.Semaphore(self.slots)
        self.server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    def __enter__(self) -> "ScriptedServer":
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self.serve(), self.loop).result()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_: Any) -> None:
        async def stop() -> None:
            self.server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
                body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
                if self.keep:
                    self.seen.append(body)
                    self.headers.append(headers)
                async with self.free:
                    self.busy += 1
                    self.most_busy = max(self.most_busy, self.busy)
                    reply = self.script(body)
                    reply = reply if isinstance(reply, Reply) else Reply(reply)
                    await asyncio.sleep(reply.delay)
                    self.busy -= 1
                if reply.hang:
                    await asyncio.sleep(3600)
                if reply.cut:
                    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"id": ')
                    await writer.drain()
                    return
                content = reply.body(body.get("model", ""))
                extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
                start = f"HTTP/1.1 {reply.status} X\r\nContent-Type: application/json\r\n{extra}"
                writer.write(f"{start}Content-Length: {len(content)}\r\n\r\n".encode() + content)
                await writer.drain()
                self.answered += 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--teacher", action="store_true", help="play GLAN's parts, not always the same answer")
    args = parser.parse_args()

    async def run() -> None:
        says = teacher if args.teacher else lambda body: "An answer."
        server = ScriptedServer(lambda body: Reply(says(body), delay=args.latency), args.slots, keep=False)
        print(await server.serve(), flush=True)
        await server.server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
