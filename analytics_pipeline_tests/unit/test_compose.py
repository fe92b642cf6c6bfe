"""docker-compose.yml and the Dockerfile, as far as they can be tried without an engine. No image is built here."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from analytics_pipeline.settings import known_variables, load_settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
JOBS = ("migrate",)

#: Variables that are not settings of the pipeline.
NOT_SETTINGS = {
    "DAGSTER_EVENT_BATCH_SIZE": "read by Dagster",
    "QUEUE": "read by the worker's own command and health check",
}
#: Programs that are in the image by apt or by its base.
OF_THE_SYSTEM = ("sh", "python")


def interpolated(text: str, environment: dict[str, str] | None = None) -> str:
    """As Docker Compose reads it with only passwords set: ``${NAME:-default}``, ``${NAME:?error}`` and ``$$``."""
    text = re.sub(r"\$\{[A-Z_]+:\?[^}]*\}", "secret", str(text))
    text = re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text).replace("$$", "$")
    for name, value in (environment or {}).items():
        text = text.replace(f"${name}", value)
    return text


def environment_of(name: str) -> dict[str, str]:
    return {key: interpolated(value) for key, value in SERVICES[name]["environment"].items()}


def commands_of(name: str) -> list[list[str]]:
    """The commands that a service runs, health check included; shell lines taken apart at ``&&``."""
    service, found = SERVICES[name], [SERVICES[name]["command"]]
    check = service.get("healthcheck", {})
    if "test" in check:
        found.append(check["test"][1:] if check["test"][0] == "CMD" else ["sh", "-c", check["test"][1]])
    commands = []
    for argv in found:
        if argv[:2] == ["sh", "-c"]:
            lines = interpolated(argv[2], environment_of(name)).split("&&")
            commands += [shlex.split(line.strip().removeprefix("exec ")) for line in lines]
        else:
            commands.append([interpolated(word) for word in argv])
    return commands


OUR_COMMANDS = sorted({tuple(argv) for name in OURS for argv in commands_of(name)})


@cache
def help_of(program: str, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).parent / program
    return subprocess.run(
        [str(path), *words, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "300", "TERM": "dumb"},
    )


def sub_command(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The words before the first option, celery's -A with its value among them."""
    words: list[str] = []
    rest = list(argv[1:])
    while rest and (not rest[0].startswith("-") or rest[0] in ("-A", "-b")):
        words += [rest.pop(0), rest.pop(0)] if rest[0] in ("-A", "-b") else [rest.pop(0)]
    return tuple(words)


@pytest.mark.parametrize("argv", OUR_COMMANDS, ids=" ".join)
def test_every_command_starts_and_takes_its_options(argv: tuple[str, ...]) -> None:
    if argv[0] in OF_THE_SYSTEM:
        if argv[1] == "-m":
            assert importlib.util.find_spec(argv[2]), argv
        else:
            assert argv[:2] == ("python", "-c")
            compile(argv[2], "health check", "exec")
        return
    words = sub_command(argv)
    answer = help_of(argv[0], words)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for option in (word.split("=")[0] for word in argv[1 + len(words) :] if re.match(r"--?[a-zA-Z]", word)):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", answer.stdout), f"{option} of {argv}"


def test_the_modules_that_commands_load_exist() -> None:
    joined = "\n".join(" ".join(argv) for argv in OUR_COMMANDS)
    modules = re.findall(r"(?:-A |--module-name=)(\S+)", joined)
    assert sorted(set(modules)) == [
        "analytics_pipeline.definitions",
        "analytics_pipeline.orchestration.celery_app",
    ]
    for module in modules:
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_or_is_explained(name: str) -> None:
    assert set(SERVICES[name]["environment"]) <= known_variables() | set(NOT_SETTINGS)


@pytest.mark.parametrize("name", OURS)
def test_the_settings_take_every_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in known_variables():
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment_of(name).items():
        monkeypatch.setenv(variable, value)
    settings = load_settings(_env_file=None)
    assert (settings.db_host, settings.kafka_brokers) == ("timescaledb", "kafka:19092")
    assert settings.kafka_topics == []


def test_dagster_yaml_finds_every_variable_that_it_names() -> None:
    named = re.findall(r"env:\s*(\w+)", (ROOT / "dagster.yaml").read_text("utf-8"))
    assert named
    for name in OURS:
        assert set(named) <= set(SERVICES[name]["environment"]), name


def test_workers_serve_the_queues_that_runs_are_sent_to() -> None:
    from analytics_pipeline.orchestration.tags import BACKFILL_QUEUE, LIVE_QUEUE

    queues = {service["environment"].get("QUEUE") for service in SERVICES.values() if "build" in service}
    assert queues - {None} == {LIVE_QUEUE, BACKFILL_QUEUE}


def test_images_of_others_are_pinned_to_a_version() -> None:
    for name, service in SERVICES.items():
        if name not in OURS:
            assert re.search(r":\d+\.\d+\.\d+", service["image"]), service["image"]
    for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        assert re.search(r":\d+\.\d+\.\d+-slim", base), base


def test_every_service_restarts_and_says_whether_it_is_healthy() -> None:
    for name, service in SERVICES.items():
        if name in JOBS:
            assert service["restart"].startswith("on-failure")
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"].keys() & {"test", "disable"}, name


def test_no_password_has_a_default_that_works_silently() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    uses = re.findall(r"\$\{\w*PASSWORD[^}]*\}", text)
    assert len(uses) >= 3
    for use in uses:
        assert re.fullmatch(r"\$\{[A-Z_]+:\?.+\}", use), use
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            assert "PASSWORD" not in variable or str(value).startswith("${"), (name, variable)


def test_every_service_of_ours_gets_the_limits_that_people_change() -> None:
    for name in OURS:
        assert {"BACKPRESSURE_PENDING", "BACKFILL_MAX_RUNS"} <= set(SERVICES[name]["environment"]), name


def test_everything_that_is_referred_to_is_there() -> None:
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        assert {one["source"] for one in service.get("configs", [])} <= set(COMPOSE["configs"]), name
        assert {one.split(":")[0] for one in service.get("volumes", [])} <= set(COMPOSE["volumes"]), name
    for needed, condition in (
        (needed, condition["condition"])
        for service in SERVICES.values()
        for needed, condition in service.get("depends_on", {}).items()
    ):
        wanted = "service_completed_successfully" if needed in JOBS else "service_healthy"
        assert condition == wanted, needed


def test_ports_are_published_to_this_machine_alone() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)


def test_the_workspace_names_the_code_service_and_its_port() -> None:
    workspace = yaml.safe_load(COMPOSE["configs"]["workspace"]["content"])
    server = workspace["load_from"][0]["grpc_server"]
    assert server["host"] in OURS
    assert f"--port={server['port']}" in SERVICES[server["host"]]["command"]
    assert f"--location-name={server['location_name']}" in SERVICES[server["host"]]["command"]


def copied_from_context() -> list[str]:
    sources: list[str] = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        sources += line.split()[:-1]
    return sources


def test_the_dockerfile_copies_only_what_exists_and_what_the_engine_is_given() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    given = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    assert sorted(copied_from_context()) == sorted(given)
    for source in copied_from_context():
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in given), source


def test_the_image_does_not_run_as_root_and_checks_what_it_installs() -> None:
    last_stage = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    users = re.findall(r"^USER (\S+)", last_stage, re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0")
    assert "pip install --require-hashes" in DOCKERFILE
