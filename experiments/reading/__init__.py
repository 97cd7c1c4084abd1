"""What is read off the ledger for people: lists, comparisons, answers, figures, reports."""
