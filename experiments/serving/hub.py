"""A kept model as a repository of the Hugging Face Hub: weights, specification, and a card whose numbers come from rows.

The token is HF_TOKEN's or that of the Hub's own login; it is read by `huggingface_hub` and by nothing here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import select

from core.errors import InputError, bad_value
from core.files import write_atomic
from core.words.text import harmless
from experiments.judging.statistics import mean_interval
from experiments.ledger.ids import archived, is_written_as_id, readable_id
from experiments.ledger.models import Claim, Run, Verdict
from experiments.ledger.store import Ledger
from experiments.metrics import FIRST_EPISODE
from experiments.runs.few_shot import kept_model, model_of_run
from experiments.runs.paths import Paths

TEMPLATES = Path(__file__).parent / "templates"
FILES = ("model.safetensors", "model.json", "spec.json", "README.md")
TAGS = ["reinforcement-learning", "meta-reinforcement-learning"]
LIBRARY = "autonomous-ssm-metarl"


@dataclass(frozen=True)
class Measured:
    """What a run's configuration came to."""

    run: Run
    runs: tuple[Run, ...]
    """All of its configuration and length on these tasks with a score, one a seed; the run is one of them."""
    score: float
    mean: float
    interval: tuple[float, float] | None
    """95 % interval of the mean over seeds; None with one seed."""


def write_folder(ledger: Ledger | None, paths: Paths, model: str, repo: str, folder: Path) -> Path:
    """Write what is pushed to `folder`. model: a run such as r-0042 or @best, or a folder of `saved_models/`.

    InputError for a model that is not there or whose score is not shown yet, and for a name that the Hub does not take.
    """
    _check_name(repo)
    if ledger is not None and is_written_as_id(model) and not Path(model).exists():
        run = ledger.get_run(ledger.resolve(model, "run"))
        source, measured = Path(model_of_run(ledger, paths, model)), _measured(ledger, run)
        spec, card = json.dumps(run.spec, indent=1), _card(ledger, repo, run, measured)
    else:
        source = kept_model(model)
        beside = [source.with_name(name) for name in ("spec.json", "README.md")]
        if not all(file.is_file() for file in beside):
            raise InputError(f"push: {model} has no {' and '.join(f.name for f in beside if not f.is_file())} beside it, allowed: a folder of saved_models/, or a run such as r-0042")  # fmt: skip
        spec, text = (file.read_text() for file in beside)
        content = json.loads(spec)
        matter = _front_matter(repo, content["policy"]["model"]["kind"], content["task"], None)
        card = text if text.startswith("---\n") else matter + text
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(source.with_suffix(suffix), folder / f"model{suffix}")
        write_atomic(folder / "spec.json", spec.encode())
        write_atomic(folder / "README.md", card.encode())
    except OSError as error:
        raise InputError(f"push: cannot write {folder} ({error.strerror})") from None
    return folder


def push_folder(folder: Path, repo: str, *, private: bool = False) -> str:
    """Make the repository where there is none, commit the folder's files, and return the address of the commit.

    InputError without a token, and for whatever the Hub or the network refuses, in one sentence that holds no secret.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if get_token() is None:
        raise InputError("push: there is no token for the Hub: set HF_TOKEN (with the right to write), or log in with: hf auth login")  # fmt: skip
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        pushed = api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(FILES), commit_message=f"{LIBRARY}: {folder.name}")  # fmt: skip
    except HFValidationError as error:
        raise bad_value("--to", repo, f"user/repo ({error})") from None
    except HfHubHTTPError as error:
        code = error.response.status_code
        why = {401: "it does not know this token", 403: "this token may not write there", 404: "there is no such user or organisation"}  # fmt: skip
        raise InputError(f"push: the Hub refused {repo} ({code}: {why.get(code, error.server_message or 'no reason given')})") from None  # fmt: skip
    except Exception as error:
        if not _is_of_the_network(error):
            raise
        raise InputError(f"push: {api.endpoint} cannot be reached ({type(error).__name__}); what would be pushed is in {folder}") from None  # fmt: skip
    return pushed.commit_url


def _is_of_the_network(error: Exception) -> bool:
    """Whether the Hub's HTTP library, whichever its release uses, could not send or receive."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests")  # fmt: skip


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise bad_value("--to", repo, f"user/repo ({str(error).partition(chr(10))[0]})") from None
    if repo.count("/") != 1:
        raise bad_value("--to", repo, "user/repo, such as someone/s5-halfcheetah-vel")


