"""One program, started with its output in a file and ended with its test, however that ends."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Long enough for a loaded machine with two cores; nothing waits that long when all is well.
LIMIT = 60.0


def eventually(look: Callable[[], T], what: str, limit: float = LIMIT) -> T:
    """The first true value of `look`; fails when there is none within the limit (seconds)."""
    end = time.monotonic() + limit
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < end, f"not within {limit} s: {what} (last seen: {seen!r})"
        time.sleep(0.02)


def program_path(name: str) -> Path:
    """The path of a program under test, which `cargo xtask test` hands over."""
    value = os.environ.get(name)
    assert value, f"{name} is not set: it names a program under test. `cargo xtask test` builds and names them."
    path = Path(value).resolve()
    assert path.is_file(), f"{name} names {path}, which is no file. `cargo xtask test` builds it."
    return path


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment without what would configure offpeak or lead the SDK elsewhere."""
    ours = ("OFFPEAK_", "OPENAI_", "ANTHROPIC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables


class Program:
    """A running program."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        self._begin = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )

    def output(self) -> str:
        """What it has written since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in its output; fails when the program ends before."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.output())
            assert found or self.process.poll() is None, f"it ended: {self.process.args}\n{self.output()}"
            return found

        return eventually(look, f"{pattern!r} in the output of {self.process.args}")

    def kill(self) -> None:
        """As a crash: without a chance to tidy up."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Asks it to end, waits, and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
