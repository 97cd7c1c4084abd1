"""The one place to look any family up: `get_family(id)`, `FAMILIES`. Which files define them is not known here."""

from __future__ import annotations

from functools import lru_cache

from core.errors import InputError
from env_runner.task_family import (
    FAMILIES,
    POOLS,
    RESOLVERS,
    ActionInfo,
    EnvOptions,
    Pool,
    TaskFamily,
    TaskVectorEnv,
)


@lru_cache(maxsize=64)
def get_family(family_id: str) -> TaskFamily:
    """The family with this id: a listed one, or one of a kind that a file has a resolver for, such as
    `metaworld-ml1:<task>` or any environment id of Gymnasium. Each is made once.

    Raises InputError with the nearest match and the list for a name that is none of these, and with the pip command
    where an extra is missing.
    """
    if family_id not in FAMILIES and isinstance(family_id, str):
        for example in RESOLVERS:
            family = RESOLVERS[example](family_id)
            if family is not None:
                return family
    return FAMILIES[family_id]  # raises with the nearest match


__all__ = [
    "FAMILIES",
    "POOLS",
    "ActionInfo",
    "EnvOptions",
    "InputError",
    "Pool",
    "TaskFamily",
    "TaskVectorEnv",
    "get_family",
]
