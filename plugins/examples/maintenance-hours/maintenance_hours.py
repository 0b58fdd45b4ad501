"""A retry policy for a provider with hours of maintenance.

What fails within them and would pass is tried again when they are over, if its deadline allows that, and at another backend if
not. At other times it is tried again as usual.
"""

import json
from functools import wraps
from typing import Any, Callable, List, Optional, Union, get_args, get_origin

from wit_world import exports
from wit_world.exports.judging import (
    Attempt,
    Description,
    Ending_Answered,
    Meaning,
    Meaning_Elsewhere,
    Meaning_Permanent,
    Meaning_Temporary,
)
from wit_world.imports import host

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

# They pass, and all from 500 on.
PASSING = {408, 409, 425, 429}


class Settings:
    """The plugin's own table of the configuration."""

    _read: Optional["Settings"] = None

    def __init__(self, table: dict) -> None:
        unknown = set(table) - {"begin", "end", "backends"}
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}; there are begin, end and backends")
        self.begin_ms = int(table.get("begin", 2)) * HOUR_MS
        self.end_ms = int(table.get("end", 4)) * HOUR_MS
        if not 0 <= self.begin_ms < self.end_ms <= DAY_MS:
            raise ValueError("the hours of maintenance must begin before they end, from 0 to 24")
        self.backends: List[str] = table.get("backends", [])
        if not isinstance(self.backends, list):
            raise ValueError("backends is a list of their names")

    @classmethod
    def get(cls) -> "Settings":
        """Read once: the daemon hands over the same settings as long as this instance lives."""
        if cls._read is None:
            cls._read = cls(json.loads(host.config()))
        return cls._read

    def left_ms(self, backend: str, now_ms: int) -> int:
        """How long the maintenance of a backend still takes; 0 if there is none."""
        if self.backends and backend not in self.backends:
            return 0
        of_day = now_ms % DAY_MS
        return self.end_ms - of_day if self.begin_ms <= of_day < self.end_ms else 0


def judge(settings: Settings, now_ms: int, attempt: Attempt) -> Meaning:
    """The decision, from plain values alone: this is what tests call."""
    ending = attempt.ending
    if isinstance(ending, Ending_Answered) and ending.value < 500 and ending.value not in PASSING:
        return Meaning_Permanent()
    wait_ms = settings.left_ms(attempt.backend, now_ms)
    if wait_ms == 0:
        return Meaning_Temporary(None)
    # Half of what is left when it is over must do for the work itself.
    return Meaning_Temporary(wait_ms) if wait_ms * 2 < attempt.left_ms else Meaning_Elsewhere()


def told(call: Callable) -> Callable:
    """An exception ends the call, and so does an answer of another type. The daemon says of it what was logged before."""
    answer = call.__annotations__["return"]
    types = get_args(answer) if get_origin(answer) is Union else (get_origin(answer) or answer,)

    @wraps(call)
    def telling(*values: Any) -> Any:
        try:
            given = call(*values)
            if not isinstance(given, types):
                names = " or ".join(one.__name__ for one in types)
                raise TypeError(f"{call.__name__} is to return {names}, not {given!r}")
            return given
        except Exception as error:
            host.log(host.Level.ERROR, f"{type(error).__name__}: {error}")
            raise

    return telling


class Judging(exports.Judging):
    """What the daemon calls; wit/retry-policy.wit says when and with what."""

    @told
    def describe(self) -> Description:
        Settings.get()  # a wrong configuration is refused when the plugin is loaded
        return Description(name="maintenance-hours", version="1")

    @told
    def judge(self, attempt: Attempt) -> Meaning:
        return judge(Settings.get(), host.now(), attempt)
