"""Throughput of `raytrain-plus data tokenize` against the tokenizers library used alone.

Run as `python -m benchmarks.tokenization [--quick] [--json]`. It needs `raytrain-plus[tokenizers]`.

The peer is `Tokenizer.encode_batch` on the same texts, which are in memory already, with as many
threads; `encode_batch_fast`, which computes no offsets, is measured for comparison. The command
reads the texts from Parquet, packs the tokens, and writes a compressed stream. All run in turn,
each in a process of its own. The peer's time is that of the call; the command's is that of reading,
tokenizing and writing, without the start of its processes. The ratio "of CPU" compares seconds of
CPU, which other programs on the machine disturb less; it includes the start of the processes. The
sample is the source of Python's standard library, and the tokenizer is trained on a part of it.
"""

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import report
from benchmarks.report import Aim

_WORDS = 8000
_PACK = 2048
_SIDES = ("encode_batch", "encode_batch_fast", "own")


def prepare(folder: Path, copies: int) -> int:
    """Write the texts and the tokenizer; returns the number of bytes of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_WORDS,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts[::4], trainer)
    made.save(str(folder / "tokenizer.json"))
    # Pieces of a file, as long as the documents of a crawl.
    pieces = [text[at : at + 4000] for text in texts for at in range(0, len(text), 4000)]
    pq.write_table(pa.table({"text": pieces * copies}), folder / "texts.parquet")
    return copies * sum(len(text.encode()) for text in texts)


def spent() -> float:
    """Return the seconds of CPU that this process and its ended processes have used."""
    return sum(os.times()[:4])


def peer(folder: Path, method: str) -> tuple[float, float]:
    """Return the seconds that a method of the library alone takes, of time and of CPU."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = pq.read_table(folder / "texts.parquet")["text"].to_pylist()
    encode = getattr(made, method)
    encode(texts[:64])
    began, used = time.perf_counter(), spent()
    encode(texts, add_special_tokens=False)
    return time.perf_counter() - began, spent() - used


def own(folder: Path, processes: int) -> tuple[float, float]:
    """Return the seconds that reading, tokenizing, packing and writing take, of time and of CPU."""
    from raytrain_plus.streams.convert import Wanted
    from raytrain_plus.streams.documents import read_documents
    from raytrain_plus.streams.encoding import ready
    from raytrain_plus.streams.tokens import Packing, read_tokenizer, tokenize_documents
    from raytrain_plus.streams.writer import StreamWriter

    made = read_tokenizer(str(folder / "tokenizer.json"), end="</s>")
    used = spent()
    with (
        tempfile.TemporaryDirectory() as place,
        ready(made.encoding, processes) as encode,
    ):
        began = time.perf_counter()
        with StreamWriter(place, warn=False) as writer:
            choice = Wanted(columns=["text"])
            data = read_documents(folder / "texts.parquet", "text", None, choice)
            tokenize_documents(data, writer, made, Packing(length=_PACK), encode)
        took = time.perf_counter() - began
    return took, spent() - used


def measure(side: str, folder: Path, threads: int) -> tuple[float, float]:
    """Run one side in a process of its own; returns its seconds of time and of CPU."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tokenization", side, str(folder), str(threads)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"},
    )
    took, used = json.loads(done.stdout.splitlines()[-1])
    return took, used


def main() -> None:
    """Measure both sides in turn, with one and with two threads or processes."""
    if len(sys.argv) > 1 and sys.argv[1] in _SIDES:
        side, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
        print(json.dumps(own(folder, threads) if side == "own" else peer(folder, side)))
        return
    options = report.options(__doc__ or "")
    repeats, copies = (3, 1) if options.quick else (5, 4)
    rows, ratios = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = prepare(folder, copies)
        for threads in (1, 2):
            times = [[measure(side, folder, threads) for side in _SIDES] for _ in range(repeats)]
            ratio, cpu = (
                round(statistics.median(alone[at] / whole[at] for alone, _, whole in times), 2)
                for at in (0, 1)
            )
            ratios.append(Aim(f"{threads}: library's time / own time", ratio, least=0.9))
            speeds = {
                f"{side}, MB/s": round(size / statistics.median(t for t, _ in taken) / 1e6, 2)
                for side, taken in zip(_SIDES, zip(*times, strict=True), strict=True)
            }
            row = {"threads or processes": threads, **speeds, "ratio": ratio, "of CPU": cpu}
            rows.append(row)
    report.show(f"{size / 1e6:.1f} MB of text into rows of {_PACK} tokens", rows)
    report.finish(ratios, {"tokenization": rows}, as_json=options.json)


if __name__ == "__main__":
    main()
