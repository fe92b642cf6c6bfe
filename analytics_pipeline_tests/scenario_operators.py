"""What people do in a scenario: edits, rebuilds, retention, and the commands of an operator."""

from __future__ import annotations

import random
from collections.abc import Collection
from datetime import timedelta

import pytest

from analytics_pipeline.records import DERIVED, HOUR, RAW_EVENTS
from analytics_pipeline.storage import migrate as migrations
from analytics_pipeline.storage import operator_actions, partition_state
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline.storage.retention import floor_hour
from analytics_pipeline_tests.domains.intermittent import PLACES
from analytics_pipeline_tests.fault_points import Fault, InterruptedByTestError, faulty_engine
from analytics_pipeline_tests.pipeline import MAX_ROUNDS
from analytics_pipeline_tests.scenario_messages import RETENTION_DAYS, SERIES
from analytics_pipeline_tests.scenario_stage import HOURS, START, WINDOWS, Stage

GAINS = (1.0, 1.02, -0.5)
OFFSETS = (0.0, -0.3)
LIMITS = (None, 0.15, 19.5, 20.5, 45.0)
#: Other bases, sizes that do not divide each other, with and without windows longer than an hour.
OTHER_WINDOWS = (WINDOWS, WINDOWS, [60, 3600], [60, 600], [300, 3600], [600, 900, 7200], [120, 10800])
#: What a server may do wrong, as often as it is named.
_KINDS = {"database": ("lost", "lost", "lost", "deadlock", "canceled", "interrupted"),
          "broker": ("error", "error", "silence", "partition error", "interrupted")}  # fmt: skip


