"""Verdicts and the statistics behind them: pure functions over rows."""
