"""How a policy learns to adapt: one file an algorithm, found through `meta_rl.learner.LEARNERS`."""
