import signal
from pathlib import Path

import pytest

from tests.support.tiny import write_checkpoint


def pytest_configure() -> None:
    """Ctrl+C works here, and in what tests start, though a script ran pytest in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random InternLM2 checkpoint with chat markers; tests must not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))
