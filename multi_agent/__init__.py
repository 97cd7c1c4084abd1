"""The crew: agents that research through the lab. Only this folder knows agent frameworks."""
