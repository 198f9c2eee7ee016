"""Writes the samples in this folder with the libraries themselves; README.md has the command."""

import decimal
import io
import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent


def picture(mode, shade):
    size = (3, 2)
    values = np.arange(6 * len(Image.new(mode, size).getbands()), dtype=np.uint8) + shade
    return Image.frombytes(mode, size, values.tobytes())


def encoded(form, shade):
    out = io.BytesIO()
    picture("RGB", shade).save(out, format=form)
    return out.getvalue()


MDS = {
    "data": "bytes", "text": "str", "int": "int", "any": "ndarray", "typed": "ndarray:float32",
    "fixed": "ndarray:int16:2,2", "uint8": "uint8", "int32": "int32", "float16": "float16",
    "float64": "float64", "str_int": "str_int", "str_float": "str_float",
    "str_decimal": "str_decimal", "pil": "pil", "jpeg": "jpeg", "png": "png", "json": "json",
}  # fmt: skip


def mds_row(number):
    return {
        "data": bytes([number, 0, 255]), "text": f"ünï {number}", "int": -number,
        "any": np.array([[number, 2]], np.uint16), "typed": np.array([number, 0.5], np.float32),
        "fixed": np.full((2, 2), number, np.int16), "uint8": np.uint8(190 + number),
        "int32": np.int32(-number), "float16": np.float16(number / 2),
        "float64": np.float64(number / 3), "str_int": 10**15 + number, "str_float": number / 7,
        "str_decimal": decimal.Decimal("0.1000") + number, "pil": picture("RGB", number),
        "jpeg": picture("RGB", number), "png": picture("L", number),
        "json": {"n": number, "list": [1, "é"]},
    }  # fmt: skip


def mds():
    # It imports all of torchvision for image data sets, which are not used here.
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        whole = f"torchvision{name}"
        sys.modules[whole] = mock.MagicMock(__spec__=ModuleSpec(whole, None))
    sys.modules["torchvision.datasets"].VisionDataset = type("VisionDataset", (), {})
    from streaming import MDSWriter

    for compression in (None, "zstd", "gz", "bz2", "br", "snappy"):
        place = HERE / ("mds" if compression is None else f"mds-{compression}")
        columns = MDS if compression is None else {"text": "str", "int": "int"}
        settings = {"compression": compression, "hashes": ["sha1", "xxh64"]}
        with MDSWriter(out=str(place), columns=columns, size_limit=1500, **settings) as writer:
            for number in range(4 if compression is None else 60):
                row = mds_row(number)
                writer.write({name: row[name] for name in columns})
    images = {"images": "list[jpeg]", "pil": "list[pil]", "array": "jpeg_array", "x": "pkl"}
    with MDSWriter(out=str(HERE / "mds-odd"), columns=images) as writer:
        pictures = [picture("RGB", 1), picture("RGB", 2)]
        array = [bytearray(encoded("JPEG", 1))]
        writer.write({"images": pictures, "pil": pictures, "array": array, "x": {1}})


def litdata_row(number):
    return {
        "text": f"ünï {number}", "flag": number % 2 == 0, "int": -number, "float": number / 3,
        "data": bytes([number, 0, 255]), "array": np.array([[number, 2]], np.int32),
        "flat": np.array([number, 3], np.float16), "tensor": torch.full((2, 2), number / 2),
        "tokens": torch.arange(number + 1), "pil": picture("RGB", number),
        "nested": {"a": number, "b": [number, f"x{number}"]},
    }  # fmt: skip


def litdata():
    from litdata.streaming import Cache, item_loader

    for name, settings, rows in (
        ("litdata", {"chunk_bytes": 600}, [litdata_row(n) for n in range(5)]),
        ("litdata-arrow", {"chunk_bytes": 2000, "compression": "zstd"}, [
            {"text": f"ünï {n}", "int": -n} for n in range(60)
        ]),
        *(
            (f"litdata-{level}", {
                "chunk_bytes": 2000, "compression": "zstd", "compression_level": level,
                "compression_batch_size": 4 if level == "batch" else None,
            }, [{"text": f"ünï {n}", "x": torch.tensor([n, 1])} for n in range(60)])
            for level in ("chunk", "batch", "sample")
        ),
        ("litdata-pickle", {"chunk_bytes": 600}, [{"x": 1 + 2j, "y": 1}]),
        ("litdata-tuple", {"chunk_bytes": 600}, [(n, f"x{n}") for n in range(3)]),
        ("litdata-tokens", {"chunk_size": 8, "item_loader": item_loader.TokensLoader(4)}, [
            torch.arange(n, n + 3, dtype=torch.int32) for n in range(0, 15, 3)
        ]),
    ):  # fmt: skip
        place = HERE / name
        place.mkdir()
        cache = Cache(str(place), **settings)
        for number, row in enumerate(rows):
            cache[number] = row
        cache.done()
        cache.merge()


def webdataset():
    from webdataset import ShardWriter, TarWriter

    place = HERE / "webdataset"
    place.mkdir()
    with ShardWriter(str(place / "train-%02d.tar.gz"), maxcount=3, verbose=0) as writer:
        for number in range(5):
            row = {"__key__": f"a/{number:03d}", "jpg": picture("RGB", number), "cls": number}
            row |= {"txt": f"ünï {number}", "json": {"n": number, "é": [1]}}
            row |= {"npy": np.array([number, 0.5]), "seg.png": picture("L", number)}
            writer.write(row)
    with TarWriter(str(place / "test-00.tar")) as writer:
        writer.write({"__key__": "one", "txt": "x", "cls": 1})


def main():
    for place in HERE.iterdir():
        if place.is_dir():
            shutil.rmtree(place)
    mds()
    litdata()
    webdataset()
    sizes = {p.name: sum(f.stat().st_size for f in p.rglob("*")) for p in HERE.iterdir()}
    sys.stdout.write(json.dumps(sizes, indent=1))


if __name__ == "__main__":
    main()
