"""`data tokenize`: every token of every document is kept, whatever cuts and processes there are."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from raytrain_plus import Mixture, Stream, Task
from raytrain_plus.configure import describe_data, open_for
from raytrain_plus.extras import MissingExtraError
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.convert import Wanted
from raytrain_plus.streams.documents import read_documents
from raytrain_plus.streams.encoding import ready
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import read_manifest
from raytrain_plus.streams.text import Dialect
from raytrain_plus.streams.tokens import Packing, read_tokenizer, tokenize_documents
from raytrain_plus.streams.writer import StreamWriter
from tests.algorithms.side import FOLDER
from tests.streams.test_plain import read_all

sys.path.append(FOLDER)
tokenizers = pytest.importorskip("tokenizers")
sys.path.remove(FOLDER)

TEXTS = [f"The {name} of number {i} is {'long ' * (i % 7)}\n" for i in range(60) for name in "ab"]
TEXTS[7] = ""
TEXTS[11] = "ünï∂ 中文 \0 🎉"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tokenizer of bytes and some merges, as Hugging Face's libraries write it."""
    path = tmp_path_factory.mktemp("tokenizer")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.enable_truncation(4)  # must not be applied
    made.enable_padding(length=50)
    made.save(str(path / "tokenizer.json"))
    settings = {"eos_token": "</s>", "pad_token": {"content": "<pad>"}}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "texts.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path)
    return path


def run(source, place, folder, processes=1, choice=None, made=None, **packing):
    made = made or read_tokenizer(str(folder))
    choice = choice or Wanted(columns=["text"])
    data = read_documents(source, "text", None, choice)
    known = {"input_ids": made.vocabulary}
    with (
        StreamWriter(place, vocabularies=known, file_size="4KB", warn=False) as writer,
        ready(made.encoding, processes) as encode,
    ):
        return tokenize_documents(data, writer, made, Packing(**packing), encode)


