"""Negatives written by a language model behind any OpenAI-compatible endpoint, in DeGLA's five types.

DeGLA (Hu et al., arXiv:2504.16801) lets a model reshuffle, swap or replace words of each caption. The prompts are ours
(assets/negatives/prompts, one file per type); `prompts` names a folder with others, whose files are further types.
Every answer is written to a journal in the workspace first and judged afterwards, so a run that is killed asks
nothing twice and a stricter judge costs nothing. The key comes from an environment variable and is kept nowhere.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...config import fingerprint
from ...errors import InputError, UnknownName, UsageError
from ._answers import cleaned, judge
from ._contract import Around, Caption, Negative
from ._endpoint import Endpoint, Limits, check_url
from ._journal import Journal, read
from ._lexicon import FOLDER
from ._text import plain

INFO = {
    "source": "DeGLA, Hu et al., ACM MM 2025, arXiv:2504.16801",
    "version": "1",
    "licence": "that of the captions, and the terms of the model",
}

TYPES = ("reshuffle", "swap-nouns", "swap-adjectives", "replace-adjectives", "replace-nouns")
CHARACTERS_PER_TOKEN = 4.0  # of English, by all common tokenizers to within a quarter
OVERHEAD = 12  # tokens of a request besides its texts


@dataclass(frozen=True)
class Config:
    """Settings.

    base_url             of the endpoint, e.g. http://localhost:8000/v1; the library's default (OpenAI) if empty
    model                its name there
    key_variable         environment variable that holds the key; local servers need none
    types                names of prompt files
    prompts              folder of prompt files, NAME.md; ours if empty
    temperature          of sampling
    max_tokens           of an answer
    limit_name           how the endpoint calls that limit
    attempts             answers asked for until one passes the judge
    concurrency          requests at a time
    requests_per_minute  and
    tokens_per_minute    the endpoint's limits; 0 for none
    timeout              seconds
    retries              of a request that failed
    backoff              seconds before the first of them
    price_in, price_out  per million tokens, for the estimate of --dry-run
    """

    base_url: str = ""
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    types: tuple[str, ...] = TYPES
    prompts: str = ""
    temperature: float = 0.7
    max_tokens: int = 128
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    attempts: int = 2
    concurrency: int = 8
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    timeout: float = 60.0
    retries: int = 6
    backoff: float = 1.0
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        check_url(self.base_url)
        if not self.model:
            raise UsageError("llm needs a model", "Example: --set base_url=http://localhost:8000/v1 --set model=NAME")
        if min(self.attempts, self.concurrency, self.max_tokens, len(self.types)) < 1 or self.retries < 0:
            raise UsageError("llm needs at least one type, and attempts, concurrency and max_tokens of at least 1")
        if min(self.requests_per_minute, self.tokens_per_minute, self.backoff, self.price_in, self.price_out) < 0:
            raise UsageError("llm's limits, backoff and prices must not be negative")


# What does not change an answer stays out of the name of the table.
TRANSPORT = frozenset(
    {"key_variable", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "retries", "backoff",
     "price_in", "price_out", "prompts"}
)  # fmt: skip


@dataclass(frozen=True)
class _Prompt:
    """A type's prompt, and the digest of all that shapes the answers to it."""

    kind: str
    text: str
    digest: str


def _prompts(config: Config, seed: int) -> list[_Prompt]:
    folder = Path(config.prompts).expanduser() if config.prompts else FOLDER / "prompts"
    known = {file.stem: file for file in sorted(folder.glob("*.md"))}
    if not known:
        raise InputError(f"no prompt files in {folder}", "A prompt is a file NAME.md.")
    found = []
    for kind in dict.fromkeys(config.types):
        if kind not in known:
            raise UnknownName.among("prompt", kind, known, f"To add it, write {folder / kind}.md.")
        text = known[kind].read_text(encoding="utf-8").strip()
        asked = [text, config.base_url, config.model, config.temperature, config.max_tokens, seed]
        found.append(_Prompt(kind, text, fingerprint(asked)[:16]))
    return found


def _journal(prompt: _Prompt, around: Around) -> Path:
    return around.workspace.path / "negatives" / "journal" / f"{prompt.kind}-{prompt.digest}.jsonl"


def provenance(config: Config, around: Around) -> dict[str, str]:
    """The model and the hashes of the prompts."""
    hashes = (f"{one.kind} {hashlib.sha256(one.text.encode()).hexdigest()[:12]}" for one in _prompts(config, 0))
    return {"model": f"{config.model} at {config.base_url or 'the default endpoint'}", "prompts": ", ".join(hashes)}


