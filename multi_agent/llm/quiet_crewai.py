"""`boot(root)`, once, before anything imports crewai: no connection, no question, no output, every write under root.

CrewAI by default sends telemetry, asks for consent on a terminal, installs signal handlers and writes to the home
folder while it is being imported. Each switch below turns off one of these; found by tracing version 1.15.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SWITCHES = {
    "CREWAI_DISABLE_TELEMETRY": "true",  # telemetry and its SIGINT / SIGTERM handlers
    "CREWAI_TRACING_ENABLED": "false",  # traces, and the consent prompt of the first run
    "CREWAI_DISABLE_VERSION_CHECK": "true",  # asks the package index for a newer version
    "OTEL_SDK_DISABLED": "true",
    "ANONYMIZED_TELEMETRY": "False",  # chromadb, which crewai imports
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
}


def boot(root: Path) -> None:
    """Import crewai silently, with its storage, locks and import-time files under `root`. Repeating it is harmless.

    The console switch is a context variable, so call this in the thread that then starts the agents.
    """
    root = root.resolve()
    (root / "locks").mkdir(parents=True, exist_ok=True)
    os.environ.update(SWITCHES)  # not setdefault: a shell's own LANGSMITH_TRACING=true would open a connection
    os.environ["CREWAI_STORAGE_DIR"] = str(root)  # an absolute path wins over ~/.local/share
    with _home(root / "home"):  # written during the import, and no variable moves it
        import crewai  # noqa: F401

    import portalocker
    from crewai.events.event_listener import event_listener
    from crewai_core.lock_store import set_lock_backend
    from crewai_core.printer import set_suppress_console_output

    @contextmanager
    def lock(name: str, *, timeout: float = 120.0) -> Iterator[None]:  # the default is a file in /tmp
        with portalocker.Lock(str(root / "locks" / hashlib.sha256(name.encode()).hexdigest()[:16]), timeout=timeout):
            yield

    set_lock_backend(lock)
    set_suppress_console_output(True)
    event_listener.formatter.console.quiet = True
    logging.getLogger("crewai").setLevel(logging.CRITICAL)  # repeats errors that are raised anyway


@contextmanager
def _home(path: Path) -> Iterator[None]:
    """HOME (and its Windows cousin) point to `path` inside the block."""
    before = {name: os.environ.get(name) for name in ("HOME", "LOCALAPPDATA")}
    os.environ.update(dict.fromkeys(before, str(path)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