def _measured(ledger: Ledger, run: Run) -> Measured:
    if run.score is None:
        raise InputError(f"push: {readable_id('r', run.id)} has no score ({run.status}), allowed: a run that was evaluated")  # fmt: skip
    with ledger.session() as session:
        runs_away, campaigns_away = archived(session)
        alike = select(Run).where(Run.variant_hash == run.variant_hash, Run.pool == run.pool, Run.task_version == run.task_version, Run.status == "done")  # fmt: skip
        found = [r for r in session.scalars(alike.order_by(Run.id)) if r.spec["env_steps"] == run.spec["env_steps"]]
    first: dict[int, Run] = {run.seed: run}  # of reruns with the same seed one counts
    for other in found:
        put_away = other.id in runs_away or other.campaign_id in campaigns_away
        if other.score is not None and not put_away and not ledger.score_is_hidden(other):
            first.setdefault(other.seed, other)
    runs = tuple(sorted(first.values(), key=lambda r: r.seed))
    scores = np.array([r.score for r in runs])
    return Measured(run, runs, run.score, float(scores.mean()), mean_interval(scores) if len(runs) > 1 else None)


def _card(ledger: Ledger, repo: str, run: Run, measured: Measured) -> str:
    with ledger.session() as session:
        claim = None if run.claim_id is None else session.get_one(Claim, run.claim_id)
        verdict = None if claim is None else session.scalar(select(Verdict).where(Verdict.claim_id == claim.id))
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_plain)  # fmt: skip
    environment.filters["id"] = readable_id_of
    body = environment.get_template("hub_card.md.j2").render(
        run=run,
        m=measured,
        claim=claim,
        verdict=verdict,
        scored_by=run.spec.get("scored_by", FIRST_EPISODE),
        pool=run.pool,
    )
    return _front_matter(repo, run.model, run.task, measured) + body


def readable_id_of(row: Any) -> str:
    """Such as r-0042, of a row of the ledger."""
    return readable_id({Run: "r", Claim: "k", Verdict: "v"}[type(row)], row.id)


def _plain(value: Any) -> Any:
    return harmless(value) if isinstance(value, str) else value


def _front_matter(repo: str, model: str, task: str, measured: Measured | None) -> str:
    """The card's metadata, which the Hub reads: what it is, and the score with its interval as a result."""
    from huggingface_hub import EvalResult, ModelCardData

    results: Sequence[EvalResult] | None = None
    if measured is not None:
        value = f"{measured.mean:.2f}"
        if measured.interval is not None:
            value += f" +/- {(measured.interval[1] - measured.interval[0]) / 2:.2f}"
        scored_by = measured.run.spec.get("scored_by", FIRST_EPISODE)
        kind = "mean_reward" if scored_by.startswith("return_") else scored_by
        name = f"mean score over {len(measured.runs)} seed{'s' if len(measured.runs) > 1 else ''}"
        results = [EvalResult("reinforcement-learning", task, f"{task} ({measured.run.pool} tasks)", kind, value, metric_name=name)]  # fmt: skip
    data = ModelCardData(
        library_name=LIBRARY,
        tags=[*TAGS, model],
        model_name=repo.partition("/")[2] if results else None,
        eval_results=list(results) if results else None,
    )
    return f"---\n{data.to_yaml()}\n---\n"
