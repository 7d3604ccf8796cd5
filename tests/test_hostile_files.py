"""Hostile files, made by hand: tensors that lie or unfold, pickles that would run, archives that reach out."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch
from damage import tensors_file
from fuzzed_parsers import a_zoo
from fuzzing import within
from PIL import Image

from wsnotebook import cli, datasets, networks, training, zoo
from wsnotebook.comparisons import own
from wsnotebook.methods import codec, header
from wsnotebook.methods.superweight_plan import allocate
from wsnotebook.methods.superweights import Bank

MIB = 1 << 20


# ---- safetensors that lie ----------------------------------------------------------------------------------------


def told(dtype, shape, *offsets):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = tensors_file({"w": told("F32", [2], 0, 8)}, bytes(8))
LIES = {
    "header longer than the file": (1 << 20).to_bytes(8, "little") + GOOD[8:],
    "header of 2^63": (1 << 63).to_bytes(8, "little") + GOOD[8:],
    "header of no bytes": bytes(8) + GOOD[8:],
    "header that ends too early": (20).to_bytes(8, "little") + GOOD[8:],
    "huge shape": tensors_file({"w": told("F32", [1 << 40], 0, 8)}, bytes(8)),
    "shape that overflows": tensors_file({"w": told("F32", [1 << 62, 4], 0, 8)}, bytes(8)),
    "offsets beyond the end": tensors_file({"w": told("F32", [1 << 28], 0, 1 << 30)}, bytes(8)),
    "offsets backwards": tensors_file({"w": told("F32", [2], 8, 0)}, bytes(8)),
    "overlapping tensors": tensors_file({"v": told("F32", [2], 0, 8), "w": told("F32", [2], 4, 12)}, bytes(12)),
    "two tensors of one name": GOOD[:8] + GOOD[8:-8].replace(b'{"w"', b'{"w":1,"w"') + bytes(8),
    "brackets": tensors_file({"__metadata__": {"layout": "x"}, "w": [[[]]]}, b"") + b"[" * 100_000,
    "bytes after the end": GOOD + b"more",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_of_tensors_that_lies_is_refused_by_every_reader(tmp_path, lie):
    path = tmp_path / "w.safetensors"
    path.write_bytes(LIES[lie])
    nets = [networks.build("mlp-6-5-3")] * 2
    for read in (
        training.read_state,
        zoo.load,
        lambda path: zoo.from_checkpoints([path], "mlp-6-4-3"),
        lambda path: Bank.load(path, nets),
    ):
        with within(8 * MIB), pytest.raises(ValueError, match=r"w\.safetensors: not readable"):
            read(path)


def zoo_file(path, n, d, **text):
    """A zoo's file with `n` rows of `d` zeros and a fact of as many zero bytes."""
    header = {"format": "wsnotebook zoo 1", "facts": '["f"]', "categories": "{}", "network": '"x"', "provenance": "{}"}
    header |= {"layout": json.dumps([["w"], [[d]], ["weight"]])} | text
    parts = {"weights": told("F32", [n, d], 0, 4 * n * d)}
    parts |= {"facts.f": told("U8", [n], 4 * n * d, (4 * d + 1) * n)}
    path.write_bytes(tensors_file({"__metadata__": header} | parts, bytes((4 * d + 1) * n)))
    return path


@pytest.mark.parametrize(
    ("n", "d", "text", "message"),
    [
        (20_000, 1, {"categories": json.dumps({"f": ["x" * 20_000]})}, "much more than the file"),
        (1, 1, {"provenance": "[" * 100_000}, "RecursionError"),
        (1, 1, {"layout": '[["w"], [[-1]], ["weight"]]'}, "no layout"),
        (1, 1, {"layout": '[["w"], [[1.0]], ["weight"]]'}, "no layout"),
        (1, 2, {"layout": '[["w", "w"], [[1], [1]], ["bias", "bias"]]'}, "no layout"),
        (1, 1, {"provenance": "[]"}, "or no dict"),
        (1, 1, {"network": "3"}, "no text"),
        (1, 1, {"categories": "[1]"}, "AttributeError"),
    ],
)
def test_a_zoos_header_cannot_ask_for_memory_or_be_nonsense(tmp_path, n, d, text, message):
    path = zoo_file(tmp_path / "z.safetensors", n, d, **text)
    with within(8 * MIB), pytest.raises(ValueError, match=f"z.safetensors: damaged .*{message}"):
        zoo.load(path)


