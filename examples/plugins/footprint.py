"""What a model of each kind weighs: trainable numbers, and numbers that it carries from step to step, at one width.

python main.py --plugin examples/plugins/footprint.py bench footprint --width 64
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from core.sequence_model import MODELS, build_model, count_parameters, default_config, with_width
from experiments.bench.registered import register_bench


@register_bench("footprint")
def main(arguments: Sequence[str]) -> int:
    """Build every registered model once and count."""
    parser = argparse.ArgumentParser(prog="bench footprint", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="hidden_dim, and the size of input and output")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(list(arguments))
    rows = []
    for kind in MODELS:
        model = build_model(with_width(default_config(kind), options.width), options.width, options.width)
        rows.append({"model": kind, "parameters": count_parameters(model), "carried": model.hidden_size})
    if options.json:
        print(json.dumps(rows))
        return 0
    print(f"{'model':14}{'parameters':>12}{'carried':>10}")
    for row in rows:
        print(f"{row['model']:14}{row['parameters']:12,}{row['carried']:10,}")
    return 0
