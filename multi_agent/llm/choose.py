"""`choose_llm(name)`: which chat model the crew uses, decided and checked before anything runs. Cheap to import."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from core.errors import InputError, nearest, unknown_name
from core.words.commands import command
from core.words.text import STARS, keys_in, without_password
from experiments.vocabulary import readable_id

if TYPE_CHECKING:
    from experiments.ledger import Ledger

TIMEOUT_S = 90.0
MAX_RETRIES = 2  # the only retries there are: the vendor's client, which honours Retry-After
MAX_OUTPUT_TOKENS = 8_192  # of one answer, hidden reasoning included; a token cap reserves as much before a call


@dataclass(frozen=True)
class Provider:
    """A vendor or local server as LangChain names it."""

    key: str | None  # environment variable of its API key
    package: str
    extra: str | None  # extra of this project that installs the package; None where it is always there
    default_model: str | None  # what `--llm auto` takes
    host: str = ""
    """Where its key may be sent, over https alone."""
    address: tuple[str, ...] = ()
    """Environment variables with which its client is sent to another address."""
    output_limit: str = "max_tokens"  # how its LangChain class calls the limit of an answer
    secrets: tuple[str, ...] = ()
    """How the names of environment variables begin out of which its client takes keys, tokens, account and further headers."""


PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider(
        "OPENAI_API_KEY",
        "langchain_openai",
        None,
        "gpt-5-mini",
        host="api.openai.com",
        address=("OPENAI_API_BASE", "OPENAI_BASE_URL"),
        secrets=("OPENAI_",),
    ),
    "anthropic": Provider(
        "ANTHROPIC_API_KEY",
        "langchain_anthropic",
        "anthropic",
        "claude-sonnet-4-5",
        host="api.anthropic.com",
        address=("ANTHROPIC_API_URL", "ANTHROPIC_BASE_URL"),
        secrets=("ANTHROPIC_",),
    ),
    "google_genai": Provider(
        "GOOGLE_API_KEY",
        "langchain_google_genai",
        "google",
        "gemini-2.5-flash",
        host="generativelanguage.googleapis.com",
        output_limit="max_output_tokens",
        secrets=("GOOGLE_", "GEMINI_"),
    ),
    "ollama": Provider(
        None,
        "langchain_ollama",
        "ollama",
        None,
        host="ollama.com",
        output_limit="num_predict",
        secrets=("OLLAMA_API_KEY",),
    ),
}
ALIASES = {"google": "google_genai", "gemini": "google_genai", "claude": "anthropic"}
OWN_KEY = "SSM_LLM_KEY"
"""Environment variable of the key for a server that is not the vendor's, where none is named."""
_USER = re.compile(r"//[^/]*@")
_hidden: dict[str, str] = {}  # what `redact` takes out beside the vendors' keys, and what stands for it
EXAMPLES = (
    "offline, auto, openai:gpt-5-mini, anthropic:claude-sonnet-4-5, ollama:qwen3:8b, command:claude -p, replay:c-0007"
)


@dataclass(frozen=True)
class LLMChoice:
    """A chat model that can be built. `make_chat` imports LangChain, so it is called only when the crew starts."""

    name: str
    """"offline", "provider:model", "command:program", "replay:campaign", "mcp" or "mcp:agent,agent"."""
    kind: Literal["offline", "langchain", "replay", "mcp"]
    make_chat: Callable[[], Any] | None = None
    """Builds the LangChain chat model; None for offline and replay, which the workflow builds, and for mcp, which has none."""
    note: str = ""
    """Why `auto` chose it, or where it is served."""
    price_name: str = ""
    """Its name in the price list; empty where another server than the vendor's answers."""
    base_url: str | None = None
    """Where it is served if not at its vendor's, as it is recorded: without a password."""
    key_env: str | None = None
    """Environment variable of its key, where one was named."""
    tools: bool = True
    """Whether it calls tools itself, as the preflight found; else it is asked in text."""

    def describe(self) -> str:
        """One sentence for the start of a campaign."""
        if self.kind == "offline":
            return (
                "No language model is in use: the built-in offline researcher follows a fixed procedure and takes every "
                "configuration from the optimizer"
                + (f" ({self.note})" if self.note else "")
                + ". Choose a model with --llm openai:... | anthropic:... | ollama:..."
            )
        if self.kind == "replay":
            return f"No language model is in use: the crew's recorded answers are replayed ({self.name})."
        if self.kind == "mcp":
            who = self.name.partition(":")[2] or "every agent"
            return (
                f"An MCP client takes the turns of {who} ({command('mcp')}); the optimizer goes on where it is silent."
            )
        return f"The crew uses {self.name}" + (f" ({self.note})." if self.note else ".")


