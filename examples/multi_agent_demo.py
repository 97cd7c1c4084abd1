"""The five agents over a small campaign, without a chat model: what each proposed, what it said, and the verdict.

    python examples/multi_agent_demo.py [--data-dir FOLDER] [--env-steps 100k]

Offline every configuration is the optimizer's, so the table shows which slice each agent owns and took from it; with a key and
`--llm openai:MODEL` agents may change theirs. What is printed are ledger rows. It takes about three minutes of CPU time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, also where it is not installed

from sqlalchemy import select

from experiments.ledger import Ledger
from experiments.ledger.models import Proposal
from experiments.numbers import parse_count
from experiments.runs.paths import Paths
from multi_agent.agents import (
    AdaptationAgent,
    CoordinatorAgent,
    EnvironmentAgent,
    MetaLearningAgent,
    StateModelingAgent,
)
from multi_agent.workflows import CollaborativeLearning
from multi_agent.workflows.crew import CrewEvent

SPECIALISTS = (StateModelingAgent(), MetaLearningAgent(), AdaptationAgent(), EnvironmentAgent())


def main(arguments: Sequence[str] | None = None) -> int:
    """Research one question with all agents, and print what they did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="where the rows go (without: a temporary folder)")
    parser.add_argument("--env-steps", default="100k", help="training steps of the whole campaign")
    parser.add_argument("--llm", default="offline", help="chat model of the agents")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        folder = options.data_dir or temporary
        crew = CollaborativeLearning(SPECIALISTS, CoordinatorAgent(), llm=options.llm, data_dir=folder)
        result = crew.solve_task(
            "beat MLP with LSTM on point-robot", env_steps=parse_count(options.env_steps), on_event=show
        )
        ledger = Ledger(Paths.of(folder).ledger_url, read_only=True)
        campaign_id = ledger.resolve(result.campaign, "campaign")
        with ledger.session() as session:
            query = select(Proposal).where(Proposal.campaign_id == campaign_id, Proposal.superseded.is_(False))
            proposals = list(session.scalars(query.order_by(Proposal.trial, Proposal.arm, Proposal.id)))
        ledger.close()
    slices = {agent.slice: agent.name for agent in SPECIALISTS}
    print(f"\n{'round':>5}  {'arm':10}  {'agent':14}  {'source':9}  proposed")
    for proposal in proposals:
        values = ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in proposal.changes.items())  # fmt: skip
        agent = slices.get(proposal.role, proposal.role)
        print(f"{proposal.trial + 1:5}  {proposal.arm:10}  {agent:14}  {proposal.source:9}  {values or 'nothing'}")
    print(f"\n{result.campaign}: {result.outcome}: {result.reason}")
    if result.improvement is not None:
        effect = result.improvement
        runs = ", ".join(f"r-{number:04d}" for number in effect.run_ids)
        print(f"effect {effect.effect:+.2f}, 95 % interval [{effect.low:+.2f}, {effect.high:+.2f}], from {runs}")
    return 0


def show(event: CrewEvent) -> None:
    """Print the closing words of an agent's turn, and what the workflow's code does."""
    if event.kind in ("agent", "stage"):
        print(f"{event.actor}: {event.text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
