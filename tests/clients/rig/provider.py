"""The simulated provider, its bill and its faults."""

from pathlib import Path
from typing import Any

import httpx2
from anthropic import Anthropic
from openai import OpenAI

from rig.programs import Program, clean_environment, program_path

# The key that the provider asks for; no client of offpeak ever has it.
PROVIDER_KEY = "sk-of-the-provider"

MODEL = "gpt-4o-mini"
CLAUDE = "claude-haiku-4-5"

# An hour at the provider passes in a second, so that a batch takes less than one.
SPEED = 3600


class Provider(Program):
    """A running simulator."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [str(program_path("PROVIDER_SIM_BIN")), "--listen", "127.0.0.1:0", "--speed", str(SPEED)]
        command += ["--seed", "7", "--key", PROVIDER_KEY, "--track-executions", *arguments]
        super().__init__(command, folder / "provider.log", clean_environment())
        self.url = self.wait_for(r"listening on (http://\S+)\n")[1]
        self._openai = OpenAI(base_url=f"{self.url}/v1", api_key=PROVIDER_KEY)
        self._anthropic = Anthropic(base_url=self.url, api_key=PROVIDER_KEY)

    def client(self) -> OpenAI:
        """The SDK, straight to the provider; one for all, which is closed with it."""
        return self._openai

    def anthropic(self) -> Anthropic:
        """Anthropic's SDK, in the same way."""
        return self._anthropic

    def kill(self) -> None:
        """Ends the provider, and the clients that talk to it."""
        self._openai.close()
        self._anthropic.close()
        super().kill()

    def bill(self) -> dict[str, Any]:
        """What ran and what it cost."""
        return httpx2.get(f"{self.url}/sim/bill").raise_for_status().json()

    def billed(self, mode: str) -> dict[str, int]:
        """Requests and costs of one mode, over all models."""
        lines = [line for line in self.bill()["lines"] if line["mode"] == mode]
        return {name: sum(line[name] for line in lines) for name in ("requests", "cost", "realtime_cost")}

    def ran_twice(self) -> list[Any]:
        """Requests that ran more than once."""
        return self.bill()["executions"]["repeated"]

    def calls(self, endpoint: str) -> int:
        """How many calls an endpoint got."""
        return httpx2.get(f"{self.url}/sim/stats").raise_for_status().json()["calls"][endpoint]

    def advance(self, hours: float) -> None:
        """Moves the provider's clock."""
        moved = {"ms": int(hours * 3_600_000)}
        httpx2.post(f"{self.url}/sim/clock/advance", json=moved).raise_for_status()

    def plan(self, **plan: Any) -> None:
        """Plans faults: `set`, `next` or `next_batch`, as `provider-sim --help` explains them."""
        httpx2.post(f"{self.url}/sim/faults", json=plan).raise_for_status()

    def next(self, endpoint: str, kind: str, **details: Any) -> None:
        """Orders a fault for the next call of an endpoint."""
        self.plan(next=[{"endpoint": endpoint, "fault": {"kind": kind, **details}}])

    def next_batch_takes(self, seconds: float) -> None:
        """How long, in real time, the next batch takes from creation to completion."""
        self.plan(next_batch=[[{"kind": "turnaround", "ms": int(seconds * SPEED * 1000)}]])
