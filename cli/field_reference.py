"""The reference of a run's fields (docs/reference/configuration.md, model-fields.md), made from the pydantic models: `python -m cli.field_reference`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adaptation.policy_adaptation import PolicyAdaptation
from core.files import write_atomic
from core.policy import PolicyConfig
from core.sequence_model import MODELS
from experiments.runs.paths import CHECKOUT
from experiments.search.side import Side
from experiments.search.space import MARKS, SearchSpace
from experiments.spec import RunSpec, WorldChanges
from meta_rl.learner import DEFAULT_LEARNER, LEARNERS
from multi_agent.agents.agent import AGENTS

FOLDER = CHECKOUT / "docs" / "reference"
HEAD = """# {title}

Made by `python -m cli.field_reference` from the pydantic models, which refuse every other field and every value out of range.
`--set model.state_dim=32 learner.gamma=0.95` takes these names, as a side of a goal does; a specification (`run --spec`, or "spec" of
`show r-0042 --json`) holds the model in `policy.model`. Defaults are the classes'; presets (`python main.py list presets`) have their own.
"Searched" names the agent whose slice a field belongs to and what a search tries; any other field keeps its default where no side names it.
"""
CHAPTERS: dict[str, tuple[str, str]] = {
    "spec": ("The run", "Fields of `experiments/spec.py`."),
    "policy": ("policy: encoder, heads and memory", "Fields of `core/policy.py`; those of `model` are in [model-fields.md](model-fields.md)."),
    "learner": ("learner: what trains the policy", "How each works: [learners](../learners.md)."),
    "adaptation": ("adaptation: gradient steps at test time", "Searched where a question has changes, or where a side names it."),
    "changes": ("changes: what happens in mid-episode", "Set by the question (\"with a joint failure\"), for both sides."),
    "model": ("Fields", "What each is: [models](../models.md). `hidden_dim` is not searched: the parameter count that both sides share decides it."),
}  # fmt: skip
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "configuration.md": ("Fields of a run", ("spec", "policy", "learner", "adaptation", "changes")),
    "model-fields.md": ("Fields of the sequence models", ("model",)),
}
"""File name -> its title and chapters."""


def field_reference(page: str) -> str:
    """A page of `PAGES`: every field with type, default, what is allowed and who searches it, as Markdown."""
    agents = {AGENTS[name].slice: name for name in AGENTS}
    space = SearchSpace(
        Side(name="all", kinds=tuple(MODELS), learners=tuple(LEARNERS)),
        "halfcheetah-vel",
        learner=DEFAULT_LEARNER,
        changes=WorldChanges(failure_step=1),
        marks=MARKS,
    )
    searched_by = {parameter.field: agents[parameter.role] for parameter in space.parameters}
    title, sections = PAGES[page]
    lines = [HEAD.format(title=title)]
    for section in sections:
        kinds = list(_classes(section))
        columns = ["field", *(["of"] if len(kinds) > 1 else []), "type", "default", "allowed", "searched", "meaning"]
        heading, words = CHAPTERS[section]
        lines += [f"## {heading}", words, "", _row(columns), _row(["---"] * len(columns))]
        for (name, *cells), owners in _fields(section, searched_by).items():
            lines.append(_row([f"`{name}`", *([_owners(owners, kinds)] if len(kinds) > 1 else []), *cells]))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _owners(owners: Sequence[str], kinds: Sequence[str]) -> str:
    """Which of the kinds have a field, in as few words as it takes."""
    others = [kind for kind in kinds if kind not in owners]
    if not others:
        return "all"
    return f"all but {', '.join(others)}" if len(others) < len(owners) else ", ".join(owners)


def _classes(section: str) -> dict[str, type[BaseModel]]:
    """Name -> configuration class of a section; the sections with a registry have one for each kind."""
    if section in ("model", "learner"):
        registry: Any = MODELS if section == "model" else LEARNERS
        return {kind: registry[kind].config_type for kind in registry}
    return {section: {"spec": RunSpec, "policy": PolicyConfig, "adaptation": PolicyAdaptation, "changes": WorldChanges}[section]}  # fmt: skip


def _fields(section: str, searched_by: dict[str, str]) -> dict[tuple[str, ...], list[str]]:
    """(name, type, default, allowed, searched, meaning) -> the kinds that have it, in the order of the names' first place."""
    found: dict[tuple[str, ...], list[str]] = {}
    for kind, owner in _classes(section).items():
        for name, field in owner.model_fields.items():
            agent = searched_by.get(f"{section}.{name}")
            if name == "kind":
                cells = (
                    name,
                    "name",
                    "",
                    f"see `list {section}s`",
                    f"{agent}, where a side leaves it open",
                    "Which one.",
                )
            else:
                words = " ".join((field.description or "").split()).replace("|", "\\|")
                cells = (
                    name,
                    _type(field.annotation),
                    _default(field),
                    _allowed(field),
                    _searched(field, agent),
                    words,
                )
            found.setdefault(cells, []).append(kind)
    names = list(dict.fromkeys(cells[0] for cells in found))
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]) if item[0][0] in names[:3] else 0, names.index(item[0][0]))))  # fmt: skip


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type(part) for part in get_args(annotation))
    if get_origin(annotation) is Literal:
        return "choice"
    if get_origin(annotation) in (tuple, list, dict):
        return " of ".join([get_origin(annotation).__name__, _type(get_args(annotation)[-1 if get_origin(annotation) is dict else 0])])  # fmt: skip
    return "none" if annotation is NoneType else annotation.__name__


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return str(getattr(value, "kind", "its defaults"))
    return _word(value)


def _allowed(field: FieldInfo) -> str:
    """The bounds, or the choices of a Literal."""
    choices = [word for part in (field.annotation, *get_args(field.annotation)) if get_origin(part) is Literal for word in get_args(part)]  # fmt: skip
    if choices:
        return ", ".join(map(_word, choices))
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{sign} {_word(getattr(m, name))}" for m in field.metadata for name, sign in signs.items() if hasattr(m, name)]  # fmt: skip
    return ", ".join(bounds)


def _searched(field: FieldInfo, agent: str | None) -> str:
    extra = field.json_schema_extra
    mark: Any = extra.get("search") if isinstance(extra, dict) else None
    if mark is None:
        return ""
    if mark["choices"] is None:
        tried = f"{mark['low']:g} to {mark['high']:g}" + (" (log)" if mark["log"] else "")
    else:
        tried = ", ".join(map(_word, mark["choices"])) + (
            f" in each of {mark['slots']} places" if mark["slots"] else ""
        )
    return f"{agent}: {tried}" + _condition(mark["only_if"])


def _condition(only_if: tuple[str, tuple[Any, ...]] | None) -> str:
    return "" if only_if is None else f"; where `{only_if[0]}` is {' or '.join(map(_word, only_if[1]))}"


def _word(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "/".join(map(_word, value)) or "empty"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        write_atomic(FOLDER / name, field_reference(name).encode())
