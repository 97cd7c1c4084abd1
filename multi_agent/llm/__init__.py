"""Chat models: which one is used, how CrewAI reaches it, what it may spend, and the offline researcher."""
