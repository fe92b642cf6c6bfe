"""Ends the processes of a supervisor that died without ending them (kill -9, out of memory).

Runs as its own small process with the standard library alone. Its standard input is a pipe that only the
supervisor writes: a line ``+ pid signal grace_s tier`` for a process started, ``- pid`` for one that ended.
When the pipe closes, whoever is still listed is asked to stop, highest tier first, then killed with its
group.
"""

import contextlib
import os
import signal
import sys
import time

POLL_S = 0.05


def main() -> None:
    """Read the list until the supervisor is gone, then end what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it leaves when its supervisor has, not before
    listed: dict[int, tuple[int, float, int]] = {}
    for line in sys.stdin:
        words = line.split()
        if words[0] == "+":
            listed[int(words[1])] = (int(words[2]), float(words[3]), int(words[4]))
        else:
            listed.pop(int(words[1]), None)
    for tier in sorted({entry[2] for entry in listed.values()}, reverse=True):
        end_tier({pid: entry[:2] for pid, entry in listed.items() if entry[2] == tier})


def end_tier(leaders: dict[int, tuple[int, float]]) -> None:
    """Ask each group leader to stop, wait at most the longest grace, then kill what is left of the groups."""
    for pid, (number, _) in leaders.items():
        if group_alive(pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
    deadline = time.monotonic() + max(grace for _, grace in leaders.values())
    while time.monotonic() < deadline and any(leader_alive(pid) for pid in leaders):
        time.sleep(POLL_S)
    for pid in leaders:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def leader_alive(pid: int) -> bool:
    """Whether the leader itself runs; a zombie that nobody reaped does not."""
    state, group = _state_and_group(pid)
    return state not in ("", "Z", "X") and group == pid


def group_alive(group: int) -> bool:
    """Whether the process group still exists."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _state_and_group(pid: int) -> tuple[str, int]:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[2])


if __name__ == "__main__":
    main()
