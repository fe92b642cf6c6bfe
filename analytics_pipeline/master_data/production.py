"""Master data about factories and machines: places, shifts, products, states, stops, targets. Pure."""

from __future__ import annotations

from analytics_pipeline.master_data.spec import (
    BEGINS_AT,
    BEGINS_BEFORE_ENDS,
    ENDS_AT,
    FACTORY,
    FACTORY_NAMES,
    MACHINE,
    MACHINE_NAMES,
    NOTE,
    ONE_FACTORY,
    ONE_MACHINE,
    TENANT,
    VALID_FROM,
    Check,
    MasterColumn,
    MasterTable,
    is_above_zero,
)

_PRODUCT = MasterColumn("product_id", "text", "", "product; empty: any", nullable=True)
#: The time elements of ISO 22400-2 that a state stands for. A failure is an unplanned stop.
STATE_CLASSES = ("production", "setup", "delay", "stop", "failure", "off")

FACTORIES = MasterTable(
    name="factories",
    description="In which zone a factory's wall times are, and when its day begins. Without a row: UTC, midnight.",
    columns=(
        TENANT,
        ONE_FACTORY,
        MasterColumn("zone", "zone", "", "name of a zone in the IANA database, such as Europe/Berlin"),
        MasterColumn("day_start", "wall time", "", "when a day of its figures begins", default="00:00"),
        VALID_FROM,
        NOTE,
    ),
    target=FACTORY_NAMES,
    holds="from",
    scope=FACTORY_NAMES,
    stale=("kpis",),
)

EQUIPMENT = MasterTable(
    name="equipment",
    description="A machine or a line, and the line that it stands in.",
    columns=(
        TENANT,
        ONE_FACTORY,
        MasterColumn("equipment_id", "text", "", "name: of a machine, as its messages say it"),
        MasterColumn("kind", "text", "", "what it is", choices=("machine", "line")),
        MasterColumn("parent_id", "text", "", "the line that it is in; empty: the factory itself", nullable=True),
        MasterColumn(
            "role", "text", "", "of a machine in its line: whether the line's pieces (counting) or its times "
            "(bottleneck) are this one's", default="plain", choices=("counting", "bottleneck", "both", "plain"),
        ),
        MasterColumn("machine_type", "text", "", "by which its states are classified", nullable=True),
        VALID_FROM,
        NOTE,
    ),
    target=(*FACTORY_NAMES, "equipment_id"),
    holds="from",
    scope=FACTORY_NAMES,
    stale=("kpis",),
    checks=(
        Check("another name than equipment_id", "parent_id", lambda row: row["parent_id"] != row["equipment_id"]),
        Check("plain, for a line", "role", lambda row: row["kind"] == "machine" or row["role"] == "plain"),
        Check("no value, for a line", "machine_type", lambda row: row["kind"] == "machine" or not row["machine_type"]),
        Check(
            "plain, for a machine in no line",
            "role",
            lambda row: row["parent_id"] is not None or row["role"] == "plain",
        ),
    ),
)

SHIFTS = MasterTable(
    name="shifts",
    description="A shift of the normal week, in the factory's wall times.",
    columns=(
        TENANT,
        ONE_FACTORY,
        MasterColumn("shift", "text", "", "name of the shift"),
        MasterColumn(
            "weekdays", "text", "", "days on which it begins, 1 Monday to 7 Sunday, such as 12345; none: not any more"
        ),
        MasterColumn("begins", "wall time", "", "begin"),
        MasterColumn("ends", "wall time", "", "end, exclusive; at or before the begin: on the next day"),
        VALID_FROM,
        NOTE,
    ),
    target=(*FACTORY_NAMES, "shift"),
    holds="from",
    scope=FACTORY_NAMES,
    stale=("kpis",),
    checks=(
        Check(
            "days from 1 to 7 in their order, such as 12345, or none",
            "weekdays",
            lambda row: row["weekdays"] == "none" or _are_days(row["weekdays"]),
        ),
    ),
)

SHIFT_EXCEPTIONS = MasterTable(
    name="shift_exceptions",
    description="A day on which a shift differs from the week: other times, an extra shift, or, without times, none.",
    columns=(
        TENANT,
        ONE_FACTORY,
        MasterColumn("shift", "text", "", "name of the shift"),
        MasterColumn("on_date", "date", "", "day on which it begins, or would"),
        MasterColumn("begins", "wall time", "", "begin; empty: there is no such shift that day", nullable=True),
        MasterColumn("ends", "wall time", "", "end, as of shifts", nullable=True),
        NOTE,
    ),
    target=(*FACTORY_NAMES, "shift", "on_date"),
    holds="date",
    scope=FACTORY_NAMES,
    stale=("kpis",),
    checks=(
        Check(
            "a time if begins has one, and else none",
            "ends",
            lambda row: (row["begins"] is None) == (row["ends"] is None),
        ),
    ),
)

