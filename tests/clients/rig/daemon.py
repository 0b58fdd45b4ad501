"""The daemon, with a configuration that a user could have written."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from anthropic import Anthropic
from openai import AsyncOpenAI, OpenAI

from rig.programs import Program, clean_environment, program_path
from rig.provider import PROVIDER_KEY

# What the tenants show; each may stand for one application.
KEYS = {"search": "sk-of-search", "mail": "sk-of-mail", "queue": "sk-of-queue"}


@dataclass
class Settings:
    """What tests change; the rest of the configuration stands in `text`."""

    linger: str = "150ms"
    flex: bool = False
    router: str = ""
    log: str = "info,offpeak=debug"
    more: str = ""

    def text(self, provider: str, folder: Path, cache: Path) -> str:
        """The configuration file. Waits fit a provider whose hours are seconds."""
        return f"""
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
drain = "1s"
max_body = "1MiB"

[store]
folder = {json.dumps(str(folder / "data"))}

[plugins]
cache = {json.dumps(str(cache))}

# The tests share two cores with whatever else runs there.
[plugins.router]
time_limit = "5s"
{self.router}

[plugins.providers.openai]
time_limit = "5s"

[plugins.providers.anthropic]
time_limit = "5s"

[tenants.search]
keys = [{{ env = "SEARCH_KEY" }}]

[tenants.mail]
keys = [{{ env = "MAIL_KEY" }}]

# One that has tickets by default, and may use few models.
[tenants.queue]
keys = [{{ env = "QUEUE_KEY" }}]
delivery = "ticket"
models = ["gpt-4o*"]

[backends.simulated]
provider = "openai"
base_url = "{provider}"
api_key = {{ env = "PROVIDER_KEY" }}
models = ["gpt-*", "text-embedding-*"]

[backends.claude]
provider = "anthropic"
base_url = "{provider}"
api_key = {{ env = "PROVIDER_KEY" }}
models = ["claude-*"]

[backends.claude.config]
poll_ms = 50
poll_max_ms = 100
retry_ms = 50
settle_ms = 200

[backends.claude.lanes]
linger = "{self.linger}"

[backends.simulated.lanes]
linger = "{self.linger}"

[backends.simulated.config]
flex = {json.dumps(self.flex)}
poll_ms = 50
poll_max_ms = 100
retry_ms = 50
settle_ms = 200

[retry]
base = "50ms"
cap = "500ms"

[log]
format = "json"
level = {json.dumps(self.log)}
{self.more}
"""


class Daemon:
    """The daemon on its data folder; it may be ended and started again."""

    def __init__(self, provider: str, folder: Path, cache: Path, settings: Settings) -> None:
        self.log = folder / "offpeak.log"
        self.config = folder / "offpeak.toml"
        self.config.write_text(settings.text(provider, folder, cache))
        self._clients: list[OpenAI | Anthropic] = []
        self.start()

    def start(self) -> None:
        """Starts it, for the first time or again; the addresses are new."""
        command = [str(program_path("OFFPEAK_BIN")), "serve", "--config", str(self.config)]
        self.program = Program(command, self.log, self._environment())
        ready = self.program.wait_for(r'(?m)^.*"message":"offpeak is ready".*$')[0]
        fields = json.loads(ready)["fields"]
        self.url, self.admin = f"http://{fields['data']}", f"http://{fields['admin']}"

    def _environment(self, **variables: str) -> dict[str, str]:
        """What the configuration takes its secrets from."""
        secrets = {f"{tenant.upper()}_KEY": key for tenant, key in KEYS.items()}
        return clean_environment(PROVIDER_KEY=PROVIDER_KEY, **secrets, **variables)

    def command(self, *arguments: Any) -> subprocess.CompletedProcess[str]:
        """Runs an operator's command against it, which must succeed, and returns what it says."""
        command = [str(program_path("OFFPEAK_BIN")), *map(str, arguments)]
        environment = self._environment(OFFPEAK_ADMIN_URL=self.admin)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def kill(self) -> None:
        """Ends it as a crash does."""
        self.program.kill()

    def stop(self) -> int:
        """Ends it as an operator does."""
        for client in self._clients:
            client.close()
        return self.program.stop()

    def client(self, tenant: str = "search", **options: Any) -> OpenAI:
        """The SDK as an application uses it: only the base URL is changed."""
        client = OpenAI(base_url=f"{self.url}/v1", api_key=KEYS[tenant], **options)
        self._clients.append(client)
        return client

    def anthropic(self, tenant: str = "search", **options: Any) -> Anthropic:
        """Anthropic's SDK, in the same way."""
        client = Anthropic(base_url=self.url, api_key=KEYS[tenant], **options)
        self._clients.append(client)
        return client

    def async_client(self, tenant: str = "search", **options: Any) -> AsyncOpenAI:
        """The same for asynchronous code; the caller closes it."""
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEYS[tenant], **options)

    def ask(self, path: str) -> Any:
        """Asks the admin plane."""
        return httpx2.get(f"{self.admin}{path}").raise_for_status().json()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = httpx2.get(f"{self.admin}/metrics").raise_for_status().text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return sum(float(value) for key, value in lines if key.split("{")[0] == name)

    def waiting(self) -> int:
        """Deferred requests that wait in lanes."""
        return sum(lane["waiting_requests"] for lane in self.ask("/admin/v1/lanes")["data"])

    def flush(self) -> None:
        """Lets all lanes leave."""
        for lane in self.ask("/admin/v1/lanes")["data"]:
            httpx2.post(f"{self.admin}/admin/v1/lanes/{lane['id']}/flush").raise_for_status()
