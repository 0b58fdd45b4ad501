"""A cost policy: what the provider charges by the price book, to the departments that the configuration names."""

import json
from functools import wraps
from typing import Any, Callable, List, Optional, Union, get_args, get_origin

from wit_world import exports
from wit_world.exports.costing import Charge, Description, Outcome, Sale
from wit_world.imports import host


class Settings:
    """The plugin's own table of the configuration."""

    _read: Optional["Settings"] = None

    def __init__(self, table: dict) -> None:
        unknown = set(table) - {"payers"}
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}; there is payers")
        self.payers = dict(table.get("payers", {}))

    @classmethod
    def get(cls) -> "Settings":
        """Read once: the daemon hands over the same settings as long as this instance lives."""
        if cls._read is None:
            cls._read = cls(json.loads(host.config()))
        return cls._read


def charge(settings: Settings, sale: Sale, outcome: Outcome) -> Charge:
    """The decision, from plain values alone: this is what tests call. Money is in whole pico-dollars, 10^-12 dollars."""
    tenant = settings.payers.get(outcome.tenant, outcome.tenant)
    if outcome.usage is None:
        return Charge(tenant=tenant, cost=0, realtime_cost=0, priced=True)  # the provider counted nothing
    rates = {rate.name: rate.price for rate in sale.rates}
    try:
        full = (
            outcome.usage.input * rates["input_cost_per_token"]
            + outcome.usage.output * rates["output_cost_per_token"]
        )
    except KeyError:
        return Charge(tenant=tenant, cost=0, realtime_cost=0, priced=False)
    # What nobody got would not have been bought in real time.
    realtime_cost = 0 if outcome.wasted else full
    return Charge(tenant=tenant, cost=full * sale.price_permille // 1000, realtime_cost=realtime_cost, priced=True)


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


class Costing(exports.Costing):
    """What the daemon calls; wit/cost-policy.wit says when and with what."""

    @told
    def describe(self) -> Description:
        Settings.get()  # a wrong configuration is refused when the plugin is loaded
        return Description(name="my-plugin", version="1")

    @told
    def assess(self, sale: Sale, outcomes: List[Outcome]) -> List[Charge]:
        return [charge(Settings.get(), sale, outcome) for outcome in outcomes]
