"""The parsers that `fuzzing` tries: each yields (name, cases, make(rng), parse(data), the errors that it tells).

`make` gives a damaged file; `parse` raises anything else, AssertionError included, when a law of the parser is broken.
"""

import gzip
import io
import json
import re
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from damage import damaged, damaged_tensors, ordered, twisted
from PIL import Image

from wsnotebook import datasets, networks, report, runs, training, zoo
from wsnotebook.layout import COUNTERS, Layout
from wsnotebook.methods import codec, header
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweights import Bank


def same(a: dict, b: dict) -> bool:
    """Whether two states are equal bit for bit."""
    return list(a) == list(b) and all(
        (a[n].dtype, a[n].shape) == (b[n].dtype, b[n].shape)
        and (not a[n].numel() or a[n].reshape(-1).view(torch.uint8).equal(b[n].reshape(-1).view(torch.uint8)))
        for n in a
    )


STATE = {
    "fc1.weight": (torch.arange(240) * 37 % 11 % 5 - 2).view(12, 20) * 0.25,
    "fc1.bias": torch.arange(12) / 16 - 0.4,
    "conv.weight": (torch.arange(72) * 5 % 7 % 3 - 1).view(4, 2, 3, 3) * 0.1,
    "half": torch.linspace(-1, 1, 5).half(),
    "steps": torch.tensor(7),
    "none": torch.zeros(0, 3),
}


def codecs():
    files = [codec.encode(STATE, mode=mode) for mode in codec.MODES]

    def whole(data):
        assert same(codec.decode(data), STATE)

    def forge(rng):
        data = damaged(rng, files)
        if len(data) < 8 or rng.random() < 0.5:
            mode = rng.randrange(2)
            head = header.inflated(header.Source(files[mode][9:]).take(files[mode][7]), 1 << 20)
            head = header.deflated(damaged(rng, [head]))
            tail = files[mode][9 + files[mode][7] :]
            data = files[mode][:7] + header.varint(len(head)) + files[mode][8:9] + head + tail
        data = b"WS" + bytes([16 | data[2] & 1]) + data[3:]
        return data[:3] + zlib.crc32(data[2:3] + data[7:]).to_bytes(4, "little") + data[7:]

    def forged(data):
        state = codec.decode(data, limit=1 << 18)
        assert sum(tensor.nbytes for tensor in state.values()) <= 1 << 18
        assert codec.describe(data, limit=1 << 18).bytes == len(data)

    yield "codec", 2000, lambda rng: damaged(rng, files), whole, codec.CodecError
    yield "codec, checksum right", 2000, forge, forged, codec.CodecError


def a_zoo() -> zoo.Zoo:
    layout = Layout.of(networks.build("mlp-6-4-3"), exclude=COUNTERS)
    facts = {"model": np.arange(5), "init": np.array(["he", "é'\"\n", "he", "he", ""])}
    return zoo.Zoo(torch.randn(5, layout.d), layout, facts, "mlp-6-4-3", {"build": {"classes": 3}})


def saved(content) -> bytes:
    """What torch.save writes, without what is of this process."""
    buffer, out = io.BytesIO(), io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as parts, zipfile.ZipFile(out, "w") as kept:
        for part in parts.infolist():
            if not part.filename.endswith("serialization_id"):
                kept.writestr(zipfile.ZipInfo(part.filename), parts.read(part))
    return out.getvalue()


def weights(folder: Path):
    one = a_zoo()
    files = [ordered(nets.save(folder / "zoo.safetensors").read_bytes()) for nets in (one, one.filter([1]))]
    at = folder / "damaged é.safetensors"

    def load_zoo(data):
        at.write_bytes(data)
        nets = zoo.load(at)
        assert len(nets) == len(nets.weights)
        again = zoo.load(nets.save(folder / "again.safetensors"))
        assert torch.equal(again.weights, nets.weights)
        for fact, values in nets.facts.items():
            np.testing.assert_array_equal(again.facts[fact], values)

    yield "zoo.load", 2000, lambda rng: damaged_tensors(rng, files), load_zoo, ValueError

    net = networks.build("mlp-6-4-3").state_dict()
    single = [safetensors.torch.save(net), safetensors.torch.save(STATE)]
    old, zipped = io.BytesIO(), [saved({"state_dict": net, "epoch": 3})]
    kept = [saved({"network": net, "history": {"loss": [0.5]}, "best": (1.0, 2, net)})]
    torch.save({"half": STATE["half"]}, old, _use_new_zipfile_serialization=False)
    old = re.sub(rb"\d{9,}", lambda address: b"1" * len(address[0]), old.getvalue())  # a storage's, of this process

    def state(suffix):
        path = folder / f"damaged{suffix}"

        def parse(data):
            path.write_bytes(data)
            for tensor in training.read_state(path).values():
                assert tensor.nbytes <= len(data)

        return parse

    def checkpoint(data):
        at.write_bytes(data)
        nets = zoo.from_checkpoints([at], "mlp-6-4-3")
        assert nets.weights.isfinite().all()

    def load_kept(data):
        (folder / "kept.pt").write_bytes(data)
        training.load_kept(folder / "kept.pt")

    yield "read_state .safetensors", 1000, lambda rng: damaged_tensors(rng, single), state(".safetensors"), ValueError
    yield "read_state .pt", 1500, lambda rng: damaged(rng, zipped), state(".pt"), ValueError
    yield "read_state .pth of old", 1000, lambda rng: damaged(rng, [old]), state(".pth"), ValueError
    yield "load_kept", 500, lambda rng: damaged(rng, kept), load_kept, (ValueError, RuntimeWarning)
    yield "from_checkpoints", 500, lambda rng: damaged_tensors(rng, single[:1]), checkpoint, ValueError

    nets = [networks.build(name) for name in ("mlp-6-5-5-3", "mlp-6-5-3")]
    bank = [Bank(nets, allocate(nets, torch.zeros(1, 6))).save(folder / "bank.safetensors").read_bytes()]
    bank = [ordered(bank[0])]

    def load_bank(data):
        at.write_bytes(data)
        loaded = Bank.load(at, nets)
        assert all(out.shape == (1, 3) for out in loaded(torch.zeros(1, 6)))

    yield "Bank.load", 1000, lambda rng: damaged_tensors(rng, bank), load_bank, ValueError

    layout = Layout.of(networks.build("mlp-6-4-3"))

    def other_state(rng):
        parts = {name: list(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)}
        for _ in range(rng.randrange(3)):
            shape = parts[rng.choice(list(parts))]
            shape[rng.randrange(len(shape))] = rng.randrange(8)
        batch = rng.choice(([], [], [0], [2], [3, 0]))
        made = {name: rng.choice((batch, batch, batch, [1])) + shape for name, shape in parts.items()}
        return json.dumps({name: shape for name, shape in made.items() if rng.random() < 0.95})

    def flatten(text):
        made = {name: torch.zeros(shape) for name, shape in json.loads(text).items()}
        row = layout.flatten(made)
        back = layout.unflatten(row)
        assert {name: t.shape for name, t in back.items()} == {name: made[name].shape for name in back}

    yield "Layout.flatten", 1000, other_state, flatten, ValueError


