"""Kafka's Produce request by hand, for messages that no client library would send. One record per request."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence

_PRODUCE, _VERSION = 0, 3
_MAGIC = 2


def produce_with_headers(
    brokers: str, topic: str, partition: int, value: bytes, headers: Sequence[tuple[bytes, bytes]]
) -> None:
    """Send one message whose header names are any bytes; the protocol (record batch, version 2) says UTF-8."""
    batch = _record_batch(value, headers)
    body = struct.pack(">hhi", -1, -1, 5000)  # no transaction, acks of all, timeout
    body += struct.pack(">i", 1) + _text(topic) + struct.pack(">iii", 1, partition, len(batch)) + batch
    head = struct.pack(">hhi", _PRODUCE, _VERSION, 1) + _text("test")
    host, _, port = brokers.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(struct.pack(">i", len(head + body)) + head + body)
        answer = _read(connection, struct.unpack(">i", _read(connection, 4))[0])
    # correlation id, one topic, its name, one partition, its number
    (error,) = struct.unpack_from(">h", answer, 4 + 4 + 2 + len(topic) + 4 + 4)
    assert error == 0, f"the broker answers error {error}"


def _record_batch(value: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    now_ms = int(time.time() * 1000)
    record = b"\x00" + _varint(0) + _varint(0) + _varint(-1) + _varint(len(value)) + value + _varint(len(headers))
    for name, content in headers:
        record += _varint(len(name)) + name + _varint(len(content)) + content
    records = _varint(len(record)) + record
    checked = struct.pack(">hiqqqhii", 0, 0, now_ms, now_ms, -1, -1, -1, 1) + records
    tail = struct.pack(">ibI", 0, _MAGIC, _crc32c(checked)) + checked
    return struct.pack(">qi", 0, len(tail)) + tail


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


def _varint(value: int) -> bytes:
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def _crc32c(data: bytes) -> int:
    """Castagnoli's polynomial, RFC 3720."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
    return crc ^ 0xFFFF_FFFF


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, "the broker closed the connection"
        data += part
    return data
