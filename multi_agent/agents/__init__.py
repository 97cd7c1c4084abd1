"""The five agents. Each `*_agent.py` registers one; a sixth agent is one more such file and its prompt.

`MetaLearningAgent()` is the registered one; `MetaLearningAgent(prompt="mine.md")` is another in its place.
"""

from multi_agent.agents.adaptation_agent import AdaptationAgent
from multi_agent.agents.coordinator_agent import CoordinatorAgent
from multi_agent.agents.environment_agent import EnvironmentAgent
from multi_agent.agents.meta_learning_agent import MetaLearningAgent
from multi_agent.agents.state_modeling_agent import StateModelingAgent

__all__ = ["AdaptationAgent", "CoordinatorAgent", "EnvironmentAgent", "MetaLearningAgent", "StateModelingAgent"]