def choose_llm(name: str | None = "auto", base_url: str | None = None, key_env: str | None = None) -> LLMChoice:
    """The chat model for `--llm name`.

    name: "auto" (or None), "offline", "replay:<campaign>", "provider:model", or "command:<program>", which takes a prompt on
    standard input and answers on standard output; "mcp", or "mcp:" and names of agents, for turns of MCP clients.
    base_url: another server than the vendor's. It never gets the vendor's key: it gets the one in the environment variable
    `key_env`, else in SSM_LLM_KEY, else none.
    Raises InputError for an unknown provider, an address that is none, a missing key or package: it says what to set or install.
    """
    name = (name or "auto").strip()
    if key_env is not None:
        _check_key(key_env)
    provider_name, _, model = name.partition(":")
    if name in ("auto", "offline") or provider_name in ("replay", "command", "mcp"):
        if base_url is not None or key_env is not None:
            option = "--base-url" if base_url is not None else "--llm-key-env"
            raise InputError(f"{option} needs the model's name too: --llm openai:<model> {option} ...")
        if name == "auto":
            return _auto()
        if name == "offline":
            return LLMChoice("offline", "offline")
        if provider_name == "command":
            return _program(name, model)
        if provider_name == "mcp":
            return LLMChoice(name, "mcp")
        if not re.fullmatch(r"(?:c-?)?(?:\d+|@\w+)", model):
            raise InputError(
                f"--llm {name}: got campaign {model!r}, allowed: an id such as c-0007 or @last. See: {command('campaigns')}"
            )
        return LLMChoice(name, "replay")
    provider_name = ALIASES.get(provider_name, provider_name)
    if provider_name not in PROVIDERS:
        raise unknown_name("--llm provider", provider_name, PROVIDERS, hint=f"Examples: {EXAMPLES}.")
    if not model:
        raise InputError(f"--llm {name}: the model is missing. Examples: {EXAMPLES}.")
    return _langchain(provider_name, model, base_url, key_env)


def _program(name: str, line: str) -> LLMChoice:
    """A program that answers on standard output; InputError where there is none of that name. A key in its words is shown nowhere."""
    shown = without_password(name)
    if shown == name and STARS in name:
        raise InputError(
            f"--llm {name}: a key stood where the stars are, and was not recorded. Give the program again, with it"
        )
    for key in keys_in(name):
        _hidden[key] = STARS
    try:
        words = shlex.split(line)
    except ValueError as problem:
        raise InputError(f"--llm {shown}: a shell could not read it ({problem})") from None
    if not words or shutil.which(words[0]) is None:
        got = repr(words[0]) if words else "nothing"
        raise InputError(
            f"--llm command: got {got}, allowed: a program that can be run, such as --llm 'command:claude -p'"
        )

    def make_chat() -> Any:
        from multi_agent.llm.command import CommandChat

        return CommandChat(command=line)

    return LLMChoice(shown, "langchain", make_chat, tools=False)


