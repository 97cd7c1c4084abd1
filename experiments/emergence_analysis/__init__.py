"""What agents found, read from a ledger, as an earlier system documented it."""
