"""`choose_llm(name)`: which chat model the crew uses, decided and checked before anything runs. Cheap to import."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from core.errors import InputError, unknown_name
from core.words.commands import command
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
    output_limit: str = "max_tokens"  # how its LangChain class calls the limit of an answer


PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider("OPENAI_API_KEY", "langchain_openai", None, "gpt-5-mini"),
    "anthropic": Provider("ANTHROPIC_API_KEY", "langchain_anthropic", "anthropic", "claude-sonnet-4-5"),
    "google_genai": Provider(
        "GOOGLE_API_KEY", "langchain_google_genai", "google", "gemini-2.5-flash", output_limit="max_output_tokens"
    ),
    "ollama": Provider(None, "langchain_ollama", "ollama", None, output_limit="num_predict"),
}
ALIASES = {"google": "google_genai", "gemini": "google_genai", "claude": "anthropic"}
EXAMPLES = "offline, auto, openai:gpt-5-mini, anthropic:claude-sonnet-4-5, ollama:qwen3:8b, replay:c-0007"


@dataclass(frozen=True)
class LLMChoice:
    """A chat model that can be built. `make_chat` imports LangChain, so it is called only when the crew starts."""

    name: str
    """"offline", "provider:model" or "replay:campaign"."""
    kind: Literal["offline", "langchain", "replay"]
    make_chat: Callable[[], Any] | None = None
    """Builds the LangChain chat model; None for offline and replay, which the workflow builds."""
    note: str = ""
    """Why `auto` chose it, or where it is served."""
    price_name: str = ""
    """Its name in the price list; empty where another server than the vendor's answers."""

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
        return f"The crew uses {self.name}" + (f" ({self.note})." if self.note else ".")


def choose_llm(name: str | None = "auto", base_url: str | None = None) -> LLMChoice:
    """The chat model for `--llm name`.

    name: "auto" (or None), "offline", "replay:<campaign>" or "provider:model".
    base_url: any server that speaks OpenAI's protocol; then no key is needed.
    Raises InputError for an unknown provider, a missing key or package: it says what to set or install.
    """
    name = (name or "auto").strip()
    if name == "auto":
        return _auto(base_url)
    if name == "offline":
        return LLMChoice("offline", "offline")
    provider_name, _, model = name.partition(":")
    if provider_name == "replay":
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
    return _langchain(provider_name, model, base_url)


def _langchain(provider_name: str, model: str, base_url: str | None, note: str = "") -> LLMChoice:
    provider = PROVIDERS[provider_name]
    if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
        raise InputError(f"--base-url: got {base_url!r}, allowed: an address such as http://127.0.0.1:8000/v1")
    if importlib.util.find_spec(provider.package) is None:
        raise InputError(
            f"--llm {provider_name}:{model} needs the package {provider.package}. "
            f'Install it: pip install -e ".[{provider.extra}]"'
        )
    own_server = base_url is not None and provider_name == "openai"
    if provider.key and not os.environ.get(provider.key) and not own_server:
        raise InputError(
            f"--llm {provider_name}:{model} needs the environment variable {provider.key}, which is not set. "
            f"Set it: export {provider.key}=...  Or run without a key: --llm offline"
        )

    def make_chat() -> Any:
        from langchain.chat_models import init_chat_model

        options: dict[str, Any] = {provider.output_limit: MAX_OUTPUT_TOKENS}
        if provider_name != "ollama":
            options |= {"timeout": TIMEOUT_S, "max_retries": MAX_RETRIES}
        if provider_name == "ollama":
            options["num_ctx"] = 16_384  # Ollama's default silently cuts a crew's prompts
        if base_url is not None:
            options["base_url"] = base_url
        if own_server and not os.environ.get("OPENAI_API_KEY"):
            options["api_key"] = "not-needed"
        return init_chat_model(f"{provider_name}:{model}", **options)

    host = urlsplit(base_url).netloc.rpartition("@")[2] if base_url else ""
    where = f"served at {host}" if host else ""
    name = f"{provider_name}:{model}"
    return LLMChoice(name, "langchain", make_chat, "; ".join(filter(None, (note, where))), "" if base_url else name)


def with_campaign(choice: LLMChoice, ledger: Ledger) -> LLMChoice:
    """The choice with the campaign that it replays by its id, whichever way it was named; InputError for none."""
    if choice.kind != "replay":
        return choice
    campaign = ledger.resolve(choice.name.partition(":")[2], "campaign")
    return replace(choice, name=f"replay:{readable_id('c', campaign)}")


def _auto(base_url: str | None) -> LLMChoice:
    """The first of: a key that is set (and its package), a local Ollama that answers, the offline researcher."""
    if base_url is not None:
        raise InputError("--base-url needs the model's name too: --llm openai:<model> --base-url ...")
    missing = []
    for provider_name, provider in PROVIDERS.items():
        if provider.key and provider.default_model and os.environ.get(provider.key):
            if importlib.util.find_spec(provider.package) is None:
                missing.append(
                    f'{provider.key} is set, but its package is missing: pip install -e ".[{provider.extra}]"'
                )
                continue
            return _langchain(provider_name, provider.default_model, None, f"{provider.key} is set")
    if importlib.util.find_spec("langchain_ollama") is not None:
        models = _ollama_models()
        if models:
            return _langchain("ollama", models[0], None, "a local Ollama answers")
    return LLMChoice("offline", "offline", note="; ".join(missing) or "no API key is set and no local Ollama answers")


def _ollama_models() -> list[str]:
    """Models of the Ollama on this machine, newest first; empty where none answers within half a second."""
    host = os.environ.get("OLLAMA_HOST") or "127.0.0.1:11434"
    address = urlsplit(host if "//" in host else f"//{host}")
    connection = None
    try:
        connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port or 11434, timeout=0.5)
        connection.request("GET", "/api/tags")
        answer = json.loads(connection.getresponse().read())
        return [model["name"] for model in answer["models"]]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return []
    finally:
        if connection is not None:
            connection.close()


def redact(text: str) -> str:
    """`text` without any provider's key: error messages of servers sometimes quote it."""
    for provider in PROVIDERS.values():
        key = os.environ.get(provider.key or "")
        if key and len(key) >= 6:
            text = text.replace(key, f"<{provider.key}>")
    return text