def _check_key(key_env: str) -> None:
    """InputError where `key_env` names no environment variable that is set; what looks like a key is not repeated."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", key_env):
        raise InputError("--llm-key-env: allowed is the name of an environment variable that holds the key, not a key")
    if not os.environ.get(key_env):
        vendors = tuple(
            start for vendor in PROVIDERS.values() for start in vendor.secrets
        )  # never suggested: such a key is its vendor's
        known = [name for name in os.environ if re.search(r"(?i)key|token", name) and not name.startswith(vendors)]
        close = nearest(key_env, known)
        hint = f". Did you mean {close!r}?" if close else f"; set it first: export {key_env}=..."
        raise InputError(f"--llm-key-env: no environment variable {key_env!r} is set{hint}")
    _hidden[os.environ[key_env].strip()] = f"<{key_env}>"


def _langchain(
    provider_name: str, model: str, base_url: str | None = None, key_env: str | None = None, note: str = ""
) -> LLMChoice:
    provider = PROVIDERS[provider_name]
    option = "--base-url"
    for variable in provider.address if base_url is None else ():
        if os.environ.get(variable):
            base_url, option = os.environ[variable], variable
            break
    host = "" if base_url is None else _host(option, base_url)
    if importlib.util.find_spec(provider.package) is None:
        raise InputError(
            f"--llm {provider_name}:{model} needs the package {provider.package}. "
            f'Install it: pip install -e ".[{provider.extra}]"'
        )
    at_vendor = base_url is None or base_url.partition(host)[0] + host == f"https://{provider.host}"
    foreign = not at_vendor or (
        provider_name == "ollama" and base_url is None
    )  # Ollama is on this machine, or a friend's
    own_key = OWN_KEY if base_url is not None or provider.key else None  # Ollama on this machine takes none unasked
    key_name = key_env or (own_key if foreign else provider.key)
    if provider.key and not foreign and not os.environ.get(key_name or ""):
        raise InputError(
            f"--llm {provider_name}:{model} needs the environment variable {key_name}, which is not set. "
            f"Set it: export {key_name}=...  Or run without a key: --llm offline"
        )

    def make_chat() -> Any:
        from langchain.chat_models import init_chat_model

        from multi_agent.llm.openai_servers import AnyServerChat

        options: dict[str, Any] = {provider.output_limit: MAX_OUTPUT_TOKENS}
        if provider_name != "ollama":
            options |= {"timeout": TIMEOUT_S, "max_retries": MAX_RETRIES}
        if provider_name == "ollama":
            options["num_ctx"] = 16_384  # Ollama's default silently cuts a crew's prompts
            if key := os.environ.get(key_name or ""):  # its client takes a key as a header alone
                options["client_kwargs"] = {"headers": {"Authorization": f"Bearer {key}"}}
        if base_url is not None:
            options["base_url"] = base_url
        if provider.key and key_name:  # always said: left out, the client would take its vendor's from the environment
            options["api_key"] = os.environ.get(key_name) or "not-needed"
        with _without(provider.secrets if foreign else ()):
            if provider_name == "openai":
                return AnyServerChat(model=model, **options)
            chat = init_chat_model(f"{provider_name}:{model}", **options)
            getattr(chat, "_client", None)  # Anthropic's is made at its first use, and reads its variables then
            return chat

    where = f"served at {host}" if base_url else ""
    if base_url and option != "--base-url":
        where += f", as {option} says"
    has_key = bool(os.environ.get(key_name or ""))
    if foreign and (provider.key or has_key):
        where = "; ".join(filter(None, (where, f"its key is {key_name}" if has_key else "no key is sent")))
    name = f"{provider_name}:{model}"
    return LLMChoice(
        name,
        "langchain",
        make_chat,
        "; ".join(filter(None, (note, where))),
        name if base_url is None or not foreign else "",
        base_url=None if base_url is None else _USER.sub("//", base_url),
        key_env=key_env,
    )


@contextmanager
def _without(beginnings: tuple[str, ...]) -> Iterator[None]:
    """The environment without the variables whose names begin so, while a client is made for a server that may not have them."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(beginnings)}
    try:
        yield
    finally:
        os.environ |= hidden


