"""What the crew has spent on its chat model, and the caps that are checked before each call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from core.errors import InputError, bad_value
from multi_agent.llm.choose import MAX_OUTPUT_TOKENS

DEFAULT_MAX_USD = 1.0
"""Cap on the dollars of one campaign where none is given."""
PRICES = Path(__file__).with_name("prices.json")


class Price(NamedTuple):
    """US dollars per million tokens."""

    input: float
    output: float


class BudgetSpentError(RuntimeError):
    """The next call could go over a cap, so it was not made."""


def read_prices(override: Path | None = None) -> tuple[str, dict[str, Price]]:
    """The date of the price list and the prices by "provider:model"; a file at `override` adds to it or replaces."""
    date, prices = "", {}
    for path in (PRICES, override):
        if path is None or not path.exists():
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            date = str(data["date"])
            prices |= {name: Price(float(i), float(o)) for name, (i, o) in data["usd_per_million_tokens"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            shape = '{"date": "2026-01-31", "usd_per_million_tokens": {"openai:gpt-5-mini": [0.25, 2.0]}}'
            raise InputError(f"price list {path} cannot be read; it must look like {shape}") from None
    return date, prices


class Meter:
    """Counts tokens and dollars of one campaign.

    model: "provider:model", as the price list names it. max_tokens, max_usd: caps, None for none.
    """

    def __init__(
        self,
        model: str,
        prices: dict[str, Price],
        *,
        max_tokens: int | None = None,
        max_usd: float | None = None,
    ) -> None:
        for name, cap in (("--max-tokens", max_tokens), ("--max-usd", max_usd)):
            if cap is not None and not cap > 0:
                raise bad_value(name, cap, "more than 0")
        self.price = prices.get(model)
        self.max_tokens, self.max_usd = max_tokens, max_usd
        self.tokens, self.usd = 0, 0.0

    def check(self, prompt_tokens: int) -> None:
        """Raise BudgetSpentError where a call with this prompt and the longest answer could go over a cap."""
        if self.max_tokens is not None and self.tokens + prompt_tokens + MAX_OUTPUT_TOKENS > self.max_tokens:
            raise BudgetSpentError(f"the next call could pass --max-tokens {self.max_tokens} ({self.tokens} used)")
        if self.max_usd is not None and self.price is not None:
            most = self.usd + self.cost(prompt_tokens, MAX_OUTPUT_TOKENS)
            if most > self.max_usd:
                raise BudgetSpentError(f"the next call could pass --max-usd {self.max_usd:g} ({self.usd:.4f} used)")

    def left(self) -> str:
        """What may still be spent, in words; "" without a cap."""
        caps = []
        if self.max_tokens is not None:
            caps.append(f"{max(self.max_tokens - self.tokens, 0):,} tokens")
        if self.max_usd is not None and self.price is not None:
            caps.append(f"{max(self.max_usd - self.usd, 0):.2f} dollars")
        return ", ".join(caps)

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars of a call; 0 where the price is unknown, which `price is None` says."""
        if self.price is None:
            return 0.0
        return (input_tokens * self.price.input + output_tokens * self.price.output) / 1e6

    def add(self, input_tokens: int, output_tokens: int) -> None:
        """Count a call that was made."""
        self.tokens += input_tokens + output_tokens
        self.usd += self.cost(input_tokens, output_tokens)
