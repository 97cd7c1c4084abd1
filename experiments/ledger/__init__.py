"""The experiment ledger: every run, proposal, event, claim and verdict as a row."""

from experiments.ledger.store import Ledger, LedgerError, parse_id, readable_id

__all__ = ["Ledger", "LedgerError", "parse_id", "readable_id"]
