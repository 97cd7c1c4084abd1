"""How agents of one campaign talk: typed messages and shared facts, both stored as events of the ledger."""
