"""Secrets are taken out of what is written and shown, and nothing else is."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said

from factory import cli
from factory.config.redact import Redacting, clean_file, redacted, secret_in, without_secrets
from factory.run.screen import Screen

MADE = "x" * 24


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://me:pw@host/x", "https://[redacted]@host/x"),
        ("postgresql+psycopg2://u:p%40w@h/db", "postgresql+psycopg2://[redacted]@h/db"),
        (f"https://{MADE}@github.com/a", "https://[redacted]@github.com/a"),
        ("GET /x?a=1&access_token=abc&b=2", "GET /x?a=1&access_token=[redacted]&b=2"),
        ("s3?X-Amz-Signature=abc", "s3?X-Amz-Signature=[redacted]"),
        ("{'Authorization': 'Bearer abcdefgh12'}", "{'Authorization': 'Bearer [redacted]'}"),
        ('{"api_key": "abcd1234"}', '{"api_key": "[redacted]"}'),
        ("password=hunter2 user=me", "password=[redacted] user=me"),
        ("OTHER_TOKEN=abc", "OTHER_TOKEN=[redacted]"),
        (f"it was hf_{MADE}.", "it was [redacted]."),
        (f"sk-{MADE}", "[redacted]"),
    ],
)
def test_secrets_are_hidden(text: str, wanted: str) -> None:
    assert redacted(text) == wanted
    assert redacted(wanted) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlflow.db",
        "postgresql://user@host/db",
        "https://host:5000/#/experiments/1",
        "tokens: 123, eos_token: <|im_end|>, trained_tokens=12, tokens_per_second: 3.5, model.new_tokens=[<tool>]",
        "The password: it is a word. A secret: no.",
        "set HF_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        "huggingface_hub.hf_hub_download_with_retries, task-0123456789abcdef0123456789",
        "me@example.org wrote https://example.org/@me",
        "key=value monkey=1 ?page=2",
    ],
)
def test_other_texts_are_left_alone(text: str) -> None:
    assert redacted(text) == text


def test_values_of_the_environment_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a b")  # too short to be told from words
    monkeypatch.setenv("SSL_PRIVATE_KEY", "/etc/key.pem")  # a place
    assert redacted("a b: 0123456789abcdef! /etc/key.pem") == "a b: [WANDB_API_KEY]! /etc/key.pem"
    tree = {"0123456789abcdef": ["x 0123456789abcdef", 1, None]}
    assert without_secrets(tree) == {"0123456789abcdef": ["x [WANDB_API_KEY]", 1, None]}
    assert secret_in({"a": {"b": "fine"}, "c": [1, {"d": "0123456789abcdef"}]}) == "c.d"
    assert secret_in({"a": {"b": "fine"}}) is None


def test_streams_screens_and_logs_forget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    assert Redacting(stream).write("https://me:pw@host") == 18
    Redacting(stream).writelines(["\n", "password=hunter2"])
    assert stream.getvalue() == "https://[redacted]@host\npassword=[redacted]"
    assert not Redacting(stream).isatty()
    log, screen = tmp_path / "run.log", Screen()
    screen.write_to(log)
    screen.print("x" * 70 + " https://me:hunter2" + "y" * 60 + "@host")  # which is broken into lines
    screen.write_to(None)
    for text in (log.read_text(), capsys.readouterr().out):
        assert "hunter2" not in text and "yyy" not in text and "[redacted]" in text
    with log.open("ab") as file:
        file.write(b"\xff password=hunter2\n")  # past our streams
    clean_file(log)
    assert log.read_bytes().endswith(b"\xff password=[redacted]\n")
    clean_file(tmp_path / "none")


def test_what_any_verb_says_of_an_error_is_redacted(
    command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb(_: list[str]) -> int:
        print("a server's own traceback: password=hunter2", file=sys.stderr)
        raise RuntimeError("https://me:hunter2@host")

    monkeypatch.setitem(cli.VERBS, "doctor", verb)
    said = command("doctor")
    assert said.code == 1 and "RuntimeError" in said.err and "[redacted]" in said.err
    assert "hunter2" not in said.err + Path("outputs/run.log").read_text()


CHILD = """
import sys, os
from factory.execute import __main__ as child
child.end_with_parent = lambda: None
child.execute = lambda *_, **__: print("out", os.environ["HF_TOKEN"]) or sys.stderr.write("err password=hunter2") and 0
child.main([sys.argv[1]])
"""


def test_what_a_child_prints_is_redacted(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        env={**os.environ, "HF_TOKEN": "tell-nobody"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "out [HF_TOKEN]\n" and done.stderr == "err password=[redacted]"


@pytest.mark.parametrize("override", ["tracking.uri=https://me:hunter2@host", "data.path='https://h/x?token=hunter2'"])
def test_no_plan_is_made_of_a_secret(override: str, command: Callable[..., Said], here: Path) -> None:
    said = command("plan", "plan.format=json", *(("data=file",) if "data" in override else ()), override)
    assert said.code == 2 and "secret-in-settings" in said.rules
    assert "hunter2" not in said.out + said.err
    assert not list(here.iterdir())


def test_a_secret_in_the_environments_address_is_refused_too(
    command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@host:5000")
    said = command("plan")
    assert said.rules == ["secret-in-settings"] and "hunter2" not in said.err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    said = command("plan", "plan.format=json")
    assert json.loads(said.out)["settings"]["tracking"]["uri"] == "http://host:5000"
