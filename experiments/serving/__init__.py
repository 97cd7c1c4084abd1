"""The ledger as pages to be looked at in a browser; reads through `experiments/reading/` alone and changes nothing."""
