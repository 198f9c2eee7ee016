"""Write documents to learn from, and a tokenizer that is trained on them.

    python make_corpus.py               sources of Python's standard library
    python make_corpus.py BOOKS/*.txt   your own documents

It writes train.parquet and test.parquet (every tenth document), one document a row, and
tokenizer/tokenizer.json: byte-level BPE with 1,024 tokens, `<|end|>` for the end of a document.
"""

import sys
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 1024
END = "<|end|>"


def main(*names, files=150):
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:files]
    texts = [path.read_text() for path in map(Path, names or library)]
    pq.write_table(pa.table({"text": texts[::10]}), "test.parquet")
    train = [text for i, text in enumerate(texts) if i % 10]
    pq.write_table(pa.table({"text": train}), "train.parquet")

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        train,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    Path("tokenizer").mkdir(exist_ok=True)
    tokenizer.save("tokenizer/tokenizer.json")
    size = sum(len(text.encode()) for text in train) / sum(
        len(tokenizer.encode(text).ids) for text in train
    )
    print(
        f"{len(train)} documents to train, {len(texts[::10])} to test; {size:.2f} bytes per token"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
