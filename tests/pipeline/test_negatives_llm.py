"""The language model's part, against a server on this machine that answers well, badly, late or not at all."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from compal.config import from_dict
from compal.errors import InputError, RemoteError, UnknownName, UsageError
from compal.pipeline.negatives import llm
from compal.pipeline.negatives._answers import cleaned, judge
from compal.pipeline.negatives._contract import Around, Caption
from compal.pipeline.negatives._endpoint import Pace, Stopped
from compal.pipeline.negatives._journal import Journal, read
from compal.pipeline.negatives._lexicon import FOLDER
from compal.stores.items import caption_key
from compal.workspace import Workspace

TEXTS = [f"A dog number {word} sleeps on the mat." for word in ("one", "two", "three", "four", "five", "six")]
CAPTIONS = [Caption(caption_key(text), text, (f"i{index}",)) for index, text in enumerate(TEXTS)]
KEY = "sk-not-to-be-told"


def reversed_words(text):
    """A reshuffle that any judge lets pass."""
    return " ".join(reversed(text.rstrip(".").split())) + "."


class Server:
    """Answers each request by the next of `script`, then well. A step is a function of the caption that gives
    (status, headers, body bytes, seconds to wait), or an answer's text."""

    def __init__(self):
        self.script, self.requests, self.busy, self.most = [], [], 0, 0
        self.lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                caption = sent["messages"][1]["content"].split("\n")[0].removeprefix("Caption: ")
                with server.lock:
                    step = server.script.pop(0) if server.script else reversed_words
                    server.requests.append((caption, sent, dict(self.headers), time.monotonic()))
                    server.busy += 1
                    server.most = max(server.most, server.busy)
                time.sleep(0.005)
                made = step(caption) if callable(step) else step
                status, headers, body, wait = made if isinstance(made, tuple) else (200, {}, completion(made), 0)
                time.sleep(wait)
                with server.lock:
                    server.busy -= 1
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(headers.pop("Declared", len(body))))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


def completion(text, finish="stop", choices=1):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    base = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return json.dumps({**base, "choices": [choice] * choices, "usage": usage}).encode()


def failing(status, code="", headers=None):
    body = json.dumps({"error": {"message": "no", "code": code or None}}).encode()
    return lambda caption: (status, dict(headers or {}), body, 0)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def config(server, **more):
    return llm.Config(
        **{"base_url": server.url, "model": "m", "types": ("reshuffle",), "backoff": 0.01, "timeout": 5.0, **more}
    )


def run(server, path, captions=CAPTIONS, missed=lambda index, why: None, **more):
    around = Around(Workspace(Path(path)), missed=missed)
    return list(llm.generate(captions, config(server, **more), 0, around))


def test_every_caption_is_asked_once_and_answers_keep_their_place(server, tmp_path):
    found = run(server, tmp_path, concurrency=3)
    assert [(one.caption, one.text, one.type) for one in found] == [
        (index, reversed_words(text), "reshuffle") for index, text in enumerate(TEXTS)
    ]
    assert sorted(caption for caption, *_ in server.requests) == sorted(TEXTS)
    assert 1 < server.most <= 3
    sent = server.requests[0][1]
    assert sent["max_tokens"] == 128
    assert sent["temperature"] == 0.7
    assert f"Bearer {KEY}" in server.requests[0][2].values()
    assert run(server, tmp_path) == found
    assert len(server.requests) == len(TEXTS)  # the second run asked nothing


def test_the_key_is_told_to_the_endpoint_alone(server, tmp_path, caplog):
    caplog.set_level("INFO")
    run(server, tmp_path)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert kept
    assert KEY.encode() not in kept
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "step",
    [
        failing(429),
        failing(500),
        failing(503, headers={"Retry-After": "0.05"}),
        lambda caption: (200, {}, completion("x")[:40], 0),  # JSON that ends early
        lambda caption: (200, {"Declared": 999}, completion("x"), 0),  # and says so
        lambda caption: (200, {}, b"<html>busy</html>", 0),
        lambda caption: (200, {}, b"[]", 0),
        lambda caption: (200, {}, completion("x", choices=0), 0),
        lambda caption: (200, {}, completion("x", choices=3), 0),
        lambda caption: (200, {}, completion(None), 0),
        lambda caption: (200, {}, completion("x"), 1.0),  # later than the client's patience
    ],
    ids=["429", "500", "503", "cut", "short", "html", "list", "none", "three", "null", "slow"],
)
def test_what_passes_is_tried_again(server, tmp_path, step):
    server.script = [step, step]
    found = run(server, tmp_path, concurrency=2, timeout=0.4)
    assert [one.caption for one in found] == list(range(len(TEXTS)))
    assert len(server.requests) == len(TEXTS) + 2


