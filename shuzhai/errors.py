"""Every error that shuzhai raises on purpose.

    ShuzhaiError
    ├── InvalidRequestError        the request asks for something that does not exist or cannot be
    │   └── ContextLengthError     prompt and answer do not fit the context or the KV cache
    ├── ModelNotFoundError         no model of that name, no such folder
    ├── CheckpointError            a damaged checkpoint, or one that needs what is not implemented
    ├── DownloadError              a model could not be fetched
    ├── ConfigError                an option of the engine or the server has a bad value
    ├── MemoryBudgetError          the model does not fit the memory it was given
    ├── OverloadedError            too many requests wait; try again later
    └── EngineDeadError            the engine stopped on an internal fault

A message says what is wrong, the limit, and what to do. HTTP statuses are in `server/errors.py`.
"""


class ShuzhaiError(Exception):
    """Base of all errors raised on purpose."""


class InvalidRequestError(ShuzhaiError):
    """A request that cannot be served as asked. `param` names the parameter at fault."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """The prompt, or prompt and answer together, are longer than the model or the cache holds."""

    def __init__(self, message: str, param: str | None = "messages") -> None:
        super().__init__(message, param, code="context_length_exceeded")


class ModelNotFoundError(ShuzhaiError):
    """No model of that name."""


class CheckpointError(ShuzhaiError):
    """A checkpoint folder that cannot be loaded as it is."""


class DownloadError(ShuzhaiError):
    """A model could not be fetched, or what came is not what was promised."""


class ConfigError(ShuzhaiError):
    """A bad option."""


class MemoryBudgetError(ShuzhaiError):
    """The model does not fit."""


class OverloadedError(ShuzhaiError):
    """Too many requests are waiting."""


class EngineDeadError(ShuzhaiError):
    """The engine thread has stopped; the message holds the cause."""
