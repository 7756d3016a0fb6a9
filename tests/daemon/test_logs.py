"""The log: priorities, one line a record, and nobody's text in it, in the figures or in crash reports."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from draftd.daemon import logs
from draftd.daemon.mask import masked
from draftd.ipc.errors import InvalidRequest
from tests.daemon.conftest import LIGHT, ROOMY, Serve

SECRET = "the zebra marries on tuesday"


def test_no_prompt_and_no_answer_in_logs_metrics_or_crash_reports(serve: Serve, tmp_path: Path) -> None:
    daemon = serve(log_level="debug", **ROOMY)
    with daemon.client() as client:
        answer = client.complete(prompt=SECRET, max_tokens=40, ignore_eos=True, temperature=1.0)
        client.complete(messages=[{"role": "user", "content": SECRET}], max_tokens=4)
        with pytest.raises(InvalidRequest):
            client.complete(prompt="x", grammar={"kind": "regex", "source": f"({SECRET}"})
        stream = client.generate(prompt=SECRET, max_tokens=8000, ignore_eos=True)
        next(stream)
        os.kill(daemon.engine().pid, signal.SIGSEGV)  # a crash, with faulthandler's report
        list(stream)
        status = client.status(full=True).model_dump_json()
    command = [sys.executable, "-m", "draftd.daemon.cli", "metrics", "--once", "--endpoint", daemon.endpoint]
    figures = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert "draftd_up 1.0" in figures
    lines = daemon.lines.read_text()
    assert "reason=length" in lines
    assert "SIGSEGV" in lines
    assert len(answer.text) > 20
    for told in (lines, figures, status):
        assert SECRET not in told
        assert "zebra" not in told
        assert answer.text[:20] not in told
    assert not list(tmp_path.rglob("core*"))


def test_content_is_logged_masked_if_the_operator_wants_it(serve: Serve) -> None:
    daemon = serve(log_content="true", **LIGHT)
    with daemon.client() as client:
        client.complete(prompt=f"{SECRET}, write to ada@example.org", max_tokens=4)
    lines = daemon.lines.read_text()
    assert f"{SECRET}, write to <e-mail>" in lines
    assert "ada@example.org" not in lines
    assert "answer=" in lines


def test_no_half_of_a_secret_is_logged_where_a_long_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_content", True)
    key = "-----BEGIN PRIVATE KEY-----" + "a" * 3000 + "-----END PRIVATE KEY-----"
    prose = "it is so. " * 500
    for cut in range(1, 19):
        begin = f"{key} {prose}"[: 2 * logs.MOST - cut]
        told = logs.content(f"{begin}4111 1111 1111 1111 {prose}")
        assert told is not None
        assert told.startswith("<key> it is so.")
        assert told.endswith(" …")
        assert "1" not in told
    assert logs.content("it is so.") == "it is so."


def test_the_journal_gets_priorities_and_others_get_words(tmp_path: Path) -> None:
    program = (
        "import logging; from draftd.daemon import logs; logs.set_up('debug', False)\n"
        "for level in (10, 20, 30, 40, 50): logging.getLogger('x').log(level, 'two\\nlines')"
    )
    log = tmp_path / "log"
    with log.open("w") as out:
        found = os.fstat(out.fileno())
        stream = f"{found.st_dev}:{found.st_ino}"
        for named in (stream, "1:2"):  # the second: a journal, but not the one that stderr goes to
            environment = {**os.environ, "JOURNAL_STREAM": named}
            subprocess.run([sys.executable, "-c", program], stderr=out, env=environment, check=True)
    prefixes = [line.removesuffix("x: two\\nlines") for line in log.read_text().splitlines()]
    assert prefixes == [
        "<7>",
        "<6>",
        "<4>",
        "<3>",
        "<2>",
        "DEBUG ",
        "INFO ",
        "WARNING ",
        "ERROR ",
        "CRITICAL ",
    ]


def test_fields_are_words_or_quoted() -> None:
    given = logs.fields(a=1, b="two words", c=None, d='say "hi"\n', e=0.123456789, f="")
    assert given == ' a=1 b="two words" d="say \\"hi\\"\\n" e=0.123457 f=""'


def test_no_name_of_an_app_steers_the_terminal() -> None:
    """JSON leaves some controls as they are: those of C1, and what turns text around."""
    name = "a\x9b2J…é\u202e\n"
    record = logging.LogRecord("x", logging.INFO, "", 0, f"request ended{logs.fields(app=name)}", None, None)
    assert logs.OneLine().format(record) == 'INFO x: request ended app="a\\u009b2J…é\\u202e\\n"'


def test_a_crash_report_has_the_place_and_not_the_words(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError(f"cannot parse {SECRET}")
    except ValueError as error:
        logs.crash(error)
        logging.getLogger("x").exception("unexpected")
        formatted = logs.OneLine().format(caplog.records[-1])
    assert "error=ValueError" in caplog.text
    assert "test_a_crash_report_has_the_place" in caplog.records[0].getMessage()
    assert SECRET not in caplog.records[0].getMessage() + formatted


def test_an_exception_nobody_caught_leaves_no_words_either() -> None:
    program = f"from draftd.daemon import logs; logs.guard(); logs.set_up('info', False); {{}}[{SECRET!r}]"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "crash error=KeyError" in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail jo.doe+x@ex-ample.co.uk, now", "mail <e-mail>, now"),
        ("<müller@straße.de>", "<<e-mail>>"),
        ("call +49 (0)30 1234-5678 or 030/123456", "call <phone> or <phone>"),
        ("(555) 123-4567, 555-123-4567", "<phone>, <phone>"),
        ("4111 1111 1111 1111; 4111-1111-1111-1111; 4111111111111111", "<card>; <card>; <card>"),
        ("OPENAI_API_KEY=sk-abc123DEF456ghi789", "OPENAI_API_KEY=<secret>"),
        ("use sk-proj-abc123DEF456 please", "use <token> please"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer <secret>"),
        ('{"password": "hunter2"}', '{"password": "<secret>"}'),
        ("https://u:p4ss@host/x", "https://<secret>@host/x"),
        ("ghp_0123456789abcdefghij AKIAIOSFODNN7EXAMPLE", "<token> <token>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc", "<token>"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----\nb", "a\n<key>\nb"),
        ("sha 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", "sha <token>"),
        ("x = 12345; 2024-11-22 12:30:45, 192.168.100.200, v1.2.3, 1_000_000", None),
        ("def add(a, b): return a + b  # tokens = 5", None),
    ],
)
def test_what_is_masked_and_what_is_not(text: str, expected: str | None) -> None:
    assert masked(text) == (text if expected is None else expected)


@given(
    before=st.text(alphabet="abc ,.;(\n", max_size=20),
    digits=st.text(alphabet="0123456789", min_size=13, max_size=19),
    separator=st.sampled_from(["", " ", "-"]),
    name=st.from_regex(r"[a-z][a-z0-9._-]{0,15}", fullmatch=True),
    host=st.from_regex(r"[a-z][a-z0-9-]{0,10}\.(com|org|museum)", fullmatch=True),
)
@example(before="", digits="4111111111111", separator="-", name="a", host="b.com")
def test_cards_and_addresses_never_pass(
    before: str, digits: str, separator: str, name: str, host: str
) -> None:
    card = separator.join(digits[index : index + 4] for index in range(0, len(digits), 4))
    shown = masked(f"{before} {card} {before} {name}@{host} {before}")
    assert card not in shown
    assert f"{name}@{host}" not in shown


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "part", ["a", "a.", "1 ", "1.", "+1", "eyJ", "https://", "a:", "password", "(0", "-", "0("]
)
def test_long_text_takes_no_long_time(part: str) -> None:
    """Linear, not quadratic: that takes minutes here, which the limit of the test does not allow."""
    text = part * (200_000 // len(part))
    assert isinstance(masked(text), str)
