"""Who proposes best, as an earlier system documented it."""