PLANNED_STOPS = MasterTable(
    name="planned_stops",
    description="When machines were not meant to run: it is no planned busy time.",
    columns=(
        TENANT,
        FACTORY,
        MACHINE,
        BEGINS_AT,
        ENDS_AT,
        MasterColumn("reason", "text", "", "such as maintenance", nullable=True, is_remark=True),
        NOTE,
    ),
    target=(*MACHINE_NAMES, "begins_at"),
    holds="between",
    scope=MACHINE_NAMES,
    stale=("kpis",),
    checks=(
        BEGINS_BEFORE_ENDS,
        Check(
            "a factory, unless machine_id names a machine",
            "factory_id",
            lambda row: row["factory_id"] is not None or row["machine_id"] is not None,
        ),
    ),
)

PRODUCTS = MasterTable(
    name="products",
    description="A product by name.",
    columns=(
        MasterColumn("product_id", "text", "", "as messages and orders call it"),
        MasterColumn("name", "text", "", "as people call it", nullable=True, is_remark=True),
        NOTE,
    ),
    target=("product_id",),
    holds="always",
)

PLANNED_TIME = MasterTable(
    name="planned_time",
    description="Planned time per piece (PRI) of a product on a machine.",
    columns=(
        TENANT,
        FACTORY,
        MACHINE,
        _PRODUCT,
        MasterColumn("pri_s", "number", "s", "seconds that one piece should take"),
        VALID_FROM,
        NOTE,
    ),
    target=(*MACHINE_NAMES, "product_id"),
    holds="from",
    scope=MACHINE_NAMES,
    stale=("kpis",),
    checks=(is_above_zero("pri_s"),),
)

MACHINE_RUN = MasterTable(
    name="machine_run",
    description="What a machine runs from a time on, where its messages do not say.",
    columns=(
        TENANT,
        FACTORY,
        ONE_MACHINE,
        MasterColumn("product_id", "text", "", "product; empty: none", nullable=True),
        MasterColumn("order_id", "text", "", "order; empty: none", nullable=True),
        MasterColumn("valid_from", "moment", "", "from when on it runs this, until the next row of the machine"),
        NOTE,
    ),
    target=MACHINE_NAMES,
    holds="from",
    scope=MACHINE_NAMES,
    stale=("kpis",),
)

STATE_CLASSES_TABLE = MasterTable(
    name="state_classes",
    description="What a state that machines send means for their time elements.",
    columns=(
        MasterColumn("machine_type", "text", "", "type of machine, as equipment says; empty: any", nullable=True),
        MasterColumn("state", "text", "", "state as sent"),
        MasterColumn("state_class", "text", "", "what it counts as", choices=STATE_CLASSES),
        VALID_FROM,
        NOTE,
    ),
    target=("machine_type", "state"),
    holds="from",
    scope=("machine_type",),
    stale=("kpis",),
)

STOP_REASONS = MasterTable(
    name="stop_reasons",
    description="A reason for which machines stand still.",
    columns=(
        MasterColumn("reason", "text", "", "short name, as assignments use it"),
        MasterColumn("description", "text", "", "what it means", nullable=True, is_remark=True),
        NOTE,
    ),
    target=("reason",),
    holds="always",
)

STOP_ASSIGNMENTS = MasterTable(
    name="stop_assignments",
    description="Why a machine stood still, said afterwards. Several rows that divide its time split a stop.",
    columns=(
        TENANT,
        FACTORY,
        ONE_MACHINE,
        BEGINS_AT,
        ENDS_AT,
        MasterColumn("reason", "text", "", "one of stop_reasons"),
        MasterColumn("assigned_by", "text", "", "who said so; empty: who imports", is_remark=True, is_filled_in=True),
        MasterColumn("assigned_at", "moment", "", "when; empty: now", is_remark=True, is_filled_in=True),
        NOTE,
    ),
    target=(*MACHINE_NAMES, "begins_at"),
    holds="between",
    scope=MACHINE_NAMES,
    stale=("kpis",),
    checks=(BEGINS_BEFORE_ENDS,),
)

TARGETS = MasterTable(
    name="targets",
    description="What a KPI of a machine should be.",
    columns=(
        TENANT,
        FACTORY,
        MACHINE,
        MasterColumn("kpi", "text", "", "name of the KPI"),
        MasterColumn("target", "number", "unit of the KPI", "what is wanted"),
        MasterColumn(
            "direction", "text", "", "on which side it is met", default="at_least", choices=("at_least", "at_most")
        ),
        VALID_FROM,
        NOTE,
    ),
    target=(*MACHINE_NAMES, "kpi"),
    holds="from",
    scope=MACHINE_NAMES,
    stale=("kpis",),
)


def _are_days(text: str) -> bool:
    return bool(text) and set(text) <= set("1234567") and list(text) == sorted(set(text))


TABLES = (
    FACTORIES,
    EQUIPMENT,
    SHIFTS,
    SHIFT_EXCEPTIONS,
    PLANNED_STOPS,
    PRODUCTS,
    PLANNED_TIME,
    MACHINE_RUN,
    STATE_CLASSES_TABLE,
    STOP_REASONS,
    STOP_ASSIGNMENTS,
    TARGETS,
)
