"""A router by time of day and tenant.

Outside working hours, what can wait takes the cheapest offer that usually keeps its deadline. Within them, the tenants that
the configuration names take the fastest one.
"""

import json
from datetime import datetime, timezone
from functools import wraps
from typing import Any, Callable, List, Optional, Union, get_args, get_origin

from wit_world import exports
from wit_world.exports.routing import (
    BodyNeed_None_,
    Candidate,
    Choice,
    Decision,
    Decision_Choose,
    Decision_Pass,
    Description,
    Envelope,
    Sla_Within,
)
from wit_world.imports import host


class Settings:
    """The plugin's own table of the configuration."""

    _read: Optional["Settings"] = None

    def __init__(self, table: dict) -> None:
        unknown = set(table) - {"hurried", "begin", "end"}
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}; there are hurried, begin and end")
        hurried = table.get("hurried", [])
        if not isinstance(hurried, list):
            raise ValueError("hurried is a list of tenants")
        self.hurried = frozenset(hurried)
        self.begin = int(table.get("begin", 8))
        self.end = int(table.get("end", 18))

    @classmethod
    def get(cls) -> "Settings":
        """Read once: the daemon hands over the same settings as long as this instance lives."""
        if cls._read is None:
            cls._read = cls(json.loads(host.config()))
        return cls._read

    def is_working_hour(self, hour: int) -> bool:
        return self.begin <= hour < self.end


def choose(settings: Settings, hour: int, envelope: Envelope, candidates: List[Candidate]) -> Decision:
    """The decision, from plain values alone: this is what tests call."""
    if not isinstance(envelope.sla, Sla_Within):
        return Decision_Pass()  # real time is the next router's business
    is_hurried = envelope.tenant in settings.hurried and settings.is_working_hour(hour)
    offers = [
        (offer.usual_ms if is_hurried else offer.price_permille, offer.usual_ms, candidate.backend, offer.name)
        for candidate in candidates
        if candidate.healthy
        for offer in candidate.offers
        if offer.usual_ms <= envelope.sla.value
    ]
    if not offers:
        return Decision_Pass()
    _, _, backend, offer = min(offers)
    return Decision_Choose(Choice(backend=backend, offer=offer, within_ms=None, lane=""))


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


class Routing(exports.Routing):
    """What the daemon calls; wit/router.wit says when and with what."""

    @told
    def describe(self) -> Description:
        Settings.get()  # a wrong configuration is refused when the plugin is loaded
        return Description(name="working-hours", version="1", body=BodyNeed_None_(), headers=[])

    @told
    def route(self, envelope: Envelope, candidates: List[Candidate]) -> Decision:
        hour = datetime.fromtimestamp(host.now() / 1000, timezone.utc).hour
        return choose(Settings.get(), hour, envelope, candidates)
