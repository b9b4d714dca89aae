"""A decision model that stands in for those elsewhere: System One, Decisions and chat completions
over real HTTP, from the standard library. What it says follows from the state, and from the place
of an option in the list as far as `lean` says. `python -m bench.serving.stand_in PORT` serves one.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from string import ascii_uppercase
from typing import Any


class StandIn:
    """The model.

    Parameters
    ----------
    lean : nats by which it prefers the first option of a list; 0 does not look at places.
    seconds : how long it thinks.
    mass : probability that falls on options at all; told where the protocol has a place for it.
    """

    def __init__(self, lean: float = 0.0, seconds: float = 0.0, mass: float = 0.9) -> None:
        self.lean, self.seconds, self.mass = lean, seconds, mass
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        """Path, headers and body of each question."""

    def probabilities(self, state: str, options: Sequence[str]) -> list[float]:
        """Of each option, by its name, the state, and its place."""
        scores = [
            int(sha256(f"{state} {name}".encode()).hexdigest()[:8], 16) / 2**31
            + (self.lean if place == 0 else 0.0)
            for place, name in enumerate(options)
        ]
        weights = [math.exp(score) for score in scores]
        return [weight / math.fsum(weights) for weight in weights]

    def answer(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What it says to a question."""
        if path == "/v1/systemone":
            return self._systemone(body)
        if path == "/v1/decisions":
            return self._decisions(body)
        return self._chat(body)

    def _systemone(self, body: Mapping[str, Any]) -> dict[str, Any]:
        answers = {}
        for name, question in body["questions"].items():
            options = list(question["criteria"])
            told = self.probabilities(json.dumps(body["state"], sort_keys=True), options)
            top = max(range(len(told)), key=told.__getitem__)
            answers[name] = {
                "type": "choice",
                "choice": options[top],
                "confidence": told[top] * self.mass,
                "probabilities": dict(zip(options, told, strict=True)),
            }
        diagnosed = {name: {"label_mass": self.mass, "argmax_is_label": True} for name in answers}
        usage = {"input_tokens": 300, "output_tokens": len(answers)}
        return {
            "model": f"{body['model']}-exact",
            "answers": answers,
            "usage": usage,
            "diagnostics": diagnosed,
        }

    def _decisions(self, body: Mapping[str, Any]) -> dict[str, Any]:
        answers = []
        for question in body["questions"]:
            options = [choice["value"] for choice in question["choices"]]
            told = self.probabilities(body["input"], options)
            top = max(range(len(told)), key=told.__getitem__)
            pairs = zip(options, told, strict=True)
            answers.append(
                {
                    "type": "choice",
                    "name": question.get("name"),
                    "choice": options[top],
                    "confidence": told[top],
                    "probabilities": [{"value": name, "probability": p} for name, p in pairs],
                }
            )
        usage = {"input_tokens": 300, "output_tokens": 1, "total_tokens": 301, "cost": 0.0004}
        return {"model": f"{body['model']}-exact", "answers": answers, "usage": usage}

    def _chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        system, user = (message["content"] for message in body["messages"])
        lines = [line for line in system.splitlines() if line[1:2] == ":"]
        names = [line[3:].split(" - ")[0] for line in lines]
        told = self.probabilities(user, names)
        tokens = [
            {"token": letter, "logprob": math.log(self.mass * p), "bytes": [ord(letter)]}
            for letter, p in zip(ascii_uppercase, told, strict=False)
        ]
        tokens.sort(key=lambda token: -float(str(token["logprob"])))
        content = [{**tokens[0], "top_logprobs": tokens}]
        message = {"role": "assistant", "content": tokens[0]["token"]}
        choice = {"index": 0, "message": message, "logprobs": {"content": content}}
        usage = {"prompt_tokens": 320, "completion_tokens": 1, "total_tokens": 321}
        return {"model": f"{body['model']}-exact", "choices": [choice], "usage": usage}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while request := await _request(reader):
                path, headers, body = request
                self.asked.append((path, headers, body))
                if self.seconds:
                    await asyncio.sleep(self.seconds)
                answer = json.dumps(self.answer(path, body)).encode()
                head = "HTTP/1.1 200 OK\r\nContent-Type: application/json"
                writer.write(f"{head}\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # Whoever asked has left.
        finally:
            writer.close()


async def _request(
    reader: asyncio.StreamReader,
) -> tuple[str, dict[str, str], dict[str, Any]] | None:
    """Path, headers and JSON body; None when the connection has ended."""
    line = (await reader.readline()).decode()
    if not line:
        return None
    headers = {}
    while header := (await reader.readline()).decode().strip():
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return line.split()[1], headers, json.loads(body)


@asynccontextmanager
async def standing_in(model: StandIn, port: int = 0) -> AsyncIterator[str]:
    """The model's address, until the block ends."""
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(model.handle(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _serve(port: int, seconds: float) -> None:
    async with standing_in(StandIn(seconds=seconds), port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.05))
