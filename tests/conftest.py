from pathlib import Path

import pytest

from tests.support.tiny import write_checkpoint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random InternLM2 checkpoint with chat markers; tests must not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))
