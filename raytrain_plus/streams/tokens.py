"""Makes a stream of tokens from documents of text: `raytrain-plus data tokenize`.

Documents are never cut silently. Packed sequences name the document of each token. What is left
out, because the caller asked for it, is counted.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from raytrain_plus.extras import needed
from raytrain_plus.streams.columns import DataError, listed, plain_table
from raytrain_plus.streams.convert import Data, RowBatch
from raytrain_plus.streams.encoding import Encode, Encoding
from raytrain_plus.streams.packing import Documents, Ints, Packer, Sequences, WholePacker
from raytrain_plus.streams.vocabulary import Vocabulary
from raytrain_plus.streams.writer import StreamWriter

AUTO, NONE = "auto", "none"
"""What may stand for a token before or after each document: the tokenizer's own, or nothing."""

_CHUNK = 1 << 18  # characters that are tokenized together
_ROWS = 1024  # rows of tokens that are written together
_FILE = "tokenizer.json"
_DOCUMENTS, _OFFSET = "document_ids", "document_offset"


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How documents become rows.

    Attributes:
        length: tokens of a row; None gives each document a row of its own, of any length.
        overlap: how many tokens a row repeats from the end of the one before.
        whole: no document is divided; one that is longer than a row is refused.
        truncate: cut what is longer than a row, and count it; with `whole`.
        remainder: what becomes of the tokens that do not fill the last row.
    """

    length: int | None = None
    overlap: int = 0
    whole: bool = False
    truncate: bool = False
    remainder: Literal["pad", "drop"] = "pad"

    def __post_init__(self) -> None:
        if self.length is None:
            given = [name for name in ("overlap", "whole", "truncate") if getattr(self, name)]
            if given or self.remainder != "pad":
                raise DataError(
                    "each document is a row of its own without a length to pack to (`--pack`), so "
                    f"{listed(given or ['remainder'])} has no meaning: give a length."
                )
            return
        if self.length < 2:
            raise DataError(f"a row of {self.length} tokens cannot be trained on: give at least 2.")
        if not 0 <= self.overlap < self.length:
            raise DataError(
                f"the overlap is {self.overlap}, but must be at least 0 and below the length "
                f"{self.length}."
            )
        if self.truncate and not self.whole:
            raise DataError(
                "documents are divided, so none has to be truncated: truncate only with whole "
                "documents (`--no-split --truncate`)."
            )
        if self.whole and (self.overlap or self.remainder != "pad"):
            raise DataError(
                "whole documents (`--no-split`) have neither an overlap nor a remainder: leave "
                "`--overlap` and `--remainder` out."
            )


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of a file or folder, and the tokens that it adds to each document.

    Attributes:
        encoding: how texts become tokens.
        vocabulary: what the stream keeps about it.
        name: token number -> text, of the tokens in `encoding`.
        chat: turns a list of messages into text; None without a chat template.
    """

    encoding: Encoding
    vocabulary: Vocabulary
    name: Callable[[int], str]
    chat: Callable[[Any], str] | None = None


def read_tokenizer(
    place: str,
    *,
    begin: str = AUTO,
    end: str = AUTO,
    special_as_text: bool = False,
    chat: bool = False,
) -> Tokenizer:
    """Read a tokenizer.

    Args:
        place: a `tokenizer.json`, or a folder that has one, as Hugging Face's libraries write it.
        begin: the token before each document; "auto" for what the tokenizer itself puts before a
            text, "none" for nothing.
        end: the token after each document; "auto" for the `eos_token` of the folder, or what the
            tokenizer itself puts after a text.
        special_as_text: special tokens that are written in a text are tokenized as text.
        chat: documents are lists of messages; the folder's chat template turns them into text.

    Raises:
        DataError: there is no tokenizer, it cannot be read, or a token is not in it.
        MissingExtraError: a library is not installed.
    """
    path = Path(place).expanduser()
    file = path / _FILE if path.is_dir() else path
    content = _content(file, path)
    with needed("tokenizers"):
        import tokenizers  # noqa: PLC0415 - an extra
    try:
        made: Any = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{file} is not a tokenizer that can be read: {error}") from error
    settings = _settings(file.parent)
    added = [token.content for token in made.get_added_tokens_decoder().values()]
    own_begin, own_end = _own(made)
    template = None
    if chat:  # it writes these tokens itself
        template = _chat_template(file.parent)
        begin = NONE if begin == AUTO else begin
        end = NONE if end == AUTO else end
    before = own_begin if begin == AUTO else _token(made, begin, "before", added)
    if end != AUTO:
        after = _token(made, end, "after", added)
    elif (eos := settings.get("eos_token")) is not None:
        after = _token(made, eos, "after", added)
    elif own_end:
        after = own_end
    else:
        raise DataError(
            f"{file} does not say which token ends a document: name it (`--end TOKEN`; its special "
            f"tokens are {listed(added)}), or give `--end none` to add nothing."
        )
    pad = settings.get("pad_token")
    vocabulary = Vocabulary(
        size=max(made.get_vocab(with_added_tokens=True).values()) + 1,
        tokenizer=hashlib.sha256(content).hexdigest(),
        begin=before,
        end=after,
        pad=made.token_to_id(pad) if pad is not None else None,
    )
    encoding = Encoding(content.decode(), before, after, special_as_text)
    return Tokenizer(encoding, vocabulary, made.id_to_token, template)


