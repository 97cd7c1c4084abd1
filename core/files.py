"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to write to, which becomes `path` at the end and goes away on an error.

    A crash leaves either the old file or the new one, never a part; two writers at once do not mix. The folder is
    created where there is none. Raises OSError where it cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    partial.touch(exist_ok=False)  # with the permissions that any new file gets
    try:
        yield partial
        with partial.open("r+b") as written:
            os.fsync(written.fileno())
        if path.exists():
            partial.chmod(path.stat().st_mode & 0o777)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves either the old file or the new one."""
    with replacing(path) as partial:
        partial.write_bytes(data)
