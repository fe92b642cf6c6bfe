"""Payloads of every domain of the product: good ones at any time, and bad ones with the reason that they get.

For suites over all domains: a domain that has no factory here fails `factory_of`, by name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Fields = dict[str, Any]
Made = Callable[[random.Random, str], Fields]

#: What no domain can read, whatever it is about.
UNREADABLE: Sequence[bytes] = (b"", b"{", b"[1, 2]", b"null", b"\xff", b"{}")


@dataclass(frozen=True)
class PayloadFactory:
    """Payloads of one domain.

    Attributes:
        make: a good payload, from a source of randomness and the text of a time. Few names and values, so that
            identities meet.
        bad: changes of a good payload that make all of it a dead letter, by the reason of that; None drops a field.
        time_field: where its event time is.
    """

    make: Made
    bad: Mapping[str, Fields]
    time_field: str = "time"

    def good(self, rng: random.Random, moment: datetime) -> bytes:
        """A payload of that moment."""
        return json.dumps(self.make(rng, moment.isoformat())).encode()

    def broken(self, rng: random.Random, moment: datetime) -> dict[str, bytes]:
        """A payload per reason, each a dead letter."""
        good = self.make(rng, moment.isoformat())
        return {reason: _changed(good, changes) for reason, changes in self.bad.items()}


def _changed(payload: Fields, changes: Fields) -> bytes:
    merged = payload | changes
    return json.dumps({name: value for name, value in merged.items() if value is not None}).encode()


def _owner(rng: random.Random) -> Fields:
    return rng.choice([{"tenant_id": "t1", "factory_id": "f1"}, {"tenant_id": "t2"}, {}])


def _machine(rng: random.Random) -> str:
    return f"m-{rng.randrange(2)}"


def _value(rng: random.Random) -> float:
    return rng.choice([round(rng.gauss(20, 3), 2), 0.0, -1.5, 20])


def _sensor(rng: random.Random, time: str) -> Fields:
    names = {"tenant_id": "t1", "factory_id": "f1", "machine_id": _machine(rng), "sensor_id": "s-1", "metric": "temp"}
    return {"time": time, **names, "value": _value(rng)}


def _device(rng: random.Random, time: str) -> Fields:
    said: list[Fields] = [
        {"status": rng.choice(["online", "offline"]), "level": "ok"},
        {"level": rng.choice(["ok", "warning"])},
        {"health_score": round(rng.random(), 3)},
        {"status": "online", "health_score": 0.5},
    ]
    return {"time": time, **_owner(rng), "machine_id": _machine(rng), **rng.choice(said)}


def _sweep(rng: random.Random, time: str) -> Fields:
    readings: list[Any] = [{"value": _value(rng)} for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.4:
        moment = datetime.fromisoformat(time)
        for place, reading in enumerate(readings):
            reading["time"] = moment.replace(second=(moment.second + place) % 60).isoformat()
    return {"time": time, **_owner(rng), "machine_id": _machine(rng), "metric": "temp", "readings": readings}


def _lab(rng: random.Random, time: str) -> Fields:
    value = rng.choice([_value(rng), "<0.05", ">100", "12.4"])
    replicate = rng.choice([{}, {"replicate": 1}, {"replicate": "2"}])
    sample = {"station_id": "lab-01", "sample_id": f"S-{rng.randrange(3)}", **replicate}
    return {"time": time, **_owner(rng), **sample, "analyte": "Moisture", "value": value, "unit": "%"}


def _brick(rng: random.Random, time: str) -> Fields:
    shown = {"count": rng.randrange(10_000), "errors": rng.randrange(100), "speed": 1000.0 + rng.randrange(50)}
    running = {"status": rng.choice(["running", "setup", "stopped"]), "product_id": f"p-{rng.randrange(2)}"}
    return {"time": time, **_owner(rng), "device_id": _machine(rng), **shown, **running}


def _moisture(rng: random.Random, time: str) -> Fields:
    batch = {"batch_id": f"B-{rng.randrange(3)}", "temperature": 60.0 + rng.randrange(3)}
    return {"time": time, **_owner(rng), "device_id": _machine(rng), "moisture": _value(rng), **batch}


def _monitoring(rng: random.Random, time: str) -> Fields:
    seen: list[Fields] = [
        {"state": rng.choice(["production", "stop"])},
        {"vibration": 2.5, "temperature": _value(rng)},
        {"current": 18.0, "state": "setup", "order_id": "o-1"},
    ]
    return {"time": time, **_owner(rng), "machine_id": _machine(rng), **rng.choice(seen)}


def _iot(rng: random.Random, time: str) -> Fields:
    moment = datetime.fromisoformat(time)
    stamp = rng.choice([time, moment.timestamp(), round(moment.timestamp() * 1000), str(int(moment.timestamp()))])
    plain = {"device_id": "gw-1", "connector_mode": "modbus", "component_type": "temp", "pin_position": 4, "topic": "a"}
    alias = {"mac_address": "gw-2", "mode": "gpio", "data_point_label": "temp", "pin": "4", "original_topic": "b"}
    names = rng.choice([plain, alias, {"mac_address": "gw-3"}])
    return {"timestamp": stamp, **names, "value": rng.choice([_value(rng), "23.7", True]), "unit": rng.choice("CK")}


def _product(rng: random.Random, time: str) -> Fields:
    kinds = ["ProductCreated", "ProductUpdated", "ProductDeleted", "LowStockWarning", "ProductPainted"]
    data = {"productId": f"p-{rng.randrange(3)}", "stock": rng.randrange(9), "tags": ["a", {"ü": None}]}
    return {"eventId": f"e-{rng.randrange(20)}", "eventType": rng.choice(kinds), "timestamp": time, "data": data}


def _app(rng: random.Random, time: str) -> Fields:
    named = {"app_id": "openstream", "event_name": rng.choice(["video_heartbeat", "search"]), "user_id": "u-1"}
    return {**named, "timestamp": time, "properties": {"watch_time": rng.randrange(3), "deep": {"b": 1, "a": []}}}


def _plain_event(rng: random.Random, time: str) -> Fields:
    named = {"entity_id": f"x-{rng.randrange(2)}", "event_type": rng.choice(["began", "ended"])}
    return {"time": time, **_owner(rng), **named, "value": rng.choice([1, 2.5]), "properties": {"note": "ü"}}


_PLAIN_EVENTS = PayloadFactory(
    _plain_event, {"field_missing": {"entity_id": None}, "other_domain": {"domain": "another"}}
)

FACTORIES: Mapping[str, PayloadFactory] = {
    "sensor": PayloadFactory(_sensor, {"field_missing": {"metric": None}, "field_invalid": {"value": "warm"}}),
    "device": PayloadFactory(
        _device,
        {
            "no_health": {"status": None, "level": None, "health_score": None},
            "field_missing": {"machine_id": None},
            "field_invalid": {"health_score": "good"},
        },
    ),
    "sweep": PayloadFactory(
        _sweep, {"no_readings": {"readings": []}, "field_missing": {"readings": None}, "field_invalid": {"readings": 3}}
    ),
    "lab": PayloadFactory(
        _lab,
        {
            "value_not_a_number": {"value": "traces"},
            "name_empty": {"sample_id": ""},
            "field_invalid": {"value": []},
        },
    ),
    "brick": PayloadFactory(_brick, {"field_missing": {"count": None}, "field_invalid": {"count": -1}}),
    "moisture": PayloadFactory(_moisture, {"field_missing": {"moisture": None}, "field_invalid": {"moisture": "dry"}}),
    "machine": PayloadFactory(
        _monitoring,
        {
            "nothing_measured": dict.fromkeys(("state", "vibration", "temperature", "current", "order_id")),
            "field_invalid": {"vibration": [1]},
        },
    ),
    "iot": PayloadFactory(
        _iot,
        {
            "field_missing": {"mac_address": None, "device_id": None},
            "field_invalid": {"timestamp": "yesterday"},
            "nul_character": {"unit": "C\0"},
        },
        time_field="timestamp",
    ),
    "product": PayloadFactory(
        _product, {"field_missing": {"eventType": None}, "field_invalid": {"data": []}}, time_field="timestamp"
    ),
    "app": PayloadFactory(
        _app, {"field_missing": {"user_id": None}, "field_invalid": {"properties": "none"}}, time_field="timestamp"
    ),
    "ops": _PLAIN_EVENTS,
    "econ": _PLAIN_EVENTS,
    "vet": _PLAIN_EVENTS,
}


def factory_of(name: str) -> PayloadFactory:
    """The factory of one domain."""
    assert name in FACTORIES, f"domain {name!r} has no payloads in {__name__}: add a factory"
    return FACTORIES[name]
