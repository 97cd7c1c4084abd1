"""How a policy or model changes inside one task, by gradient steps at test time."""
