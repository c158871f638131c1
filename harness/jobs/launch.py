"""Starts processes that train one model, or draw from it, on this machine, and passes on what they report.

They are started by torch's elastic launcher.

They meet on a free port of the loopback address. One that dies ends the others, and all are started again once, from the
last checkpoint; whoever called `launch` and is killed takes them all along.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.jobs.memory import oom_kills, why_killed
from harness.jobs.pool import die_with_parent

#: What a line of a report begins with; all else that is printed goes to the log.
_MARK = "@report "
_LAUNCHER = "HARNESS_LAUNCHER"
_RESTARTS = 1


class RanksEnded(RuntimeError):
    """A process of the group ended, and did so again after a restart; with the end of what the first one printed."""


def launch(
    module: str, argument: str, processes: int, report: Callable[[dict[str, Any]], None], log: Path, threads: int = 1
) -> None:
    """Run `python -m module argument` as `processes` ranks until all are done; `report` is given what they `say`.

    What they print is in `log`, which is removed if all goes well. Raises `RanksEnded`, or what `report` raises, when no
    rank is alive any more.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as scratch:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as errors:
            before = oom_kills()
            code = _run(_command(module, argument, processes, scratch), _environment(threads), report, errors)
    if code:
        reason = _reason(log.read_text(encoding="utf-8", errors="replace").splitlines())
        why = f"also after a restart{why_killed(before)}"
        raise RanksEnded(f"{reason}one of {processes} processes that work together ended, {why}; log: {log}")
    log.unlink(missing_ok=True)


def _reason(lines: list[str]) -> str:
    """The lines before the launcher's own in a log: what the first process to fail had to say, at most 20 of them."""
    own = next((i for i, line in enumerate(lines) if "torch/distributed/elastic" in line), len(lines))
    return "".join(f"{line}\n" for line in lines[max(0, own - 20) : own])


def say(message: dict[str, Any]) -> None:
    """Report to whoever launched this process; the message is a short one.

    All ranks share one pipe, whose single writes of up to 4096 bytes are not torn apart; `print` writes a line in two where
    Python is unbuffered, as the launcher has it. What another rank has begun is ended by the line feed in front.
    """
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), f"\n{_MARK}{json.dumps(message)}\n".encode())


def attend() -> None:
    """End with the launcher; to be called first by every rank. Under another launcher nothing is done."""
    if _LAUNCHER in os.environ:
        die_with_parent(int(os.environ[_LAUNCHER]))


def _command(module: str, argument: str, processes: int, scratch: str) -> list[str]:
    return [
        sys.executable, "-m", "harness.jobs.launch", str(os.getpid()),
        "--nnodes=1", f"--nproc-per-node={processes}", f"--max-restarts={_RESTARTS}", "--monitor-interval=0.2",
        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", f"--log-dir={scratch}",
        "-m", module, argument,
    ]  # fmt: skip


def python_path() -> str:
    """A `PYTHONPATH` with which another process imports what this one does, wherever this one was started."""
    return os.pathsep.join(os.path.abspath(path) for path in sys.path)


def _environment(threads: int) -> dict[str, str]:
    env = dict(os.environ)
    env["PYTHONPATH"] = python_path()
    env.setdefault("OMP_NUM_THREADS", str(threads))
    if sys.platform == "linux":
        # All are on this machine, whose own name need not resolve.
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return env


def _run(command: list[str], env: dict[str, str], report: Callable[[dict[str, Any]], None], errors: Any) -> int:
    """The launcher's exit code; a group of its own, so that Ctrl-C in a terminal is the caller's to answer."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=env, start_new_session=True,
        text=True, errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(_MARK):
                report(json.loads(line[len(_MARK) :]))
            elif line.strip():
                errors.write(line)
        return process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.read()  # it ends when the last rank has gone
        process.stdout.close()


def main(arguments: list[str] | None = None) -> None:
    """The launcher itself: the process that it dies with, then the arguments of `torchrun`."""
    parent, *rest = sys.argv[1:] if arguments is None else arguments
    die_with_parent(int(parent))
    os.environ[_LAUNCHER] = str(os.getpid())
    from torch.distributed.run import main as run

    run(rest)


if __name__ == "__main__":
    main()
