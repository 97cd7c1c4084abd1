"""The order in which agents speak and code acts: a campaign from question to verdict, and what one group came to."""

from multi_agent.workflows.collaborative_learning import CollaborativeLearning
from multi_agent.workflows.research_workflow import run_research

__all__ = ["CollaborativeLearning", "run_research"]
