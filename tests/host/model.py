"""A stand-in for the Messages API, so that the real Claude Code runs without a network.

It answers a prompt that holds an envelope with one call of the Write tool, and the tool's
result with the end of the turn. What it writes is what it was asked. The first part of the
request's path is where answers go: ANTHROPIC_BASE_URL=http://127.0.0.1:PORT/tmp/answers.

    unshare -n python tests/host/model.py
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

ENVELOPE = re.compile(r"\[PALIADIN:([0-9a-f-]{36})\] (.*)")
TRAILER = (
    "[paliadin-meta]\nused_tools: Write\nrows_seen: 0\nclassifier_tag: echo\n[/paliadin-meta]\n"
)


async def messages(request: Request) -> Response:
    """One step of a conversation, as server-sent events."""
    body = await request.json()
    texts = [
        block.get("text", "")
        for message in body["messages"]
        if message["role"] != "assistant"  # what comes while it works is a system message
        for block in blocks(message["content"])
    ]
    asked = next((found for found in map(ENVELOPE.search, reversed(texts)) if found), None)
    # A request without tools wants a title for the session; one that holds the call's id
    # already brings its result.
    if asked and body.get("tools") and f"toolu_{asked[1]}" not in json.dumps(body["messages"]):
        turn_id, question = asked.groups()
        answers = request.path_params["answers"]
        call = {
            "file_path": f"/{answers}/{turn_id}.txt",
            "content": f"You asked:\n\n> {question}\n\n{TRAILER}",
        }
        start: dict[str, Any] = {"type": "tool_use", "id": f"toolu_{turn_id}", "name": "Write"}
        return stream(
            body["model"],
            {**start, "input": {}},
            {"type": "input_json_delta", "partial_json": json.dumps(call)},
            "tool_use",
        )
    return stream(
        body["model"],
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "Done."},
        "end_turn",
    )


def blocks(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A message's content in its long form."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def stream(model: str, block: dict[str, Any], delta: dict[str, Any], stop: str) -> Response:
    """The events of one message with one content block."""
    usage = {"input_tokens": 1, "output_tokens": 1}
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop, "stop_sequence": None},
            "usage": usage,
        },
        {"type": "message_stop"},
    ]
    lines = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return Response("".join(lines), media_type="text/event-stream")


if __name__ == "__main__":
    # A network namespace of its own begins with its loopback down.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    app = Starlette(routes=[Route("/{answers:path}/v1/messages", messages, methods=["POST"])])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