def test_a_wait_that_the_server_asks_for_is_kept(server, tmp_path):
    server.script = [failing(429, headers={"Retry-After": "0.5"})]
    run(server, tmp_path, CAPTIONS[:1])
    assert 0.45 < server.requests[1][3] - server.requests[0][3] < 5


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (failing(401), "status 401.*Check the key"),
        (failing(404), "status 404.*base_url and model"),
        (failing(429, "insufficient_quota"), "no credit left"),
    ],
)
def test_what_stays_ends_the_run_at_once(server, tmp_path, step, message):
    server.script = [step] * 50
    with pytest.raises(RemoteError, match=message) as error:
        run(server, tmp_path, concurrency=1)
    assert KEY not in str(error.value)
    assert len(server.requests) <= 3


def test_a_server_that_never_recovers_is_named_and_the_answers_are_kept(server, tmp_path):
    server.script = [reversed_words, reversed_words, *[failing(500)] * 50]
    with pytest.raises(RemoteError, match=r"m failed 3 times, at last with status 500.*Run the same command again"):
        run(server, tmp_path, concurrency=1, retries=2)
    server.script, before = [], len(server.requests)
    assert len(run(server, tmp_path)) == len(TEXTS)
    assert len(server.requests) - before == len(TEXTS) - 2


def test_a_killed_run_asks_nothing_twice(server, tmp_path):
    """The caller stops in the middle and the last line is half written."""
    around = Around(Workspace(tmp_path))
    started = llm.generate(CAPTIONS, config(server, concurrency=1), 0, around)
    next(started)
    started.close()
    (journal,) = (tmp_path / "negatives" / "journal").glob("*.jsonl")
    asked = len(server.requests)
    assert len(read(journal)) == asked
    assert asked < len(TEXTS)
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    assert len(run(server, tmp_path)) == len(TEXTS)
    assert len(server.requests) == len(TEXTS) + 1  # the one whose answer was lost
    assert len(read(journal)) == len(TEXTS)


def test_a_process_that_is_killed_asks_nothing_twice(server, tmp_path):
    """By SIGKILL, while answers are under way; then the same command to its end."""
    coco = Path(__file__).parent.parent / "data" / "coco"
    settings = ["model=m", f"base_url={server.url}", 'types=["reshuffle"]', "concurrency=1"]
    command = [sys.executable, "-c", "from compal.cli import main; main()", "negatives", "--method", "llm", "--work",
               str(tmp_path), "--data", f"coco:{coco}", "--split", "val2017"]  # fmt: skip
    for setting in settings:
        command += ["--set", setting]
    server.script = [*[reversed_words] * 5, lambda caption: (200, {}, completion(reversed_words(caption)), 20)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(server.requests) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert not list(tmp_path.rglob("*.parquet"))
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["yield"]["with negatives"] == 20
    asked = [caption for caption, *_ in server.requests]
    assert len(asked) == 21
    assert asked[5] == asked[6]  # the one whose answer never came


def test_two_runs_at_once_are_refused(server, tmp_path):
    run(server, tmp_path, CAPTIONS[:1])
    (path,) = (tmp_path / "negatives" / "journal").glob("*.jsonl")
    with Journal(path), pytest.raises(InputError, match="another run writes"):
        run(server, tmp_path)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("I'm sorry, but I can't help with that.", "a refusal"),
        ("Here is the new caption: mat.", "a preamble"),
        ("A dog sleeps.\nOn the mat.", "several lines"),
        ("Собака спит на коврике под столом.", "another script"),
        ("", "empty"),
        ("A cat number one sleeps on the mat.", "not the same words"),
        (TEXTS[0].upper(), "the original"),
        ("word " * 30, "another length"),
    ],
)
def test_a_bad_answer_is_asked_for_once_more_and_then_counted(server, tmp_path, answer, why):
    reasons = {}
    server.script = [answer, answer]
    assert run(server, tmp_path, CAPTIONS[:1], reasons.__setitem__, concurrency=1) == []
    assert reasons == {0: f"reshuffle: {why}"}
    assert len(server.requests) == 2
    assert len({sent["seed"] for _, sent, *_ in server.requests}) == 2
    run(server, tmp_path, CAPTIONS[:1])
    assert len(server.requests) == 2  # bad answers are remembered too