def tables(folder: Path):
    idx = [bytes((0, 0, 8, 3)) + np.array((5, 4, 3), ">u4").tobytes() + bytes(range(60))]
    cifar = [bytes((1, 2)) * 1537, bytes(2 * 3074)]

    def read_idx(data):
        assert datasets.read_idx(data, (5, 4, 3), 200, "file").max() < 200

    def read_cifar(data):
        x, y = datasets.read_cifar(data, 2, (20, 100), "file")
        assert x.shape == (2, 3, 32, 32)
        assert y.max() < 100

    yield "read_idx", 1500, lambda rng: damaged(rng, idx), read_idx, ValueError
    yield "read_cifar", 500, lambda rng: damaged(rng, cifar), read_cifar, ValueError

    (file,) = datasets._RELEASES["cifar100"]
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for place in ("cifar-100-binary/readme", *file.inside):
            info = tarfile.TarInfo(place)
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
    plain = plain.getvalue()[:6144]
    path = folder / "cifar-100-binary.tar.gz"

    def archive(rng):
        if rng.random() < 0.3:
            return damaged(rng, [gzip.compress(plain, 1)])
        return gzip.compress(damaged(rng, [plain, plain[:512], plain[1536:2048]]), 1)

    def unpack(data):
        path.write_bytes(data)
        assert len(datasets._unpacked(path, file)) == 2

    yield "archives", 1000, archive, unpack, ValueError

    root, pictures = folder / "pictures", []
    for k, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (4, 4), 9 * k + i).save(root / name / f"{i}.png")
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"):
        buffer = io.BytesIO()
        Image.frombytes("RGB", (4, 4), bytes(range(0, 240, 5))).save(buffer, kind)
        pictures.append(buffer.getvalue())

    def folder_of(data):
        (root / "a" / "0.png").write_bytes(data)
        x, _ = datasets.from_folder(root, size=4).train
        assert x.shape[2:] == (4, 4)

    yield "from_folder", 1500, lambda rng: damaged(rng, pictures), folder_of, ValueError


def texts(folder: Path):
    source = 'scale = "quick"\nseed: int = 0\nsizes = (1, {"a": None})\noverrides = {}'
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Title\n", "\n", "**A\n", "promise.**"]},
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source},
    ]
    notebook, at = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, folder / "01_x.ipynb"

    def any_notebook(rng):
        if rng.random() < 0.3:
            return damaged(rng, [json.dumps(notebook).encode()])
        if rng.random() < 0.5:
            return json.dumps(twisted(rng, notebook)).encode()
        other = damaged(rng, [source.encode()]).decode("latin-1")
        return json.dumps(notebook | {"cells": [cells[0], cells[1] | {"source": other}]}).encode()

    def read(data):
        at.write_bytes(data)
        found = runs.read(at)
        assert all(isinstance(name, str) for name in found.parameters)
        runs.route(found, {"seed": 1, "overrides": {}})

    words = [*"[](){},:-+'\"\\#&*!ab1~é\n_;=|", "0x", "1e9", "2001-13-45", "0b_", "1:30", "nan", "None", "true"]

    def text(rng):
        return "".join(rng.choice(words) for _ in range(rng.randrange(12))) * rng.choice((1, 1, 1, 500))

    yield "runs.read", 1500, any_notebook, read, ValueError
    yield "runs.parse", 2000, text, runs.parse, ()

    place = folder / "figures" / "laptop" / "08_x" / "made.json"
    place.parent.mkdir(parents=True)
    report.home = lambda: folder
    table = {"metrics": {"columns": ["a", "b"], "rows": [["x", "1"], ["y", "2"]]}}

    def any_table(rng):
        if rng.random() < 0.5:
            return damaged(rng, [json.dumps(table).encode()])
        return json.dumps(twisted(rng, table)).encode()

    def section(data):
        place.write_bytes(data)
        assert report.section("laptop/08_x/made").startswith("|")

    yield "report.section", 500, any_table, section, ValueError
