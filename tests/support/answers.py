"""Answers with a status of 2xx, for who reads them and who gets them."""

from __future__ import annotations

#: What may stand behind a status line and make the connection useless.
ODD = {
    "a body where there is none": b"HTTP/1.1 204 x\r\ncontent-length: 4\r\n\r\nnull",
    "chunks where there is none": b"HTTP/1.1 204 x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks": b"HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "two lengths": b"HTTP/1.1 200 x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a length that is none": b"HTTP/1.1 200 x\r\ncontent-length: many\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 x\r\ncontent-length: -1\r\n\r\n",
    "a length of other digits": "HTTP/1.1 200 x\r\ncontent-length: ٣\r\n\r\nabc".encode(),
    "no length": b"HTTP/1.1 200 x\r\n\r\nuntil the end",
    "a long body": b"HTTP/1.1 200 x\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000,
    "a line without a colon": b"HTTP/1.1 204 x\r\nnonsense\r\n\r\n",
    "a name with a space": b"HTTP/1.1 204 x\r\nbad name: 1\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 204 x\r\ncontent-length : 0\r\n\r\n",
    "a folded line": b"HTTP/1.1 204 x\r\na: b\r\n c\r\n\r\n",
    "bytes that are no text": b"HTTP/1.1 204 x\r\n\xff\xfe\0: \0\r\n\r\n",
    "the end of the connection": b"HTTP/1.1 204 x\r\nconnection: keep-alive, Close\r\n\r\n",
    "another protocol": b"HTTP/1.1 204 x\r\nupgrade: h2c\r\n\r\n",
    "an old version": b"HTTP/1.0 204 x\r\n\r\n",
    "a second answer": b"HTTP/1.1 204 x\r\n\r\nHTTP/1.1 204 x\r\n\r\n",
    "more than its body": b"HTTP/1.1 200 x\r\ncontent-length: 2\r\n\r\nabc",
    "endless headers": b"HTTP/1.1 204 x\r\n" + b"a: b\r\n" * 20_000,
    "one endless header": b"HTTP/1.1 204 x\r\na: " + b"b" * 100_000,
    "no end of the head": b"HTTP/1.1 204 x\r\na: b\r\n",
}
#: What leaves it of use.
CLEAN = {
    "nothing": b"HTTP/1.1 204 No Content\r\n\r\n",
    "no phrase": b"HTTP/1.1 204\r\n\r\n",
    "an empty phrase": b"HTTP/1.1 204 \r\n\r\n",
    "a phrase that is no text": b"HTTP/1.1 204 \xc3\x9cbernommen\xff\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 204 x\na: b\n\n",
    "a length of nothing": b"HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n",
    "a short body": b"HTTP/1.1 200 x\r\ncontent-length: 2\r\n\r\nok",
    "an empty body": b"HTTP/1.1 202 x\r\nContent-Length:0\r\nConnection: keep-alive\r\n\r\n",
    "many headers": b"HTTP/1.1 204 x\r\n" + b"a: b\r\n" * 150 + b"\r\n",
    "a long header": b"HTTP/1.1 204 x\r\na: " + b"b" * 60_000 + b"\r\n\r\n",
}
