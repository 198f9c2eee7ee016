"""No password and no key is shown to people or kept on disk."""

import pickle

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from raytrain_plus.cli import app
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.observe.journal import Journal
from raytrain_plus.redaction import HIDDEN, names_a_secret, redact, redacted, secrets_of
from raytrain_plus.storage.errors import ExistsError, StorageError, StoreError
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter
from tests.elastic.scripted_pool import make_spec

SECRET = "hunter2x"


@pytest.mark.parametrize(
    "text",
    [
        f"http://ann:{SECRET}@host/a.parquet could not be reached",
        f"s3://ann:pass@{SECRET}@host:9000/bucket: no answer",
        f"sftp://{SECRET}@host/folder",
        f"http://ann:{SECRET}@[2001:db8::1]:80/a",
        f"https://host/a?X-Amz-Signature={SECRET}&part=1",
        f"https://account.blob.core.windows.net/c/a?sv=2020&sig={SECRET}",
        f"{{'secret': '{SECRET}', 'anon': False}}",
        f'{{"aws_secret_access_key": "{SECRET}"}}',
        f"got password={SECRET}, user=ann",
        f"DATABASE_PASSWORD: {SECRET}",
        f"Authorization: Bearer {SECRET}.{SECRET}",
        f"header 'Basic {SECRET}{SECRET}=='",
        f"{{'token': '{SECRET}'}}",
    ],
)
def test_texts_that_look_like_a_secret_are_not_shown(text):
    shown = redact(text)
    assert SECRET not in shown
    assert HIDDEN in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/folder/a.parquet, row 3: 'label' is 1.5",
        "http://127.0.0.1:8265 answers",
        "ray://head:10001 and host:6379",
        "tokens: 128, key=value, sample 3 of part-00001.arrow",
        "step 10: loss 0.5 (was 0.4) at 12:30:01",
        "write to maintainers@example.org",
        "file:///data/user@host/a.parquet",
    ],
)
def test_other_texts_are_shown_unchanged(text):
    assert redact(text) == text


_WORDS = st.sampled_from(
    ["http://", "s3://", "ann", ":", "@", "/", "?", "&", "sig=", "token", "'", "password", "=", " "]
)


@given(st.lists(_WORDS, max_size=12).map("".join))
@example("http://http://?http://@")
def test_a_text_without_secrets_is_unchanged(text):
    once = redact(text)
    assert redact(once) == once


def test_data_is_redacted_at_any_depth_and_keeps_its_structure():
    given = {"a": [f"http://u:{SECRET}@h", 1, None], "b": {"password": SECRET, "epochs": 3}}
    assert redacted(given) == {
        "a": ["http://***@h", 1, None],
        "b": {"password": "***", "epochs": 3},
    }


def test_options_with_a_secret_are_recognised():
    options = {"key": "abcdef", "client_kwargs": {"password": SECRET}, "region": "eu", "pin": "1"}
    assert secrets_of(options) == {"abcdef", SECRET}
    assert redact(f"refused: abcdef for {SECRET} in eu", secrets_of(options)).count(HIDDEN) == 2
    assert names_a_secret("s3_secret_key")
    assert not names_a_secret("tokens")


def test_the_journal_holds_no_secrets(tmp_path):
    journal = Journal(tmp_path)
    written = journal.write("warning", text=f"http://ann:{SECRET}@host is slow")
    journal.write("run", run="r", identity={"data": f"s3://k:{SECRET}@bucket", "password": SECRET})
    journal.close()
    assert SECRET not in journal.path.read_text()
    assert written["text"] == "http://***@host is slow"


def test_an_error_of_a_store_says_where_without_the_password():
    url = f"http://ann:{SECRET}@127.0.0.1:9/folder"
    store = Store(url, deadline=0.2, stall=0.2)
    with pytest.raises(StoreError) as raised:
        store.read("a.parquet")
    assert SECRET not in str(raised.value)
    assert "http://***@127.0.0.1:9/folder" in str(raised.value)
    assert SECRET not in repr(store)


def test_no_repr_shows_a_secret(tmp_path):
    url = f"s3://ann:{SECRET}@bucket/a"
    elastic = ElasticConfig(checkpoint_storage=url, checkpoint_options={"pin": SECRET}, spares=3)
    stream = Stream(url, storage_options={"pin": SECRET}, window=5)
    spec = make_spec(tmp_path, data=url, elastic=elastic, resume_from=(url, 3))
    for one, shown in ((elastic, "spares=3"), (stream, "window=5"), (spec, "seed=17")):
        assert SECRET not in repr(one)
        assert "s3://***@bucket/a" in repr(one)
        assert shown in repr(one)


@pytest.mark.parametrize("scheme", ["http", "nosuch"])
def test_an_error_of_a_source_says_where_without_the_password(scheme):
    url = f"{scheme}://ann:{SECRET}@127.0.0.1:9/a.parquet"
    with pytest.raises((StorageError, DataError)) as raised:
        open_source(Stream(url, deadline=0.2))
    assert SECRET not in str(raised.value)
    assert f"{scheme}://***@127.0.0.1:9" in str(raised.value)


@pytest.mark.parametrize("kind", [StorageError, StoreError, ExistsError, DataError])
def test_whatever_an_error_about_data_or_a_store_quotes_it_shows_no_password(kind):
    error = kind(f"s3://ann:{SECRET}@bucket/a has no rows")
    assert str(error) == "s3://***@bucket/a has no rows"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_an_error_of_a_command_says_where_without_the_password(command):
    url = f"nosuch://ann:{SECRET}@127.0.0.1:9/a.parquet"
    answered = CliRunner().invoke(app, ["data", command, url])
    assert answered.exit_code != 0
    said = answered.output + answered.stderr
    assert SECRET not in said
    assert "***@127.0.0.1:9" in said


def test_what_a_command_says_of_a_stream_names_its_place_without_the_password():
    """A file system in memory, whose URL may hold anything."""
    url = f"memory://ann:{SECRET}@host/stream"
    source = pa.table({"x": [1, 2, 3]})
    with StreamWriter(url) as writer:
        writer.write(source)
    copy = f"memory://ann:{SECRET}@host/copy"
    for command in (["inspect", url], ["verify", url], ["convert", url, copy]):
        answered = CliRunner().invoke(app, ["data", *command, "--json"])
        assert answered.exit_code == 0, answered.stderr
        assert SECRET not in answered.output + answered.stderr
        assert "memory://***@host/" in answered.stdout