class Operators(Stage):
    """The steps of people."""

    # ------------------------------------------------------------------ edits and settings

    def edit_limits(self, rng: random.Random) -> None:
        """A person edits limits: of a series, of all of a machine, or of all."""
        machine, sensor = rng.choice([*SERIES, ("m-1", None), (None, None)])
        begin = rng.choice(["-infinity", START + timedelta(minutes=rng.randrange(HOURS * 60))])
        low, high = rng.choice([(lsl, usl) for lsl in LIMITS for usl in LIMITS if (lsl or 0) < (usl or 0)])
        with connection(self.engine) as conn, conn.cursor() as cursor:
            what = rng.randrange(6)
            if what == 0:
                cursor.execute("DELETE FROM analytics_spec_limits WHERE machine_id = %s", (machine,))
            elif what == 1:
                cursor.execute("UPDATE analytics_spec_limits SET lsl = %s, usl = %s", (low, high))
            elif what == 2 and rng.random() < 0.5:
                cursor.execute("TRUNCATE analytics_spec_limits")
            else:
                cursor.execute(
                    "INSERT INTO analytics_spec_limits (machine_id, sensor_id, metric, lsl, usl, valid_from) "
                    "VALUES (%s, %s, 'temp', %s, %s, %s) ON CONFLICT DO NOTHING",
                    (machine, sensor, low, high, begin),
                )
            conn.commit()

    def calibrate(self, rng: random.Random) -> None:
        """A person calibrates a sensor, or all of a machine, corrects that, or takes it back."""
        machine, sensor = rng.choice([*SERIES, ("m-1", None)])
        begin = rng.choice(["-infinity", START + timedelta(minutes=rng.randrange(HOURS * 60))])
        gain, offset = rng.choice(GAINS), rng.choice(OFFSETS)
        with connection(self.engine) as conn, conn.cursor() as cursor:
            what = rng.randrange(4)
            if what == 0:
                cursor.execute("DELETE FROM analytics_calibration WHERE machine_id = %s", (machine,))
            elif what == 1:
                cursor.execute("UPDATE analytics_calibration SET gain = %s WHERE machine_id = %s", (gain, machine))
            else:
                cursor.execute(
                    'INSERT INTO analytics_calibration (machine_id, sensor_id, metric, gain, "offset", valid_from) '
                    "VALUES (%s, %s, 'temp', %s, %s, %s) ON CONFLICT DO NOTHING",
                    (machine, sensor, gain, offset, begin),
                )
            conn.commit()

    def change_windows(self, rng: random.Random) -> None:
        """Every process gets other window sizes, and the database is migrated: again, where that fails."""
        self.use_windows(rng.choice(OTHER_WINDOWS))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(migrations, "make_engine", lambda settings: faulty_engine(settings, self.database))
            try:
                migrations.migrate(self.env.settings)
            except (Exception, InterruptedByTestError):
                if not self.database.happened:
                    raise
                self.heal()
                migrations.migrate(self.env.settings)

    def enable_domains(self, rng: random.Random) -> None:
        """Some domains are neither drained nor computed for a while, or all of them are again."""
        names = sorted(self.registry.by_name)
        self.enable(rng.sample(names, rng.choice([1, 2, 3, len(names)])))

    def break_domain(self, rng: random.Random) -> None:
        """One domain begins to raise, or stops."""
        self.switch.places = frozenset(place for place in PLACES if rng.random() < 0.4)

    # ------------------------------------------------------------------ computing again

    def rebuild_derived(self, rng: random.Random) -> None:
        """A person materializes one asset, of all domains or of one."""
        domains = rng.choice([[], [rng.choice(sorted(self.enabled))]])
        self.run_by_hand(self.pipeline.deriver, rng.choice(DERIVED), self.some_hours(rng), *domains)

    def rebuild_raw(self, rng: random.Random) -> None:
        self.rebuild_raw_hour(rng.choice(self.kept_hours()))

    def release_gate(self, rng: random.Random) -> None:
        """A person lets a quarantined domain partition through."""
        quarantined = self.observer.query(
            "SELECT asset, hour, domain FROM partition_state JOIN domain_number USING (domain_id) "
            "WHERE status = 'quarantined' ORDER BY 1, 2, 3"
        )
        if quarantined:
            with connection(self.engine) as conn:
                operator_actions.release(conn, *rng.choice(quarantined))
                conn.commit()

    def retry_failed(self, rng: random.Random) -> None:
        """A person wants what failed tried again at once, or materializes it."""
        failed = self.observer.query(
            "SELECT asset, domain_id, hour, domain FROM partition_failure JOIN domain_number USING (domain_id) "
            "WHERE domain = ANY(%s) ORDER BY 1, 2, 3",
            sorted(self.enabled),
        )
        for asset, domain_id, hour, domain in rng.sample(failed, min(2, len(failed))):
            if rng.random() < 0.5:
                self.run_by_hand(self.pipeline.deriver, asset, [hour], domain)
                continue
            with connection(self.engine) as conn:
                partition_state.clear_failures(conn, asset, [(domain_id, hour)])
                conn.commit()

    def accept_gaps(self, rng: random.Random) -> None:
        """A person knows of some gaps."""
        with connection(self.engine) as conn:
            known = operator_actions.read_gaps(conn)
            chosen = [one.gap_id for one in known if rng.random() < 0.5]
            accepted = operator_actions.accept_gaps(conn, chosen, "somebody")
            conn.commit()
        assert accepted == chosen
        self.accepted |= set(accepted)

    # ------------------------------------------------------------------ retention

    def run_retention(self, rng: random.Random) -> None:
        """An hour or two go. Not while they have work to do: what is left of them is the history of later ones."""
        self.heal()
        self.mend_domain()
        if not self._is_settled() or self.floor > START + HOUR:
            return
        if rng.random() < 0.5:
            self.database.arm(fault(rng, "database"))
        now = self.now + HOUR * rng.randrange(1, 3)
        try:
            self._expire(now)
        finally:
            recorded = self.observer.query("SELECT max(floor_hour), count(*) FROM retention_floor")[0]
            if recorded[0] == floor_hour(now, RETENTION_DAYS):
                self.now = now

    def finish_retention(self) -> None:
        """A retention that was cut short is run again, as every night."""
        if self.floor > START:
            self._expire(self.now)

    # ------------------------------------------------------------------ mending

    def mend_domain(self) -> None:
        """The domain stops to raise, and a person rebuilds the hours that it failed in."""
        self.switch.places = frozenset()
        self.enable_all()
        failed = "SELECT DISTINCT hour FROM dead_letters WHERE stage = %s AND reason = 'domain_error' ORDER BY 1"
        for (hour,) in self.observer.query(failed, RAW_EVENTS):
            self.rebuild_raw_hour(hour)
        for (hour,) in self.observer.query(failed, "normalized_measurements"):
            self.pipeline.deriver.derive_hours("normalized_measurements", [hour], "full", "by hand")
        self.settle_all(self.env.topics.values())
        self._repeat_failed_runs()
        self.settle_all(self.env.topics.values())

    def _repeat_failed_runs(self) -> None:
        """A person's run that failed is started again by a person: nothing pending would bring it back."""
        for asset, hour, domain in sorted(self.failed_runs):
            if hour >= self.floor:
                self.pipeline.deriver.derive_hours(asset, [hour], "full", "by hand", domains=[domain])
        self.failed_runs.clear()

    def settle_all(self, domains: Collection[str]) -> None:
        """Nothing is left to do for some domains; what failed does not rest."""
        for _ in range(MAX_ROUNDS):
            with connection(self.observer.engine) as conn, conn.cursor() as cursor:
                cursor.execute("UPDATE partition_failure SET next_try_at = now()")
                conn.commit()
                todo = actionable_hours(conn, domains=sorted(domains))
            if not todo:
                return
            self.derive_pending(self.pipeline.deriver, together=False, live_from=self.now)
        raise AssertionError(f"still pending after {MAX_ROUNDS} rounds: {todo}")


def fault(rng: random.Random, where: str) -> Fault:
    """Some fault of one kind of server."""
    kind = rng.choice(_KINDS[where])
    most = rng.choice([3, 30, 100] if where == "database" else [3, 10])
    return Fault(
        kind=kind,
        after_calls=rng.randrange(most),
        moment="after" if rng.random() < 0.5 else "before",
        lasts=rng.choice([1, 1, 1, 2, 5] if kind != "canceled" else [1]),
    )