def test_a_zoo_of_very_many_networks_of_nothing_is_refused(tmp_path):
    head = {"format": "wsnotebook zoo 1", "facts": "[]", "categories": "{}", "network": '"x"', "provenance": "{}"}
    head |= {"layout": "[[], [], []]"}
    (tmp_path / "z").write_bytes(tensors_file({"__metadata__": head, "weights": told("F32", [1 << 30, 0], 0, 0)}, b""))
    with within(8 * MIB), pytest.raises(ValueError, match="rows of 0; expected float32, and at least 1"):
        zoo.load(tmp_path / "z")


def test_facts_are_numbers_or_strings(tmp_path):
    one = a_zoo()
    for values in (np.array([b"a"] * 5), np.array([None] * 5), np.zeros(5, "M8[s]")):
        with pytest.raises(ValueError, match=r"facts\['x'\]: type .*, expected numbers or strings"):
            one.derived(one.weights, x=values).save(tmp_path / "z")
    assert zoo.load(one.filter([]).save(tmp_path / "z")).facts["init"].dtype.kind == "U"


def test_a_banks_plan_cannot_ask_for_memory(tmp_path):
    nets = [networks.build("mlp-6-5-3"), networks.build("mlp-6-5-5-3")]
    path = Bank(nets, allocate(nets, torch.zeros(1, 6))).save(tmp_path / "bank.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        head = file.metadata()
    plan = json.loads(head["plan"])
    plan["templates"][0][0] = 1 << 14
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, head | {"plan": json.dumps(plan)})
    with (
        within(8 * MIB),
        pytest.raises(ValueError, match=r"bank\.safetensors: the plan has templates .* others"),
    ):
        Bank.load(path, nets)


# ---- compressed files that unfold --------------------------------------------------------------------------------


def compressed(head: bytes, tail: bytes = b"") -> bytes:
    """A compressed file of this header, not yet deflated, with a checksum that is right."""
    head = header.deflated(head)
    body = header.varint(len(head)) + b"\0" + head + tail
    return b"WS\x10" + zlib.crc32(b"\x10" + body).to_bytes(4, "little") + body


@pytest.mark.parametrize(("tensors", "books"), [(1_000_000, 0), (0, 1_000_000), (65_536, 65_536), (65_536, 0)])
def test_a_small_file_of_a_million_tensors_or_codebooks_takes_no_more_than_the_cap(tensors, books):
    data = compressed(
        header.varint(tensors) + header.varint(books) + b"\6\1\0" * books + b"\2\4" * tensors + bytes(tensors)
    )
    assert len(data) < 4000
    with within(64 * MIB), pytest.raises(codec.CodecError):
        codec.decode(data)


def test_levels_of_the_worst_shape_take_no_more_than_the_cap():
    shape, limit = (64, 1, 2048, 2), MIB
    entry = header.Entry("w", torch.float32, shape, torch.float32, 0, header.GRID)
    book = header.Codebook(torch.float32, torch.float32, "list", 3, 1)
    head = header.inflated(header.pack([entry], [book]), MIB)
    with within(64 * MIB + 32 * limit), pytest.raises(codec.CodecError):
        codec.decode(compressed(head, bytes(range(256))), limit=limit)


def test_more_tensors_than_a_file_may_have_are_told_before_it_is_written():
    state = {str(i): torch.zeros(0) for i in range(header.MAX_TENSORS + 1)}
    with pytest.raises(ValueError, match="65,537 tensors: a file holds at most 65,536"):
        codec.encode(state, quantised=[])