def _content(file: Path, given: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        if not given.is_dir():
            raise DataError(f"{given} does not exist: give a folder with a {_FILE}.") from error
        raise DataError(
            f"{given} has no {_FILE}: write it with transformers, "
            f"AutoTokenizer.from_pretrained({str(given)!r}).save_pretrained({str(given)!r})."
        ) from error


def _settings(folder: Path) -> dict[str, str]:
    """Return the special tokens that a folder names: `eos_token`, `pad_token` and others."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            given = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{folder / name} is not JSON: {error}") from error
        for key in ("eos_token", "pad_token"):
            token = given.get(key)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[key] = token
    return found


def _own(made: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that a tokenizer itself puts before and after a text."""
    plain = made.encode("a", add_special_tokens=False).ids
    whole = made.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    return (), ()


def _token(made: Any, token: str, where: str, added: list[str]) -> tuple[int, ...]:
    if token == NONE:
        return ()
    number = made.token_to_id(token)
    if number is None:
        raise DataError(
            f"the token {where} each document is {token!r}, which the tokenizer does not have; its "
            f"special tokens are {listed(added)}."
        )
    return (number,)


def _chat_template(folder: Path) -> Callable[[Any], str]:
    with needed("hf"):
        from transformers import AutoTokenizer  # noqa: PLC0415 - an extra, of seconds
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if not tokenizer.chat_template:
        raise DataError(f"the tokenizer in {folder} has no chat template: give one that has.")

    def text_of(messages: Any) -> str:
        text: str = tokenizer.apply_chat_template(_without_nulls(messages), tokenize=False)
        return text

    return text_of


def _without_nulls(value: Any) -> Any:
    """Return messages without the fields that only other messages have, which Arrow fills."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


# -- documents


def tokenize_documents(
    data: Data,
    writer: StreamWriter,
    tokenizer: Tokenizer,
    packing: Packing,
    encode: Encode,
    *,
    source: str = "text",
    column: str = "input_ids",
) -> dict[str, int]:
    """Write the tokens of documents.

    Args:
        data: the documents, one in each row.
        writer: of the stream.
        tokenizer: what makes the tokens.
        packing: how documents become rows.
        encode: tokenizes with this tokenizer: `encoding.ready`. The result does not depend on its
            number of processes.
        source: the column with the text, or with the messages of a chat.
        column: the column of token numbers that is written.

    Returns:
        Counts: `documents`, `tokens` (those in rows, without padding and repeated ones),
        `sequences`, `padding`, `left_out` and `truncated` (documents).

    Raises:
        DataError: a row has no text, or a document is longer than a row and must not be divided.
    """
    rows = _Rows(tokenizer, packing, column, writer)
    texts = _Texts(data, source, tokenizer.chat)
    for documents in encode(texts.chunks()):
        rows.add(documents, texts.place)
        texts.forget(rows.documents)
    rows.finish()
    return rows.counts


class _Texts:
    """Cuts the texts of some data into chunks, and knows the place of each."""

    def __init__(self, data: Data, column: str, chat: Callable[[Any], str] | None) -> None:
        self._data, self._column, self._chat = data, column, chat
        self._places: list[tuple[int, Callable[[int], str]]] = []  # the first row of each batch
        self._rows = 0

    def chunks(self) -> Iterator[list[str]]:
        chunk: list[str] = []
        size = 0
        for batch in self._data.batches:
            self._places.append((self._rows, batch.place))
            for text in self._texts(batch):
                chunk.append(text)
                size += len(text)
                if size >= _CHUNK:
                    yield chunk
                    chunk, size = [], 0
            self._rows += batch.table.num_rows
        if chunk:
            yield chunk

    def place(self, document: int) -> str:
        """Return the place of a document that is not forgotten."""
        first, place = max((p for p in self._places if p[0] <= document), key=lambda p: p[0])
        return place(document - first)

    def forget(self, documents: int) -> None:
        """Forget the places of the first documents."""
        while len(self._places) > 1 and self._places[1][0] <= documents:
            self._places.pop(0)

    def _texts(self, batch: RowBatch) -> Iterator[str]:
        if self._column not in batch.table.column_names:
            raise DataError(
                f"{batch.place(0)}: there is no column {self._column!r}; there is "
                f"{listed(batch.table.column_names)}. Name the one with the text (`--column`)."
            )
        table = batch.table.select([self._column])
        if self._chat is None:
            table = plain_table(table)
        kind = table.schema.types[0]
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not is_text and self._chat is None:
            hint = " Give `--chat` for lists of messages." if pa.types.is_list(kind) else ""
            raise DataError(
                f"{batch.place(0)}: column {self._column!r} is {kind}, and must be text.{hint}"
            )
        for row, value in enumerate(table.column(0).to_pylist()):
            if value is None:
                raise DataError(
                    f"{batch.place(row)}: column {self._column!r} has no value: fill it in, or "
                    "drop the row."
                )
            yield value if self._chat is None else self._rendered(value, batch, row)

    def _rendered(self, messages: Any, batch: RowBatch, row: int) -> str:
        assert self._chat is not None
        try:
            return self._chat(messages)
        except Exception as error:  # the template raises what it likes
            raise DataError(
                f"{batch.place(row)}: the chat template refuses {messages!r:.80}: {error}"
            ) from error


class _Rows:
    """Writes documents of tokens as rows, and counts."""

    def __init__(
        self, tokenizer: Tokenizer, packing: Packing, column: str, writer: StreamWriter
    ) -> None:
        self._packing, self._column, self._writer = packing, column, writer
        self._end = np.array(tokenizer.encoding.after, np.int32)
        self.documents = 0
        self.counts = dict.fromkeys(
            ("documents", "tokens", "sequences", "padding", "left_out", "truncated"), 0
        )
        vocabulary = tokenizer.vocabulary
        pad = next((one for one in (vocabulary.pad, *vocabulary.end) if one is not None), 0)
        self._packer: Packer | WholePacker | None = None
        if packing.length is not None:
            self._packer = (
                WholePacker(packing.length, pad)
                if packing.whole
                else Packer(packing.length, packing.overlap, pad)
            )

    def add(self, documents: Documents, place: Callable[[int], str]) -> None:
        self.counts["tokens"] += len(documents.tokens)
        if self._packing.whole:
            documents = self._fitting(documents, place)
        self.documents += len(documents.lengths)
        if self._packer is None:
            self._write_lists(documents)
            return
        for found in self._packer.add(documents):
            self._write(found)

    def _fitting(self, documents: Documents, place: Callable[[int], str]) -> Documents:
        """Return documents of which none is longer than a row."""
        most = self._packing.length or 0
        long = np.flatnonzero(documents.lengths > most)
        if not len(long):
            return documents
        if not self._packing.truncate:
            row = int(long[0])
            raise DataError(
                f"{place(self.documents + row)}: the document has "
                f"{int(documents.lengths[row]):,} tokens, and a row has {most:,}: give longer rows "
                "(`--pack`), let documents continue in the next row (leave `--no-split` out), or "
                "cut them (`--truncate`)."
            )
        ends = np.cumsum(documents.lengths)
        kept = []
        for end, length in zip(ends.tolist(), documents.lengths.tolist(), strict=True):
            tokens = documents.tokens[end - length : end]
            if length > most:  # it still ends with the token that ends a document
                tokens = np.concatenate([tokens[: most - len(self._end)], self._end])
            kept.append(tokens)
        left_out = int((documents.lengths[long] - most).sum())
        self.counts["left_out"] += left_out
        self.counts["tokens"] -= left_out
        self.counts["truncated"] += len(long)
        return Documents(np.concatenate(kept), np.minimum(documents.lengths, most))

    def finish(self) -> None:
        self.counts["documents"] = self.documents
        if self._packer is None:
            return
        if self._packing.remainder == "drop":
            self.counts["left_out"] += self._packer.left
            self.counts["tokens"] -= self._packer.left
        else:
            for found in self._packer.finish():
                self._write(found)
        self.counts["padding"] = self._packer.padding
        if not self.counts["sequences"]:
            raise DataError(
                f"the documents have {self.counts['left_out']:,} tokens in all, which do not fill "
                f"one row of {self._packing.length:,}: pad it (`--remainder pad`), or give shorter "
                "rows (`--pack`)."
            )

    def _write(self, found: Sequences) -> None:
        for start in range(0, len(found.tokens), _ROWS):
            rows = slice(start, start + _ROWS)
            documents = found.documents[rows]
            table = {
                self._column: _fixed(found.tokens[rows]),
                _DOCUMENTS: _fixed(_narrow(documents)),
            }
            if not self._packing.whole:
                table[_OFFSET] = pa.array(_narrow(found.offsets[rows]))
            self._put(pa.table(table))

    def _write_lists(self, documents: Documents) -> None:
        ends = np.concatenate([[0], np.cumsum(documents.lengths)])
        lists = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), documents.tokens)
        self._put(pa.table({self._column: lists.cast(pa.list_(pa.int32()))}))

    def _put(self, table: pa.Table) -> None:
        self._writer.write(table)
        self.counts["sequences"] += table.num_rows


def _fixed(rows: Ints) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def _narrow(numbers: Ints) -> Ints:
    """Return numbers as int32, or as int64 if they need it."""
    if numbers.max(initial=0) < 2**31:
        narrow: Ints = numbers.astype(np.int32)
        return narrow
    return numbers


def summary(tokenizer: Tokenizer, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the counts of `tokenize_documents`, and the tokens around a document."""
    vocabulary = tokenizer.vocabulary
    return {
        **counts,
        "begin": [tokenizer.name(number) for number in vocabulary.begin],
        "end": [tokenizer.name(number) for number in vocabulary.end],
    }
