"""Starts and ends the programs under test, and says what they did."""

from rig.daemon import KEYS, Daemon, Settings
from rig.door import Door
from rig.provider import CLAUDE, MODEL, PROVIDER_KEY, Provider
from rig.programs import eventually, program_path

__all__ = ["CLAUDE", "KEYS", "MODEL", "PROVIDER_KEY", "Daemon", "Door", "Provider", "Settings", "eventually", "program_path"]