# ---- pickles -----------------------------------------------------------------------------------------------------


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def old_zip(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("write", [torch.save, old_zip, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_with_code_in_it_does_not_run(tmp_path, write, suffix):
    path, target = tmp_path / f"bomb{suffix}", tmp_path / "ran"
    state = networks.build("mlp-6-4-3").state_dict()
    for content in (Bomb(target), {"state_dict": Bomb(target)}, state | {"fc1.bias": Bomb(target)}):
        write(content, path)
        for read in (
            training.read_state,
            lambda path: zoo.from_checkpoints(path.parent, "mlp-6-4-3"),
            lambda path: training.load_checkpoint(networks.build("mlp-6-4-3"), path),
        ):
            with pytest.raises(ValueError, match=f"bomb{suffix}: not readable"):
                read(path)
        assert cli.main(["compress", str(path)]) == 2
    assert os.listdir(tmp_path) == [path.name]
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.is_dir(), "it would have run"


def test_a_checkpoint_that_unfolds_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "wide.pt")
    torch.save({"w": torch.zeros(1 << 23)}, tmp_path / "zeros.pt")
    with zipfile.ZipFile(tmp_path / "zeros.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    with within(8 * MIB):
        with pytest.raises(ValueError, match=r"'w' of shape \(1099511627776,\) takes 4,398,046,511,104 bytes"):
            training.read_state(tmp_path / "wide.pt")
        with pytest.raises(ValueError, match=r"bomb.pt: not readable .*what it holds takes 33,5"):
            training.read_state(tmp_path / "bomb.pt")


def test_a_file_has_no_function_imported_or_called(tmp_path, monkeypatch):
    (tmp_path / "harm.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\nmake = Path('called').touch\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    one, digits = a_zoo(), datasets.load("digits")
    for name in ("harm:make", "torch.utils.collect_env:main", "os:abort", "pip._vendor.os:x", ".os:abort", ":abort"):
        file = zoo.Zoo(one.weights, one.layout, {}, name, {}).save(tmp_path / "z.safetensors")
        for load in (zoo.load, lambda path: own.load(path, "", digits)):
            with pytest.raises(ValueError, match=rf"function '{name}'.*zoo.load\(path, network='{name}'\)"):
                load(file).module(0)
        for load in (zoo.load, lambda path, network: own.load(path, network, digits)):
            with pytest.raises(ValueError, match=f"networks are '{name}', expected network='mlp-6-5-3'"):
                load(file, "mlp-6-5-3")
    assert not (tmp_path / "imported").exists()
    with pytest.raises(ValueError, match="os is Python's own"):
        networks.build("os:abort")


# ---- archives ----------------------------------------------------------------------------------------------------

(CIFAR,) = datasets._RELEASES["cifar100"]
TRAIN, TEST = CIFAR.inside


def archive(folder, *members):
    """cifar-100-binary.tar.gz of these members: (name, content), or (name, what else its header says)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            info, data = tarfile.TarInfo(name), content if isinstance(content, bytes) else b""
            for field, value in {} if isinstance(content, bytes) else content.items():
                setattr(info, field, value)
            info.size = info.size or len(data)
            tar.addfile(info, io.BytesIO(data + bytes(info.size - len(data))))
    path = folder / "cifar-100-binary.tar.gz"
    path.write_bytes(gzip.compress(out.getvalue(), 1))
    return path


def test_members_that_point_outside_are_written_nowhere(tmp_path):
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    places = ("../evil", "../../evil", str(tmp_path / "evil"), f"cifar-100-binary/../../{TRAIN}")
    bad = [(place, b"evil") for place in places]
    bad.append(("cifar-100-binary", {"type": tarfile.SYMTYPE, "linkname": str(tmp_path)}))
    path = archive(inside, *bad, (TRAIN, b"train"), (TEST, b"test"))
    assert [content.data for content in datasets._unpacked(path, CIFAR)] == [b"train", b"test"]
    assert [found.name for found in tmp_path.rglob("*")] == ["deep", "er", path.name]


@pytest.mark.parametrize(
    "header",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.SYMTYPE, "linkname": "test.bin"},
        {"type": tarfile.SYMTYPE, "linkname": "train.bin"},
        {"type": tarfile.LNKTYPE, "linkname": TEST},
        {"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"},
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
        {"size": 512, "pax_headers": {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,0"}},
    ],
)
def test_links_folders_devices_and_holes_are_no_data(tmp_path, header):
    path = archive(tmp_path, (TRAIN, header), (TEST, b"test"))
    with (
        within(8 * MIB),
        pytest.raises(ValueError, match=r"cannot be unpacked \(cifar-100-binary/train.bin is no plain"),
    ):
        datasets._unpacked(path, CIFAR)


def test_a_gz_that_unfolds_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_MOST", MIB)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(64 * MIB)))
    with (
        within(8 * MIB),
        pytest.raises(ValueError, match=r"gz cannot be unpacked \(more than 1,048,576 bytes are in it"),
    ):
        datasets._unpacked(path, datasets._RELEASES["mnist"][0])


def test_headers_of_data_with_huge_axes_and_cut_records_are_refused():
    axes = np.array([(1 << 32) - 1] * 3, ">u4").tobytes()
    with within(MIB), pytest.raises(ValueError, match=r"file holds an array of \[4294967295, 4294967295, 4294967295\]"):
        datasets.read_idx(b"\0\0\10\3" + axes, (60_000, 28, 28), 256, "file")
    with pytest.raises(ValueError, match="file is 7,000 bytes long; expected 30,730,000"):
        datasets.read_cifar(bytes(7_000), 10_000, (10,), "file")


def test_a_picture_that_unfolds_is_refused(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("L", (4, 4)).save(tmp_path / name / f"{i}.png")
    Image.new("1", (4000, 4000)).save(tmp_path / "a" / "3.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)  # where pillow would warn, and go on
    with within(8 * MIB), pytest.raises(ValueError, match=r"cannot read .*3\.png as an image .*decompression bomb"):
        datasets.from_folder(tmp_path, size=4)
