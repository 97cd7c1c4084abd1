"""The five agents. Each `*_agent.py` registers one; a sixth agent is one more such file and its prompt."""
