"""The crews: who takes the turns of a round. An expert that knows a better stack is credited in each, and a critic saves a trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from crew_on_script import crew_lab, idea, interrupted_in, run_crew, truthful
from lab_on_script import lab_on_script, proposals_of, ssm_leads
from model_server import ModelServer, Reply, call, results_of, say, turn_of

import main
from core.errors import InputError
from experiments.bench.landscape import Landscape
from experiments.bench.searches import RULES, Search, compare
from experiments.campaign.lab import Lab
from experiments.campaign.plan import PROPOSING
from experiments.campaign.proposing.briefing import briefing
from experiments.campaign.proposing.ideas import Expected, measured, standing
from experiments.campaign.sides import parse_model
from experiments.reading.crew import ideas_table, transcript
from experiments.reading.report import markdown_report
from experiments.runs.executor import Job
from experiments.runs.runner import Paused
from experiments.search.optimizer import Tried
from experiments.search.space import SearchSpace
from experiments.serving import pages
from meta_rl.learner import DEFAULT_LEARNER
from multi_agent.agents.agent import crew_members, crew_names
from multi_agent.llm.choose import choose_llm
from multi_agent.workflows.proposer_arms import agent_searcher

CREWS = crew_names()
STACK = {"model.num_layers": 1}


class Stacks(Landscape):
    """A hill on which one layer, which the optimizer has no reason to try, is better by 50 than any other number."""

    def worth(self, values: dict[str, Any]) -> float:
        return super().worth(values) + 50.0 * (values["model.num_layers"] == 1)

    def measure(self, values: dict[str, Any]) -> Tried:
        return Tried(values, self.worth(values))


def expert(request: dict[str, Any]) -> Reply:
    """Knows the better stack, whoever of the crew owns it; the others have nothing to add."""
    turn = turn_of(request)
    if turn["kind"] == "propose" and turn["role"] in ("state-modeling", "all") and not results_of(request):
        told = {"base": "incumbent", "expected_delta": 40.0, "low": 20.0, "high": 60.0, "reason": "One wide layer."}
        return call(*(("propose", idea(arm, STACK, **told)) for arm in turn["arms"]))
    return say(truthful(request)) if turn["kind"] == "report" else say("Done.")


@pytest.mark.parametrize("crew", CREWS)
def test_an_expert_is_credited_whoever_takes_the_turns(crew: str) -> None:
    space = SearchSpace(parse_model("s5"), "point-robot", learner=DEFAULT_LEARNER)
    with ModelServer(expert).running() as server:
        found = agent_searcher(crew, server.choice(), max_tokens=200_000)(Stacks(space, 0), 2, 0)
        counted = server.tokens
    assert found.worth > 25 > RULES["default"](Stacks(space, 0), 1, 0).worth
    assert (found.trials, found.by_models, found.usd) == (2, 1, None)  # the price of a scripted model is unknown
    assert found.tokens == pytest.approx(counted, rel=0.3)


def test_the_table_of_the_bench_has_tokens_and_dollars() -> None:
    searches = {"a": [Search(1.0, 2, 0, 1, 700, 0.5), Search(2.0, 2, 0, 1, 300, 0.25)], "b": [Search(0.0, 2, 0, 0, 1, None)] * 2}  # fmt: skip
    assert [(r.tokens, r.usd) for r in compare(searches)] == [(1_000, 0.75), (2, None)]


def test_the_bench_replays_no_campaign(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "proposers", "--arms", "five", "--llm", "replay:c-0001"]) == 2
    assert "these searches are no campaign" in capsys.readouterr().err


# ---- in a campaign -----------------------------------------------------------------------------


def prefers_one_layer(job: Job) -> float:
    return ssm_leads(job) + 5.0 * (job.spec.policy.model.num_layers == 1)


class Worked(NamedTuple):
    lab: Lab
    requests: list[dict[str, Any]]


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Worked:
    """A campaign of the crew "architect+critic" that was interrupted, and gone on with by a sitting that names no crew."""
    folder = tmp_path_factory.mktemp("crew")
    lab = crew_lab(folder, 2, score=prefers_one_layer)
    with ModelServer(expert).running() as server:
        interrupted_in(lab, 1, Paused)
        with pytest.raises(Paused):
            run_crew(lab, folder, server.choice(), agents=[member.name for member in crew_members("architect+critic")])
        run_crew(lab, folder, server.choice())
    return Worked(lab, server.requests)


def test_a_campaign_goes_on_with_the_crew_that_it_began_with_and_can_be_replayed(worked: Worked) -> None:
    lab, folder = worked.lab, worked.lab.paths.data
    assert lab.stage == "done"
    assert {turn_of(request)["kind"] for request in worked.requests} == {"propose", "criticise", "report"}
    introduced = [e.payload["agents"] for e in lab.events(["stage"]) if "approve_each" in e.payload]
    assert introduced == [["Architect", "Examiner", "Coordinator"]] * 2
    (one, *_) = measured(lab.trials)
    assert one.idea.changes == STACK
    again = crew_lab(folder, 2, score=prefers_one_layer, new=True)
    run_crew(again, folder, choose_llm(f"replay:{lab.campaign_id}"), agents=introduced[0])
    assert {k: p.changes for k, p in proposals_of(again).items()} == {
        k: p.changes for k, p in proposals_of(lab).items()
    }


def test_the_architects_prompt_looks_through_every_role_and_the_critic_is_shown_predictions_against_results(
    worked: Worked,
) -> None:
    systems = " ".join(str(r["messages"][0]["content"]) for r in worked.requests)
    for lens in ("State modeling", "Meta-learning", "Adaptation", "Environment", "Coordination"):
        assert f"- {lens}:" in systems
    page = briefing(worked.lab, None, "Examiner", authors=["Architect"])
    assert "Architect's record: " in page
    assert "expected +40 [+20, +60] nf, measured" in page
    asked = [r for r in worked.requests if turn_of(r)["kind"] == "criticise"]
    assert "Architect on challenger: the incumbent with model.num_layers=1" in json.dumps(asked[0]["messages"])
    assert "veto" in {tool["function"]["name"] for tool in asked[0]["tools"]}


def test_a_veto_takes_back_what_repeats_a_run_and_nothing_else(tmp_path: Path) -> None:
    rate = "learner.learning_rate"
    lab = lab_on_script(tmp_path, proposing=PROPOSING, suggesting=2)
    lab.run_baseline()
    lab.set_stage("search")
    lab.launch()
    (first,) = lab.trials.finished("challenger")
    run = f"r-{first.run.id:04d}"
    other = f"r-{lab.trials.finished('baseline')[0].run.id:04d}"
    told: dict[str, Any] = {"arm": "challenger", "role": "all", "reason": "r", "base": "incumbent", "author": "Architect", "prior": True, "expected": Expected(delta=1, low=0, high=2)}  # fmt: skip
    space = {p.name: p for p in lab.trials.space("challenger").parameters}[rate]
    near = space.from_unit(space.to_unit(first.values[rate]) + 0.05)
    lab.propose(values={rate: 0.0002}, **told)
    for agent, named, said in (("Architect", run, "is 0."), ("Architect", other, "a finished search run of the challenger"), ("Nobody", run, "Allowed: Architect")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            lab.veto("challenger", agent, named, by="Examiner", reason="r")
    assert ("challenger", 1) in standing(lab.trials)
    lab.propose(values={rate: near}, **told)
    assert lab.events(["veto"]) == []  # nothing that was refused
    taken = lab.veto("challenger", "Architect", run, by="Examiner", reason="Nothing new is learnt of it.")
    assert (taken.trial, taken.same_as, taken.differs) == (1, run, pytest.approx(0.05, abs=0.01))
    assert ("challenger", 1) not in standing(lab.trials)
    lab.launch()
    assert lab.trials.proposer("challenger", 1, "search") == "optimizer"
    said = transcript(lab.ledger, lab.number, width=200)  # who, what and why, wherever a person reads of it
    assert (
        f"Examiner vetoes\n    takes back the idea of Architect for the challenger (trial 1), which repeats {run}: Nothing new"
        in said
    )
    fates = [row["run"] for row in ideas_table(lab.ledger, lab.number).records()]
    assert fates == ["not tried", f"vetoed by Examiner as {run} again: Nothing new is learnt of it."]
    assert "vetoed by Examiner" in markdown_report(lab.ledger, lab.number)
    page = pages.row(lab.ledger, lab.campaign_id)
    assert [said["agent"] for _, said in page.shown["talk"] if said["kind"] == "veto"] == ["Architect"]


def test_a_crew_and_its_agents_are_not_both_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    goal = ["--goal", "beat LSTM on point-robot", "--env-steps", "2M", "--dry-run", "--data-dir", str(tmp_path)]
    assert main.main([*goal, "--llm", "offline", "--crew", "single"]) == 0
    assert main.main([*goal, "--llm", "offline", "--crew", "singel"]) == 2
    assert "Did you mean 'single'?" in capsys.readouterr().err
    assert main.main([*goal, "--llm", "offline", "--crew", "single", "--agents", "Architect"]) == 2
    assert "either --crew or --agents" in capsys.readouterr().err
