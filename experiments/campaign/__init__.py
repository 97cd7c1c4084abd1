"""One campaign: question, plan, trials, the lab, claims, and how a person steers it."""
