"""Domains of other installed packages: found by their entry point, refused by name where something is wrong.

Each test installs a package into a folder of its own and asks another process, because what is discovered is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PUMPS = '''
"""Pumps, on ``plant.pumps``."""
from datetime import datetime
import msgspec
from analytics_pipeline.domains.base import Domain

class Envelope(msgspec.Struct):
    time: datetime

class Pump(msgspec.Struct):
    pump: str
    bar: float

def samples(pump):
    return (((None, None, pump.pump, None, None, "pressure", "bar"), pump.bar, 0),)

DOMAIN = Domain(
    name="NAME", topics=("TOPIC",), envelope=Envelope, event_time=lambda it: it.time, payload=Pump, samples=samples
)
'''

ASK = """
import json
from analytics_pipeline.domains import registry_for
from analytics_pipeline.errors import PipelineError
from analytics_pipeline.settings import load_settings
try:
    registry = registry_for(load_settings(_env_file=None))
    print(json.dumps([list(registry.by_name), list(registry.topics), registry.by_name["pumps"].payload.__module__]))
except PipelineError as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def install(folder: Path, package: str, source: str, target: str = "DOMAIN") -> None:
    """What pip leaves of a package that names one entry point."""
    (folder / f"{package}.py").write_text(source)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[analytics_pipeline.domains]\nown = {package}:{target}\n")
    (info / "RECORD").write_text(f"{package}.py,,\n{info.name}/METADATA,,\n{info.name}/entry_points.txt,,\n")


def ask(folder: Path) -> list[list[str]] | str:
    """The names and topics of the domains that a process with these packages has; or what it says is wrong."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    environment = kept | {"PYTHONPATH": path}
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, check=True)
    answer: list[list[str]] | str = json.loads(done.stdout)
    return answer


def pumps(name: str = "pumps", topic: str = "plant.pumps") -> str:
    return PUMPS.replace("NAME", name).replace("TOPIC", topic)


def test_a_domain_of_another_installed_package_is_found_beside_the_others(tmp_path: Path) -> None:
    install(tmp_path, "plant_pumps", pumps())
    names, topics, module = ask(tmp_path)
    assert {"pumps", "sensor", "lab"} <= set(names)
    assert {"plant.pumps", "lab.results"} <= set(topics)
    assert module == "plant_pumps"


def test_a_topic_or_a_name_that_two_packages_claim_is_an_error_that_names_both(tmp_path: Path) -> None:
    install(tmp_path, "plant_pumps", pumps(topic="lab.results"))
    said = ask(tmp_path)
    assert "DomainCollisionError" in said
    assert "'lab' (analytics_pipeline.domains.lab)" in said
    assert "'pumps' (plant_pumps)" in said
    assert "topic 'lab.results'" in said


def test_a_name_that_is_taken_is_an_error_that_names_both(tmp_path: Path) -> None:
    install(tmp_path, "plant_pumps", pumps(name="lab"))
    said = ask(tmp_path)
    assert "'lab' (analytics_pipeline.domains.lab) and 'lab' (plant_pumps) both claim the name 'lab'" in said


def test_an_entry_point_that_cannot_be_loaded_or_is_no_domain_names_its_package(tmp_path: Path) -> None:
    install(tmp_path, "broken_one", "raise RuntimeError('no pumps today')")
    said = ask(tmp_path)
    assert "DomainPackageError: entry point 'own' of broken_one (broken_one:DOMAIN) cannot be loaded" in said
    assert "no pumps today" in said
    (tmp_path / "broken_one.py").write_text("DOMAIN = 'pumps'")
    assert "is a str, not a Domain" in ask(tmp_path)
