"""Fixtures: programs that are started for a test and ended with it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rig import Daemon, Provider, Settings

# As much of a log as helps to see what went wrong.
LOG_CHARACTERS = 20_000


class Rig:
    """A provider and the daemon in front of it."""

    def __init__(self, provider: Provider, daemon: Daemon) -> None:
        self.provider, self.daemon = provider, daemon
        self.client, self.anthropic = daemon.client, daemon.anthropic


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugins, compiled once for all tests."""
    return tmp_path_factory.mktemp("plugins")


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """Another provider of the same kind, which says what the answers have to be without showing on the bill."""
    provider = Provider(tmp_path_factory.mktemp("oracle"))
    yield provider
    provider.kill()


@pytest.fixture
def start_daemon(tmp_path: Path, cache: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts the daemon in front of any URL. A test ends with the daemon stopping cleanly."""
    started: list[Daemon] = []

    def start(provider: str, settings: Settings | None = None) -> Daemon:
        daemon = Daemon(provider, tmp_path, cache, settings or Settings())
        started.append(daemon)
        return daemon

    yield start
    codes = [daemon.stop() for daemon in started]
    assert codes == [0] * len(codes), "the daemon did not stop cleanly"


@pytest.fixture
def start_provider(tmp_path: Path) -> Iterator[Callable[..., Provider]]:
    """Starts a provider with these arguments."""
    started: list[Provider] = []

    def start(*arguments: str) -> Provider:
        provider = Provider(tmp_path, *arguments)
        started.append(provider)
        return provider

    yield start
    for provider in started:
        provider.kill()


@pytest.fixture
def start(
    start_provider: Callable[..., Provider], start_daemon: Callable[..., Daemon]
) -> Callable[..., Rig]:
    """Starts a provider with these arguments and the daemon with these settings."""

    def start(*arguments: str, settings: Settings | None = None) -> Rig:
        provider = start_provider(*arguments)
        return Rig(provider, start_daemon(provider.url, settings))

    return start


@pytest.fixture
def rig(start: Callable[..., Rig]) -> Rig:
    """A provider and a daemon as they come."""
    return start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test shows what the programs wrote."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and folder:
        for log in sorted(folder.glob("*.log")):
            text = log.read_text(errors="replace")[-LOG_CHARACTERS:]
            report.sections.append((f"end of {log.name}", text))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test that was skipped has shown nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and reporter.stats.get("skipped") and session.exitstatus == 0:
        reporter.write_line("tests were skipped, which counts as a failure here", red=True)
        session.exitstatus = 1
