"""Duplicate keys and broken text, found in joined payloads: the same result as one by one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_pipeline.assets.raw_events import payload_bytes
from analytics_pipeline.assets.raw_events.payload_bytes import Keys, duplicate_keys, not_utf8

KEYS = Keys(frozenset({"time", "value"}), frozenset({"unit"}))


@pytest.mark.parametrize(
    ("payload", "key"),
    [
        (b'{"time":1,"value":2}', None),
        (b'{"time":1,"value":2,"unit":"C"}', None),
        (b'{"time":1,"value":2,"value":3}', "value"),
        (b'{"value":2,"time":1,"value":2}', "value"),
        (b'{"time":1,"value" : 2, "value"\n: 3}', "value"),
        (b'{"time":1,"value":2,"unit":"C","unit":"F"}', "unit"),
        (b'{"time":1,"value":2,"note":"x","note":"y"}', None),  # nobody reads it
        (b'{"time":1,"value":2,"tags":{"value":3}}', None),
        (b'{"time":1,"value":2,"tags":[{"value":3},{"value":4}]}', None),
        (b'{"time":1,"value":2,"tags":{"value":3},"value":5}', "value"),
        (b'{"time":1,"value":2,"note":"value"}', None),
        (b'{"time":1,"value":2,"note":"\\"value\\":"}', None),
        (b'{"time":1,"value":2,"my_value":3,"values":4}', None),
    ],
)
def test_a_key_that_is_read_may_stand_once_at_the_top(payload: bytes, key: str | None) -> None:
    good = b'{"time":1,"value":2}'
    assert duplicate_keys([payload], KEYS) == ({} if key is None else {0: key})
    assert duplicate_keys([good, payload, good], KEYS) == ({} if key is None else {1: key})


members = st.lists(st.sampled_from(["time", "value", "unit", "note", "e"]), max_size=5)


@given(st.lists(members, max_size=30), st.sampled_from([1, 60, 256 * 1024]))
def test_joined_payloads_are_checked_as_each_alone(extras: list[list[str]], chunk_bytes: int) -> None:
    payloads = [
        ("{" + ",".join(f"{json.dumps(k)}:1" for k in ["time", "value", *more]) + "}").encode() for more in extras
    ]
    expected = {row for row, more in enumerate(extras) if {"time", "value"} & set(more) or more.count("unit") > 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload_bytes, "CHUNK_BYTES", chunk_bytes)
        assert set(duplicate_keys(payloads, KEYS)) == expected


@given(st.lists(st.binary(max_size=4), max_size=40), st.sampled_from([1, 10, 256 * 1024]))
def test_broken_text_is_found_where_it_is_and_neighbours_do_not_mend_it(
    payloads: list[bytes], chunk_bytes: int
) -> None:
    def broken(payload: bytes) -> bool:
        return payload.decode(errors="replace").encode() != payload

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload_bytes, "CHUNK_BYTES", chunk_bytes)
        assert not_utf8(payloads) == [row for row, payload in enumerate(payloads) if broken(payload)]
    assert not_utf8(["é".encode()[:1], "é".encode()[1:]]) == [0, 1]