def _host(option: str, base_url: str) -> str:
    """The host, and the port where one is named, of an address; InputError for what is none."""
    try:
        address = urlsplit(base_url)
        host, _ = address.hostname, address.port
    except ValueError:  # a port that is no number, half a bracket
        address, host = urlsplit(""), None
    # Programs differ in what they make of a backslash or a space: such an address could name two hosts.
    if address.scheme not in ("http", "https") or not host or not re.fullmatch(r"[!-\[\]-~]+", base_url):
        shown = _USER.sub("//", base_url)
        raise InputError(f"{option}: got {shown!r}, allowed: an address such as http://127.0.0.1:8000/v1")
    if address.password:
        _hidden[address.password] = "<password>"
    return address.netloc.rpartition("@")[2]


def with_campaign(choice: LLMChoice, ledger: Ledger) -> LLMChoice:
    """The choice with the campaign that it replays by its id, whichever way it was named; InputError for none."""
    if choice.kind != "replay":
        return choice
    campaign = ledger.resolve(choice.name.partition(":")[2], "campaign")
    return replace(choice, name=f"replay:{readable_id('c', campaign)}")


def keep_choice(
    ledger: Ledger, campaign: int, choice: LLMChoice, *, max_tokens: int | None, max_usd: float | None
) -> None:
    """Record with which model, at which address, with which key's variable and under which caps a campaign is worked on."""
    now: dict[str, Any] = {"llm": choice.name, "base_url": choice.base_url, "llm_key_env": choice.key_env}
    now |= {"max_tokens": max_tokens, "max_usd": max_usd}
    if [event.payload for event in ledger.events(campaign, ["model"])][-1:] != [now]:
        ledger.record_event(campaign, "model", "human", now)


def _auto() -> LLMChoice:
    """The first of: a key that is set (and its package), a local Ollama that answers, the offline researcher."""
    missing = []
    for provider_name, provider in PROVIDERS.items():
        if provider.key and provider.default_model and os.environ.get(provider.key):
            if importlib.util.find_spec(provider.package) is None:
                missing.append(
                    f'{provider.key} is set, but its package is missing: pip install -e ".[{provider.extra}]"'
                )
                continue
            return _langchain(provider_name, provider.default_model, note=f"{provider.key} is set")
    if importlib.util.find_spec("langchain_ollama") is not None:
        models = ollama_chat_models()
        if models:
            return _langchain("ollama", models[0], note="a local Ollama answers")
    return LLMChoice("offline", "offline", note="; ".join(missing) or "no API key is set and no local Ollama answers")


def ollama_chat_models(base_url: str | None = None) -> list[str]:
    """Models of the Ollama at an address (default: on this machine) that chat, newest first; empty where none answers within half a second."""
    host = base_url or os.environ.get("OLLAMA_HOST") or "127.0.0.1:11434"
    address = urlsplit(host if "//" in host else f"//{host}")
    connection = None
    try:
        connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port or 11434, timeout=0.5)
        connection.request("GET", "/api/tags")
        answer = json.loads(connection.getresponse().read())
        return [model["name"] for model in answer["models"] if not _only_embeds(model)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException):
        return []
    finally:
        if connection is not None:
            connection.close()


def _only_embeds(model: Mapping[str, Any]) -> bool:
    """Whether an entry of Ollama's list turns text into vectors alone: what it says of itself, else its family and its name."""
    if model.get("capabilities"):
        return "completion" not in model["capabilities"]
    family = str((model.get("details") or {}).get("family", ""))
    return "bert" in family or bool(re.search(r"embed|minilm|^bge-", model["name"]))


def redact(text: str) -> str:
    """`text` without any key of a chat model: error messages of servers sometimes quote it."""
    vendors = (provider.key for provider in PROVIDERS.values() if provider.key)
    keys = {os.environ.get(name, "").strip(): f"<{name}>" for name in (*vendors, OWN_KEY)}
    for key, shown in (_hidden | keys).items():
        if len(key) >= 6:
            text = text.replace(key, shown)
    return text