def texts_of(rows, folder, overlap=0):
    """Return the documents again, from packed rows."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = {}
    for number, (ids, documents) in enumerate(
        zip(rows["input_ids"], rows["document_ids"], strict=True)
    ):
        pairs = list(zip(ids, documents, strict=True))[overlap if number else 0 :]
        for token, document in pairs:
            if document >= 0:
                found.setdefault(document, []).append(token)
    assert all(one[-1] == tokenizer.token_to_id("</s>") for one in found.values())
    return [tokenizer.decode(found[n][:-1]) for n in range(len(found))]


@pytest.mark.parametrize(
    "packing",
    [
        {"length": 16},
        {"length": 9, "overlap": 1},
        {"length": 64, "whole": True},
    ],
)
def test_every_document_can_be_read_back(packing, folder, source, tmp_path):
    counts = run(source, tmp_path / "s", folder, **packing)
    rows = read_all(tmp_path / "s")
    assert texts_of(rows, folder, packing.get("overlap", 0)) == TEXTS
    padding = sum(document < 0 for row in rows["document_ids"] for document in row)
    assert counts["documents"] == len(TEXTS)
    assert counts["padding"] == padding
    assert counts["sequences"] == len(rows["input_ids"])
    assert (counts["left_out"], counts["truncated"]) == (0, 0)
    real = [t for ids, d in zip(rows["input_ids"], rows["document_ids"], strict=True)
            for t, one in zip(ids, d, strict=True) if one < 0]  # fmt: skip
    assert set(real) <= {2}  # the padding token


def test_without_packing_each_document_is_a_row(folder, source, tmp_path):
    counts = run(source, tmp_path / "s", folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = read_all(tmp_path / "s")["input_ids"]
    assert [tokenizer.decode(list(ids)[:-1]) for ids in rows] == TEXTS
    assert counts["tokens"] == sum(map(len, rows))


def test_any_number_of_processes_writes_the_same_bytes(folder, source, tmp_path, monkeypatch):
    monkeypatch.setattr("raytrain_plus.streams.tokens._CHUNK", 100)  # some 40 chunks
    for processes in (1, 2, 3):
        run(source, tmp_path / str(processes), folder, processes=processes, length=16)
    one, two, three = (
        {path.name: path.read_bytes() for path in (tmp_path / str(n)).iterdir()} for n in (1, 2, 3)
    )
    assert one == two == three
    assert len(one) > 2


def test_what_is_left_out_is_counted(folder, source, tmp_path):
    padded = run(source, tmp_path / "a", folder, length=31)
    dropped = run(source, tmp_path / "b", folder, length=31, remainder="drop")
    assert padded["left_out"] == 0
    assert padded["padding"] > 0
    assert dropped["left_out"] == 31 - padded["padding"]
    assert dropped["tokens"] + dropped["left_out"] == padded["tokens"]
    cut = run(source, tmp_path / "c", folder, length=16, whole=True, truncate=True)
    whole = run(source, tmp_path / "d", folder)
    assert cut["truncated"] > 0
    assert cut["tokens"] + cut["left_out"] == whole["tokens"]
    rows = read_all(tmp_path / "c")
    ends = sum(token == 1 for ids in rows["input_ids"] for token in ids)
    assert ends == len(TEXTS)  # also a cut document ends with the token that ends documents


def test_a_long_document_is_refused_with_its_place(folder, source, tmp_path):
    with pytest.raises(
        DataError, match=r"texts\.parquet, row \d+: the document has \d+ tokens.*--truncate"
    ):
        run(source, tmp_path / "s", folder, length=16, whole=True)
    assert not (tmp_path / "s" / "index.json").exists()


def test_a_failure_in_the_middle_publishes_nothing(folder, tmp_path):
    pq.write_table(pa.table({"text": [*TEXTS * 3, None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 361: column 'text' has no value"):
        run(tmp_path / "a.parquet", tmp_path / "s", folder, length=8)
    assert not (tmp_path / "s" / "index.json").exists()


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"text": [1]}, "column 'text' is int64, and must be text"),
        ({"text": [["a"]]}, "lists of messages"),
        ({"other": ["a"]}, "no column 'text'"),
    ],
)
def test_documents_that_are_no_text_are_refused(column, words, folder, tmp_path):
    pq.write_table(pa.table(column), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=words):
        run(tmp_path / "a.parquet", tmp_path / "s", folder)


def ids_of(tmp_path, folder, text="a</s>b", **settings):
    pq.write_table(pa.table({"text": [text]}), tmp_path / "a.parquet")
    made = read_tokenizer(str(folder), **settings)
    run(tmp_path / "a.parquet", tmp_path / str(settings), folder, made=made)
    return list(read_all(tmp_path / str(settings))["input_ids"][0])


def test_the_tokens_around_a_document_can_be_chosen(folder, tmp_path):
    plain = ids_of(tmp_path, folder, end="none")
    assert plain.count(1) == 1  # in the text
    assert ids_of(tmp_path, folder) == [*plain, 1]
    assert ids_of(tmp_path, folder, begin="<s>", end="</s>") == [0, *plain, 1]
    assert 1 not in ids_of(tmp_path, folder, end="none", special_as_text=True)
    with pytest.raises(DataError, match=r"'<x>', which the tokenizer does not have.*'</s>'"):
        read_tokenizer(str(folder), begin="<x>")


def test_the_tokens_of_the_tokenizer_s_own_template_are_found(folder, tmp_path):
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_truncation()
    made.no_padding()
    made.save(str(tmp_path / "plain.json"))
    with pytest.raises(DataError, match=r"does not say which token ends a document.*--end none"):
        read_tokenizer(str(tmp_path / "plain.json"))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.save(str(tmp_path / "own.json"))
    found = read_tokenizer(str(tmp_path / "own.json")).vocabulary
    assert (found.begin, found.end, found.pad) == ((0,), (1,), None)


@pytest.mark.parametrize(
    ("packing", "words"),
    [
        ({"overlap": 1}, "without a length"),
        ({"remainder": "drop"}, "'remainder' has no meaning"),
        ({"length": 1}, "at least 2"),
        ({"length": 8, "overlap": 8}, "below the length 8"),
        ({"length": 8, "truncate": True}, "whole documents"),
        ({"length": 8, "whole": True, "overlap": 1}, "neither an overlap nor a remainder"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(packing, words):
    with pytest.raises(DataError, match=words):
        Packing(**packing)


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no tokenizer\.json.*save_pretrained"):
        read_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer that can be read"):
        read_tokenizer(str(tmp_path))


def test_without_the_library_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"raytrain-plus\[tokenizers\]"):
        read_tokenizer(str(folder))


def test_text_files_are_documents(folder, tmp_path):
    for name, text in (("b/2.txt", "two"), ("a.txt", "one"), ("README.md", "no document")):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text(text, encoding="utf-16")
    choice = Wanted(dialect=Dialect(encoding="utf-16"))
    run(tmp_path / "d", tmp_path / "s", folder, choice=choice, length=16)
    assert texts_of(read_all(tmp_path / "s"), folder) == ["one", "two"]
    with pytest.raises(DataError, match=r"a\.txt, byte 0: it is not utf-8.*--encoding"):
        run(tmp_path / "d", tmp_path / "t", folder, length=16)


class Small(Task):
    def model(self):
        return nn.Embedding(8, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters())

    def forward(self, model, batch):
        return model(batch["input_ids"])

    def loss(self, outputs, batch):  # noqa: ARG002 - a task's
        return outputs.mean(dim=(1, 2))


def test_a_model_that_knows_too_few_tokens_is_refused(folder, source, tmp_path):
    run(source, tmp_path / "s", folder, length=16)
    task = Small()
    open_for(task, str(tmp_path / "s"), "the data").close()  # nothing is known of the model
    task.vocabulary_size = 300
    open_for(task, str(tmp_path / "s"), "the data").close()
    task.vocabulary_size = 299
    with pytest.raises(DataError, match=r"numbers up to 299, and the model knows 299 tokens"):
        open_for(task, str(tmp_path / "s"), "the data")


def test_data_of_two_tokenizers_does_not_go_together(folder, source, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_tokens(["more"])
    made.save(str(other / "tokenizer.json"))
    run(source, tmp_path / "one", folder, length=16)
    again = read_tokenizer(str(other), end="</s>")
    run(source, tmp_path / "two", folder, made=again, length=16)
    one, two = (Stream(tmp_path / name, cache=tmp_path / "c") for name in ("one", "two"))
    with pytest.raises(DataError, match=r"different tokenizers: .* in stream 'a'.* in stream 'b'"):
        open_source(Mixture({"a": one, "b": two}))
    open_source(Mixture({"a": one, "b": one})).close()
    source = open_source(one)
    with pytest.raises(DataError, match=r"different tokenizers: .* in the evaluation data"):
        describe_data(Small(), source, two)
    source.close()
    assert read_manifest(Store(tmp_path / "two")).vocabularies["input_ids"].size == 301
