"""Where things are written: one data folder, and the folder of kept models. Nothing anywhere else."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import InputError
from core.words.text import storable

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Paths:
    """Every place that is written to."""

    data: Path
    saved_models: Path

    @classmethod
    def of(cls, data_dir: str | Path | None) -> Paths:
        """The default is `runs/` and `saved_models/` in the checkout; another data folder holds its kept models too."""
        if storable(str(CHECKOUT)) != str(CHECKOUT):
            raise InputError(
                f"the code lies in {str(CHECKOUT)!a}, whose name is not UTF-8: numba compiles nothing there; move it"
            )
        if data_dir is None:
            root = CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()
            return cls(root / "runs", root / "saved_models")
        try:
            data = Path(data_dir).expanduser().resolve()
        except (RuntimeError, ValueError, OSError) as error:  # nobody's home, a zero byte, a circle of links
            raise InputError(f"--data-dir: {data_dir} is no folder ({error}). Choose another with --data-dir") from None
        return cls(data, data / "saved_models")

    def ensure(self) -> None:
        """Create the data folder. InputError where it cannot be written to."""
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            probe = self.data / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"--data-dir: cannot write to {self.data} ({error.strerror}). Choose another with --data-dir"
            ) from None

    @property
    def ledger_url(self) -> URL:
        from experiments.ledger.store import file_url  # not above: the processes that train open no ledger

        return file_url(self.data / "ledger.db")

    def checkpoint(self, run_id: int) -> Path:
        return self.data / "checkpoints" / f"r-{run_id:04d}"

    def model(self, run_id: int) -> Path:
        return self.data / "models" / f"r-{run_id:04d}"

    def best_model(self, run_id: int) -> Path:
        """The model of a run's best look, where one was asked for."""
        return self.data / "models" / f"r-{run_id:04d}-best"

    def log(self, run_id: int) -> Path:
        return self.data / "logs" / f"r-{run_id:04d}.log"

    def report(self, campaign_id: int) -> Path:
        return self.data / "reports" / f"c-{campaign_id:04d}"

    def environment(self) -> dict[str, str]:
        """Variables that keep the caches of libraries inside the data folder, where nobody has set another place."""
        cache = self.data / "cache"
        places = {
            "NUMBA_CACHE_DIR": cache / f"numba-{_kernels()}",
            "MPLCONFIGDIR": cache / "matplotlib",
            "TORCHINDUCTOR_CACHE_DIR": cache / "torchinductor",  # made when parts of torch are imported, used or not
        }
        return {name: os.environ.get(name, str(place)) for name, place in places.items()}


@cache
def _kernels() -> str:
    """Hash of all kernels: numba compiles one anew when its own file changes, but not when one that it calls does."""
    digest = hashlib.sha256()
    for file in sorted((CHECKOUT / "core" / "kernels").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
