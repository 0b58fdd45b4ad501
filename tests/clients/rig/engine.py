"""A real engine: llama.cpp's server with a tiny random model. Its address stays while it is killed and started again."""

import re
import sys
from pathlib import Path

import httpx2
from openai import OpenAI

from rig import tiny_model
from rig.door import Door
from rig.programs import Program, clean_environment, eventually

TINY = "tiny"

# Requests that it works on at once.
SLOTS = 8

HERE = Path(__file__).parent


class Engine:
    """The server behind a door."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "engine.log"
        self._model = folder / "tiny.gguf"
        tiny_model.write(self._model)
        self._door = Door("127.0.0.1:1")
        self.url = self._door.url
        self.start()
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def start(self) -> None:
        """Starts it, for the first time or again."""
        command = [sys.executable, str(HERE / "serve_engine.py"), str(self._model), str(SLOTS), "embed"]
        self._program = Program(command, self._log, clean_environment())
        self._door.target = self._program.wait_for(r"(?m)^listening on http://(\S+)$")[1]
        eventually(lambda: httpx2.get(f"{self.url}/health").status_code == 200, "the engine is healthy")

    def kill(self) -> None:
        """Ends it in the middle of whatever it does."""
        self._program.kill()

    def close(self) -> None:
        """Ends it for good."""
        self.client.close()
        self._program.kill()
        self._door.close()

    def number(self, name: str) -> float:
        """One of its own metrics."""
        page = httpx2.get(f"{self.url}/metrics").raise_for_status().text
        found = re.search(rf"(?m)^llamacpp:{name} (\S+)$", page)
        assert found, f"{name} is not among the engine's metrics:\n{page}"
        return float(found[1])
