"""Domains by number: what keys lead with. Numbers are added, never changed, never reused."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock

from sqlalchemy import Engine

from analytics_pipeline.storage.engine import Connection, connection

#: What messages of a topic that no domain claims are booked under.
UNKNOWN_DOMAIN = "unknown"


class DomainNumbers:
    """Finds the number of a domain, adding it where it is new, and remembers it.

    A new number is committed at once, on a connection of its own: two processes that meet the same new domain
    must not wait for each other's data.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, int] = {}
        self._lock = Lock()

    def number(self, domain: str) -> int:
        """The number of one domain."""
        return self.numbers([domain])[domain]

    def numbers(self, domains: Iterable[str]) -> dict[str, int]:
        """The numbers of some domains, by name."""
        names = list(dict.fromkeys(domains))
        with self._lock:
            missing = sorted(set(names) - self._known.keys())
            if missing:
                with connection(self._engine) as conn:
                    self._known |= _add(conn, missing)
                    conn.commit()
            return {name: self._known[name] for name in names}


def _add(conn: Connection, names: list[str]) -> dict[str, int]:
    with conn.cursor() as cursor:
        cursor.execute("SELECT domain, domain_id FROM domain_number WHERE domain = ANY(%s)", (names,))
        known = dict(cursor.fetchall())
        missing = [name for name in names if name not in known]
        if missing:
            cursor.execute("LOCK TABLE domain_number IN SHARE ROW EXCLUSIVE MODE")
            cursor.execute(
                "INSERT INTO domain_number (domain_id, domain) SELECT coalesce((SELECT max(domain_id) FROM "
                "domain_number), 0) + row_number() OVER (ORDER BY name), name FROM unnest(%s::text[]) name "
                "WHERE NOT EXISTS (SELECT FROM domain_number d WHERE d.domain = name)",
                (missing,),
            )
            cursor.execute("SELECT domain, domain_id FROM domain_number WHERE domain = ANY(%s)", (names,))
            known = dict(cursor.fetchall())
    return known
