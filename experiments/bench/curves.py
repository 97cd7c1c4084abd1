"""`bench curves LEDGER ...`: how well the forecast of `experiments/campaign/curves.py` meets the recorded ends of learning curves.

From the first half, and from the first 70 %, of every finished run's curve, its last tenth is forecast.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from experiments.bench.registered import register_bench
from experiments.campaign.curves import RETURN, analyse_curve
from experiments.ledger.store import Ledger, file_url, join_value

LEAST = 16  # points of a curve that is used


@register_bench("curves")
def main(arguments: Sequence[str] | None = None) -> int:
    """Print, by task and share seen: curves, share of ends within the 95 % interval, root mean squared error."""
    parser = argparse.ArgumentParser(prog="bench curves", description=__doc__)
    parser.add_argument("ledgers", nargs="+", help="SQLite files of recorded campaigns")
    curves: list[tuple[str, np.ndarray]] = []
    for file in parser.parse_args(arguments).ledgers:
        ledger = Ledger(file_url(file), read_only=True)
        for run in ledger.runs():
            rows = [(m.env_steps, join_value(m.value, m.kind)) for m in ledger.metrics(run.id, RETURN)]
            rows = [row for row in rows if math.isfinite(row[1])]
            if run.status == "done" and len(rows) >= LEAST:
                curves.append((run.task, np.array(rows)))
    print(f"{'task':<24} {'seen':>5} {'curves':>7} {'covered':>8} {'rmse':>8} {'last seen':>10}")
    for share in (0.5, 0.7):
        for task in sorted({task for task, _ in curves}):
            own = [curve for name, curve in curves if name == task]
            held, errors, naive = zip(*(_one(curve, share) for curve in own), strict=True)
            rmse, still = (float(np.sqrt(np.mean(np.square(v)))) for v in (errors, naive))
            print(f"{task:<24} {share:>5.0%} {len(own):>7} {np.mean(held):>8.0%} {rmse:>8.2f} {still:>10.2f}")
    print("last seen: error of taking the mean of the last tenth seen for the end")
    return 0


def _one(curve: np.ndarray, share: float) -> tuple[bool, float, float]:
    """Whether the interval held the end, the forecast's error, and the error of expecting no change."""
    seen, tail = curve[: int(len(curve) * share)], max(1, len(curve) // 10)
    end, at = float(curve[-tail:, 1].mean()), int(curve[-tail:, 0].mean())
    found = analyse_curve(seen[:, 0].tolist(), seen[:, 1].tolist(), at=at, floor=None)
    assert found is not None
    half = float(stats.t.ppf(0.975, found.freedom)) * found.forecast_sd
    return abs(found.forecast - end) <= half, found.forecast - end, found.last - end


if __name__ == "__main__":
    raise SystemExit(main())
