"""Every domain, and payloads of it: of a domain of the product from its factory in ``domains/payloads.py``, of one of
the tests made of the payload that its docstring shows, or by a function in `OWN`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import random
import re
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from types import ModuleType
from typing import Any, cast

import msgspec

from analytics_pipeline.domains import Domain, discover
from analytics_pipeline_tests import domains as of_the_tests
from analytics_pipeline_tests.domains.payloads import FACTORIES, UNREADABLE

#: Of a text that is no time: how often a payload keeps what the docstring shows.
_KEPT = 0.7


@lru_cache(maxsize=1)
def _found() -> dict[str, tuple[Domain, ModuleType]]:
    found = {domain.name: (domain, sys.modules[domain.payload.__module__]) for domain in discover()}
    for info in pkgutil.iter_modules(of_the_tests.__path__, f"{of_the_tests.__name__}."):
        module = importlib.import_module(info.name)
        for domain in vars(module).values():
            if isinstance(domain, Domain):
                found.setdefault(domain.name, (domain, module))
    return found


def every_domain() -> list[Domain]:
    """The domains of the product and those of the tests, by name."""
    return [domain for _, (domain, _) in sorted(_found().items())]


def example(domain: Domain) -> dict[str, Any]:
    """The payload that a docstring shows after ``::``: that of the domain's file, or of its payload's."""
    for module in (_found()[domain.name][1], sys.modules[domain.payload.__module__]):
        shown = re.search(r"::\n\n((?: {4}.*\n)+)", module.__doc__ or "")
        if shown:
            return cast(dict[str, Any], json.loads(shown[1]))
    raise AssertionError(f"{domain.payload.__module__}: its docstring shows no payload")


def payload(domain: Domain, time: datetime, rng: random.Random) -> bytes:
    """A good payload at a time: texts and numbers are those of the docstring, or others like them."""
    if domain.name in FACTORIES:
        return FACTORIES[domain.name].good(rng, time)
    own = OWN.get(domain.name)
    return json.dumps(own(time, rng) if own else _varied(example(domain), time.isoformat(), rng)).encode()


def _trace(time: datetime, rng: random.Random) -> Any:
    times = [(time + timedelta(seconds=61 * step)).isoformat() for step in range(rng.randrange(1, 4))]
    return {"shared": {"sensor_id": f"s-{rng.randrange(3)}"}, "samples": [[one, rng.random()] for one in times]}


def _rated(time: datetime, rng: random.Random) -> Any:
    quality = rng.choice(["good", "uncertain", "bad"])
    said = {"value": rng.choice([1.5, "2.5", "<0.05", None, "n/a"]), "quality": quality}
    return {"time": time.isoformat(), "station": f"st-{rng.randrange(2)}", "metric": "lead", **said}


#: Domains whose payloads are made otherwise: from a time, the JSON of a good payload.
OWN: dict[str, Callable[[datetime, random.Random], Any]] = {"traces": _trace, "rated": _rated}


def at(domain: Domain, time: str) -> bytes:
    """The documented payload at another time."""
    return json.dumps(_with_time(example(domain), time)).encode()


def broken(domain: Domain, time: datetime) -> list[bytes]:
    """Payloads that cannot be read: no JSON, no time, and a field of another type, or what the factory names."""
    if domain.name in FACTORIES:
        return [*UNREADABLE, *FACTORIES[domain.name].broken(random.Random(domain.name), time).values()]
    whole = _with_time(example(domain), time.isoformat())
    found = [b"{no json", b'{"what": "no event time"}']
    envelope = {one.encode_name for one in msgspec.structs.fields(domain.envelope)}
    fields = {one.encode_name for one in msgspec.structs.fields(domain.payload)} - envelope
    if domain.split is None:
        found.append(json.dumps(whole | {min(fields & whole.keys()): [[]]}).encode())
    return found


def _varied(value: Any, time: str, rng: random.Random) -> Any:
    if isinstance(value, dict):
        return {name: _varied(one, time, rng) for name, one in value.items()}
    if isinstance(value, list):
        return [_varied(one, time, rng) for one in value]
    if isinstance(value, str):
        return time if _is_time(value) else value if rng.random() < _KEPT else f"{value}-{rng.randrange(2)}"
    if isinstance(value, bool) or value is None:
        return value
    return value + (rng.randrange(100) if isinstance(value, int) else rng.random())


def _with_time(value: Any, time: str) -> Any:
    if isinstance(value, dict):
        return {name: _with_time(one, time) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_time(one, time) for one in value]
    return time if isinstance(value, str) and _is_time(value) else value


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