def test_a_good_second_answer_is_taken(server, tmp_path):
    server.script = ["I cannot do that."]
    (one,) = run(server, tmp_path, CAPTIONS[:1])
    assert one.text == reversed_words(TEXTS[0])


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ("NONE", "the model sees none"),
        ("none.", "the model sees none"),
        (failing(400, "content_filter"), "filtered"),
        (lambda caption: (200, {}, completion("mat the", "length"), 0), "cut off"),
    ],
)
def test_what_a_model_cannot_do_is_counted(server, tmp_path, step, why):
    reasons = {}
    server.script = [step, step]
    assert run(server, tmp_path, CAPTIONS[:1], reasons.__setitem__) == []
    assert reasons == {0: f"reshuffle: {why}"}


def test_requests_are_paced(server, tmp_path):
    run(server, tmp_path, CAPTIONS[:4], requests_per_minute=600.0)
    at = sorted(when for *_, when in server.requests)
    assert at[-1] - at[0] > 0.25  # three gaps of 0.1 s


def test_tokens_are_paced_and_a_stop_ends_the_wait():
    stop = threading.Event()
    pace = Pace(60.0, stop)
    pace.wait(0.2)
    started = time.monotonic()
    pace.wait(600.0)
    assert 0.1 < time.monotonic() - started < 5
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Stopped):
        pace.wait()
    Pace(0.0, threading.Event()).wait(1e9)


def test_the_estimate_counts_what_is_left_and_its_price(server, tmp_path):
    around = Around(Workspace(tmp_path))
    two = config(server, types=("reshuffle", "swap-nouns"), price_in=1.0, price_out=2.0, requests_per_minute=6.0)
    before = llm.estimate(CAPTIONS, two, 0, around)
    assert before["requests"] == 12
    assert before["minutes at least"] == 2.0
    expected = (before["input tokens"] + 2 * before["output tokens"]) / 1e6
    assert before["cost"] == pytest.approx(expected, abs=1e-4)
    assert not server.requests
    run(server, tmp_path)
    after = llm.estimate(CAPTIONS, two, 0, around)
    assert (after["requests"], after["answered before"]) == (6, 6)
    assert "unknown" in str(llm.estimate(CAPTIONS, config(server), 0, around)["cost"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a model"),
        ({"model": "m", "base_url": "http://me:secret@host/v1"}, "password"),
        ({"model": "m", "base_url": "https://host/v1?key=abc"}, "query"),
        ({"model": "m", "base_url": "host"}, "no URL"),
        ({"model": "m", "attempts": 0}, "at least 1"),
        ({"model": "m", "price_in": -1.0}, "negative"),
        ({"model": "m", "api_key": "sk"}, "no setting 'api_key'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises((UsageError, UnknownName), match=message) as error:
        from_dict(llm.Config, settings)
    assert "secret" not in str(error.value)


def test_the_key_is_asked_for_where_one_is_needed(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        list(llm.generate(CAPTIONS, llm.Config(model="m"), 0, Around(Workspace(tmp_path))))


def test_other_prompts_are_other_types(server, tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "negate.md").write_text("Say that it is not so.")
    server.script = ["No dog number one sleeps on the mat."]
    (one,) = run(server, tmp_path, CAPTIONS[:1], types=("negate",), prompts=str(tmp_path / "prompts"))
    assert (one.type, server.requests[0][1]["messages"][0]["content"]) == ("negate", "Say that it is not so.")
    with pytest.raises(UnknownName, match=r"Did you mean 'negate'"):
        run(server, tmp_path, types=("negat",), prompts=str(tmp_path / "prompts"))


@pytest.mark.parametrize("kind", llm.TYPES)
def test_the_examples_of_our_prompts_pass_our_judge(kind):
    text = (FOLDER / "prompts" / f"{kind}.md").read_text(encoding="utf-8")
    examples = re.findall(r"^Caption: (.*)\nNew caption: (.*)$", text, re.M)
    assert len(examples) == 3
    for caption, answer in examples:
        assert judge(caption, cleaned(answer), kind) == "", (caption, answer)
        assert judge(caption, caption, kind) == "the original"


@pytest.mark.parametrize(
    ("answer", "text"),
    [('"A cat."', "A cat."), (" “A cat.”\n", "A cat."), ("**A cat.**", "A cat."), ("A cat's.", "A cat's.")],
)
def test_quotation_marks_are_taken_off(answer, text):
    assert cleaned(answer) == text
