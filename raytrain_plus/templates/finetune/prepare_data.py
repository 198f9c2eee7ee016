"""Write the base model and the text to fine-tune on into data/.

    python prepare_data.py                               a small sample of both
    python prepare_data.py BASE.safetensors TEXTS/*.txt  your own

The sample's base model is trained here, in seconds, on sources of Python's standard library. It is
then fine-tuned on their docstrings, which are English.
"""

import ast
import shutil
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import nn

from raytrain_plus.models.gpt import GPT
from task import CONTEXT

DATA = Path(__file__).parent / "data"
SEPARATOR = b"\0"  # between texts
LIBRARY = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))


def docstrings(paths=LIBRARY):
    """Return the docstrings of some files."""
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > CONTEXT:
                    found.append(text.encode())
    return found


def rows_of(texts):
    """Cut texts into rows; each row's last byte is the next row's first."""
    values = np.frombuffer(SEPARATOR.join(texts), np.uint8)
    starts = np.arange((len(values) - 1) // CONTEXT)[:, None] * CONTEXT
    return values[starts + np.arange(CONTEXT + 1)]


def train_base(path, steps=200, files=40):
    """Train the base model of the sample: code, without fine-tuning."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the model is so small that more would only wait for each other
    rows = torch.from_numpy(rows_of([file.read_bytes() for file in LIBRARY[:files]]).copy()).long()
    model = GPT(vocabulary=256, context=CONTEXT, layers=2, width=64, heads=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (32,))]
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).transpose(1, 2), batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path.parent.mkdir(exist_ok=True)
    kept = {name: value.clone() for name, value in model.state_dict().items()}  # no shared memory
    save_file(kept, path)
    print(f"wrote {path}: loss {loss.item():.2f}")


def write(texts, data=DATA):
    """Write every tenth text as evaluation data, and the others as training data."""
    data.mkdir(exist_ok=True)
    if len(texts) < 10:  # a few long ones: the last tenth of each
        parts = [(text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]) for text in texts]
        train, evaluation = map(list, zip(*parts, strict=True))
    else:
        train = [text for number, text in enumerate(texts) if number % 10]
        evaluation = texts[::10]
    for name, some in (("train", train), ("evaluation", evaluation)):
        rows = rows_of(some)
        tokens = pa.FixedSizeListArray.from_arrays(rows.reshape(-1), CONTEXT + 1)
        pq.write_table(pa.table({"tokens": tokens}), data / f"{name}.parquet")
        print(f"wrote {data / name}.parquet: {len(rows)} rows")


def main(base=None, *texts):
    if base is None:
        train_base(DATA / "base.safetensors")
        write(docstrings())
    else:
        DATA.mkdir(exist_ok=True)
        shutil.copyfile(base, DATA / "base.safetensors")
        write([Path(name).read_bytes() for name in texts])


if __name__ == "__main__":
    main(*sys.argv[1:])
