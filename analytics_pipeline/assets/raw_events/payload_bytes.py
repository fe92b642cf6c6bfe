"""What can be told of payloads from their bytes, many at once: are they UTF-8, does a key stand there twice.

Every message passes here, so payloads are looked at joined, a few hundred kilobytes at a time; a payload is
looked at separately only where its neighbourhood is suspicious. Pure; knows no domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt

#: Joined payloads stay in the processor's cache.
CHUNK_BYTES = 256 * 1024
#: Every so many payloads are measured to tell how many make a chunk.
MEASURED_EVERY = 64
#: Bytes at the end of a quoted key that are compared at once: one machine word.
WORD = 8
_KEY_END = b'":'
_KEY_END_PAIR = int.from_bytes(_KEY_END, "little")

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def not_utf8(payloads: Sequence[bytes]) -> list[int]:
    """Numbers of the payloads that are no UTF-8, ascending."""
    found: list[int] = []
    for first, chunk in _chunks(payloads):
        try:
            b"\n".join(chunk).decode()
        except UnicodeDecodeError:
            found += [first + at for at, payload in enumerate(chunk) if not _is_utf8(payload)]
    return found


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class Keys:
    """The keys of a JSON object that are read: each payload has every ``required`` one."""

    required: frozenset[str]
    optional: frozenset[str] = frozenset()

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.required | self.optional))

    @cached_property
    def quoted(self) -> tuple[bytes, ...]:
        return tuple(msgspec.json.encode(name) for name in self.names)

    @classmethod
    def of(cls, *structs: type[msgspec.Struct]) -> Keys:
        """The top-level keys that some structs read of the same payload."""
        fields = [one for struct in structs for one in msgspec.structs.fields(struct)]
        required = frozenset(one.encode_name for one in fields if one.required)
        return cls(required, frozenset(one.encode_name for one in fields) - required)


def duplicate_keys(payloads: Sequence[bytes], keys: Keys) -> dict[int, str]:
    """Payloads in which a key that is read stands more than once at the top level, with the first such key.

    Parsers disagree about which of them counts (RFC 8259, section 4), so that no value of them can be trusted.
    A key of which one spelling has escapes (``"val\\u0075e"``) is not noticed: the last one counts.

    Args:
        payloads: JSON objects, each with every required key.
    """
    found: dict[int, str] = {}
    for first, chunk in _chunks(payloads):
        suspects = _suspects(chunk, keys)
        for at, payload in enumerate(chunk if suspects else ()):
            for name, quoted in suspects:
                if payload.count(quoted) > 1 and _occurs_at_top(payload, quoted) > 1:
                    found.setdefault(first + at, name)
    return found


def _suspects(chunk: Sequence[bytes], keys: Keys) -> list[tuple[str, bytes]]:
    """The keys, with and without quotes, of which some payload of a chunk may hold two. Nearly always none."""
    joined = b"\n".join(chunk)
    if _count_key_ends(joined) == len(chunk) * len(keys.required):
        return []  # nothing but the required keys, each of which every payload has
    words = _words_up_to(joined, _KEY_END)
    suspects = []
    for name, quoted in zip(keys.names, keys.quoted, strict=True):
        occurs = _count_ends(words, quoted[:-1])
        if occurs != len(chunk) if name in keys.required else occurs:
            suspects.append((name, quoted))
    return suspects


def _count_key_ends(joined: bytes) -> int:
    pairs = (len(joined) // 2, (len(joined) - 1) // 2)
    return sum(
        int(np.count_nonzero(np.frombuffer(joined, "<u2", count, offset=at) == _KEY_END_PAIR))
        for at, count in enumerate(pairs)
    )


def _words_up_to(joined: bytes, delimiter: bytes) -> npt.NDArray[np.uint64]:
    """The word before each delimiter, as one integer: comparing these is an order faster than comparing bytes."""
    text = np.frombuffer(joined, np.uint8)
    ends = np.flatnonzero((text[:-1] == delimiter[0]) & (text[1:] == delimiter[1]))
    padded = bytes(WORD) + joined
    every = np.ndarray((len(padded) - WORD + 1,), dtype="<u8", buffer=padded, strides=(1,))
    return every[ends].astype(np.uint64, copy=False)


def _count_ends(words: npt.NDArray[np.uint64], end: bytes) -> int:
    end = end[-WORD:]
    shift = np.uint64(8 * (WORD - len(end)))
    return int(np.count_nonzero(words >> shift == np.uint64(int.from_bytes(end, "little"))))


def _occurs_at_top(payload: bytes, quoted: bytes) -> int:
    """Occurrences of a key but for those inside of nested values, and of text values that read the same."""
    return payload.count(quoted) - sum(bytes(value).count(quoted) for value in _members(payload).values())


def _chunks(payloads: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
    """Runs of payloads of about ``CHUNK_BYTES``, with the number of their first."""
    if not payloads:
        return
    some = payloads[::MEASURED_EVERY]
    mean_bytes = max(1, sum(map(len, some)) // len(some))
    step = max(1, CHUNK_BYTES // mean_bytes)
    for first in range(0, len(payloads), step):
        yield first, payloads[first : first + step]