def estimate(captions: Sequence[Caption], config: Config, seed: int, around: Around) -> dict[str, object]:
    """What a run would ask: requests, tokens, cost and minutes if every first answer passes. Nothing is sent."""
    requests, known, tokens_in, tokens_out = 0, 0, 0, 0
    for prompt in _prompts(config, seed):
        records = read(_journal(prompt, around))
        for caption in captions:
            if (caption.key, 0) in records:
                known += 1
                continue
            requests += 1
            tokens_in += _tokens(prompt.text) + _tokens(caption.text) + OVERHEAD
            tokens_out += _tokens(caption.text) + 1
    cost = (tokens_in * config.price_in + tokens_out * config.price_out) / 1e6
    rates = [(requests, config.requests_per_minute), (tokens_in + tokens_out, config.tokens_per_minute)]
    return {
        "requests": requests,
        "answered before": known,
        "input tokens": tokens_in,
        "output tokens": tokens_out,
        "cost": round(cost, 4) if config.price_in or config.price_out else "unknown; --set price_in, price_out",
        "minutes at least": round(max((amount / rate for amount, rate in rates if rate), default=0.0), 1),
    }


def _tokens(text: str) -> int:
    return int(len(text) / CHARACTERS_PER_TOKEN) + 1


def generate(captions: Sequence[Caption], config: Config, seed: int, around: Around) -> Iterator[Negative]:
    """One negative of each type per caption, in the captions' order; requests run `concurrency` at a time.

    Raises `RemoteError` if the endpoint fails for good; what was answered is kept.
    """
    prompts = _prompts(config, seed)
    with ExitStack() as stack:
        journals = [stack.enter_context(Journal(_journal(prompt, around))) for prompt in prompts]
        limits = Limits(
            config.timeout, config.retries, config.backoff, config.requests_per_minute, config.tokens_per_minute
        )
        endpoint = Endpoint(config.base_url, config.model, config.key_variable, limits)
        pool = ThreadPoolExecutor(config.concurrency, "ask")
        waiting: deque[list[Future[tuple[str, str]]]] = deque()
        asker = _Asker(endpoint, config, seed)
        done = 0
        try:
            for caption in captions:
                asked = zip(prompts, journals, strict=True)
                waiting.append([pool.submit(asker.ask, caption, prompt, journal) for prompt, journal in asked])
                if len(waiting) * len(prompts) > 4 * config.concurrency:
                    yield from _taken(waiting.popleft(), captions, done, prompts, around)
                    done += 1
            while waiting:
                yield from _taken(waiting.popleft(), captions, done, prompts, around)
                done += 1
        finally:  # an error, an interrupt, or a caller who has enough
            endpoint.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            endpoint.close()


def _taken(
    futures: Sequence[Future[tuple[str, str]]], captions: Sequence[Caption], index: int,
    prompts: Sequence[_Prompt], around: Around,
) -> Iterator[Negative]:  # fmt: skip
    seen, reasons = {plain(captions[index].text)}, []
    for prompt, future in zip(prompts, futures, strict=True):
        text, why = future.result()
        if text and plain(text) not in seen:
            seen.add(plain(text))
            yield Negative(index, text, prompt.kind)
        else:
            reasons.append(why or "the same as another type's")
    if len(seen) == 1:
        around.missed(index, "; ".join(dict.fromkeys(reasons)))
    around.tick(index + 1)


class _Asker:
    """Asks for one negative, from the journal where it was asked before."""

    def __init__(self, endpoint: Endpoint, config: Config, seed: int) -> None:
        self._endpoint, self._config, self._seed = endpoint, config, seed

    def ask(self, caption: Caption, prompt: _Prompt, journal: Journal) -> tuple[str, str]:
        """(negative, "") or ("", why there is none)."""
        why = ""
        for attempt in range(self._config.attempts):
            record = journal.records.get((caption.key, attempt))
            if record is None:
                record = self._record(caption, prompt, attempt)
                journal.add(record)
            text = cleaned(str(record.get("answer", "")))
            if text.rstrip(".").upper() == "NONE":
                return "", f"{prompt.kind}: the model sees none"
            filtered = record.get("finish") == "content_filter"
            cut = record.get("finish") == "length"
            why = "filtered" if filtered else "cut off" if cut else judge(caption.text, text, prompt.kind)
            if not why:
                return text, ""
        return "", f"{prompt.kind}: {why}"

    def _record(self, caption: Caption, prompt: _Prompt, attempt: int) -> dict[str, object]:
        config = self._config
        digest = hashlib.sha256(f"{self._seed}/{caption.key}/{attempt}".encode()).digest()
        tokens = _tokens(prompt.text) + 2 * _tokens(caption.text) + OVERHEAD
        answer = self._endpoint.complete(
            prompt.text, f"Caption: {caption.text}\nNew caption:", tokens, temperature=config.temperature,
            seed=int.from_bytes(digest[:4]) >> 1, **{config.limit_name: config.max_tokens},
        )  # fmt: skip
        return {
            "caption": caption.key,
            "attempt": attempt,
            "prompt": prompt.digest,
            "answer": answer.text,
            "finish": answer.finish,
            "input_tokens": answer.input_tokens,
            "output_tokens": answer.output_tokens,
        }
