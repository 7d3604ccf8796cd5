"""Laws of `datasets`: files round trip, damage is named, splits share nothing, downloads are whole or absent."""

import dataclasses
import gzip
import hashlib
import io
import os
import random
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from PIL import Image

from wsnotebook import datasets

GENUINE = os.environ.get("WSNOTEBOOK_DATA", "")
STEMS = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """An empty data folder and an empty cache, whatever the machine has."""
    data, cache = tmp_path / "data folder", tmp_path / "cache"
    data.mkdir()
    monkeypatch.setenv("WSNOTEBOOK_DATA", str(data))
    monkeypatch.setenv("WSNOTEBOOK_CACHE", str(cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return data, cache


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def numbered(first: int, n: int) -> np.ndarray:
    """(n, 28, 28) images that carry their own number in three pixels."""
    images = np.zeros((n, 784), np.uint8)
    number = np.arange(first, first + n)
    images[:, :3] = np.stack([number // 65536, number // 256 % 256, number % 256], 1)
    return images.reshape(n, 28, 28)


@pytest.fixture(scope="session")
def fake():
    """{stem: IDX bytes} of a data set of MNIST's shape whose label is the image's number modulo 10."""
    arrays = [numbered(0, 60_000), np.arange(60_000) % 10, numbered(60_000, 10_000), np.arange(10_000) % 10]
    return {stem: idx(values.astype(np.uint8)) for stem, values in zip(STEMS, arrays, strict=True)}


def put(folder: Path, files: dict[str, bytes], name: str = "mnist") -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / name / file).write_bytes(data)


def pack(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def declare_official(monkeypatch, files: dict[str, bytes], name: str = "mnist") -> None:
    for file, data in files.items():
        monkeypatch.setitem(datasets._MD5, f"{name}/{file}", hashlib.md5(data).hexdigest())


def numbers(x: torch.Tensor) -> list[int]:
    """The numbers that the images carry, sorted."""
    pixels = (x.flatten(1)[:, :3] * 255).round().long()
    return sorted((pixels @ torch.tensor([65536, 256, 1])).tolist())


def left_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ---- the two formats ----


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 2), (5, 3, 4), (2, 3, 2, 2)])
def test_idx_round_trip(shape):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(datasets.read_idx(idx(values), shape, 256, "some-file"), values)


@pytest.mark.parametrize("limits", [(10,), (20, 100)])
def test_cifar_round_trip(limits):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, limits, (6, len(limits)), dtype=np.uint8)
    data = b"".join(label.tobytes() + image.tobytes() for label, image in zip(labels, images, strict=True))
    x, y = datasets.read_cifar(data, 6, limits, "some-file")
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(y, labels[:, -1])


def test_idx_of_any_other_length_is_refused():
    data = idx(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
    for wrong in [data[:n] for n in range(len(data))] + [data + b"\0"]:
        with pytest.raises(ValueError, match=r"^some-file (is [\d,]+ bytes long|begins with)[^;]*; expected .*IDX|28"):
            datasets.read_idx(wrong, (3, 2, 2), 256, "some-file")


@pytest.mark.parametrize("n", [0, 1, 3072, 3073, 2 * 3073 - 1, 2 * 3073 + 1, 3 * 3073])
def test_cifar_of_any_other_length_is_refused(n):
    with pytest.raises(ValueError, match=rf"^some-file is {n:,} bytes long; expected 6,146 \(2 records of 3,073\)"):
        datasets.read_cifar(bytes(n), 2, (10,), "some-file")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4" + bytes(20), r"begins with the bytes 504b0304; expected 00000801 \(IDX\)"),
        (idx(np.zeros((4, 3), np.uint8)), r"begins with the bytes 00000802; expected 00000801 \(IDX\)"),
        (idx(np.zeros(4, np.uint8)), r"holds an array of \[4\]; expected one of \[3\]"),
        (idx(np.array([0, 12, 3], np.uint8)), r"has the label 12 \(example 1\); expected 0 to 9"),
    ],
)
def test_idx_content_is_checked(data, message):
    with pytest.raises(ValueError, match=rf"^some-file {message}\. .*delete it and load again"):
        datasets.read_idx(data, (3,), 10, "some-file")


@pytest.mark.parametrize(("coarse", "fine", "seen"), [(20, 0, 20), (0, 100, 100)])
def test_cifar_labels_are_checked(coarse, fine, seen):
    with pytest.raises(ValueError, match=rf"^some-file has the label {seen} \(example 1\)"):
        datasets.read_cifar(bytes(3074) + bytes((coarse, fine)) + bytes(3072), 2, (20, 100), "some-file")


# ---- local files ----


def test_same_content_is_the_same_data_set_however_packed(folders, fake, monkeypatch):
    data, cache = folders
    declare_official(monkeypatch, fake)
    packed = {f"{stem}.gz": pack(content) for stem, content in fake.items()}
    put(data, {f"{IMAGES}.gz": packed[f"{IMAGES}.gz"], LABELS: fake[LABELS]})
    put(cache / "data", {name: packed[name] for name in packed if name.startswith("t10k")})
    mixed = datasets.load("mnist")  # warnings are errors, so this is silent
    put(data, fake)
    unpacked = datasets.load("mnist")
    assert mixed.official
    assert unpacked.official
    assert mixed.label == "mnist"
    assert mixed.checksum == unpacked.checksum == hashlib.sha256(b"".join(fake.values())).hexdigest()
    assert torch.equal(mixed.train[0], unpacked.train[0])


def test_splits_of_files_share_nothing_and_lose_nothing(folders, fake, monkeypatch):
    declare_official(monkeypatch, fake)
    put(folders[0], fake)
    one, again, other = (datasets.load("mnist", seed=seed) for seed in (1, 1, 2))
    assert [len(part[1]) for part in (one.train, one.validation, one.test)] == [55_000, 5_000, 10_000]
    assert sorted(numbers(one.train[0]) + numbers(one.validation[0])) == list(range(60_000))
    assert numbers(one.test[0]) == list(range(60_000, 70_000))
    assert torch.equal(one.train[0], again.train[0])
    assert numbers(one.validation[0]) != numbers(other.validation[0])
    assert torch.equal(one.test[0], other.test[0])
    for x, y in (one.train, one.validation, one.test):  # a label stays with its image
        assert (x.dtype, y.dtype, x.shape[1:]) == (torch.float32, torch.int64, (1, 28, 28))
        last = (x.flatten(1)[:, :3] * 255).round().long() @ torch.tensor([65536, 256, 1])
        assert torch.equal(last % 10, y)


def test_another_checksum_warns_once_and_is_not_official(folders, fake, monkeypatch):
    declare_official(monkeypatch, {stem: content for stem, content in fake.items() if stem != LABELS})
    put(folders[0], fake)
    with pytest.warns(UserWarning, match="not the official") as caught:
        data = datasets.load("mnist")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert str(folders[0] / "mnist" / LABELS) in str(caught[0].message)
    assert IMAGES not in str(caught[0].message)
    assert not data.official
    assert data.label == "mnist (not the official files)"


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_gz_is_named(folders, fake, keep):
    packed = pack(fake[IMAGES])
    put(folders[0], fake | {f"{IMAGES}.gz": packed[: int(keep * len(packed))]})
    (folders[0] / "mnist" / IMAGES).unlink()
    with pytest.raises(ValueError, match=f"{IMAGES}.gz (cannot be unpacked|begins with)") as error:
        datasets.load("mnist")
    assert error.value.__cause__ is None
    assert left_in(folders[1]) == []


@pytest.mark.parametrize("at", [0, 2, 70, -6])
def test_a_corrupt_gz_is_named(folders, fake, at):
    packed = bytearray(pack(fake[LABELS]))
    packed[at] ^= 0xFF
    put(folders[0], fake | {f"{LABELS}.gz": bytes(packed)})
    (folders[0] / "mnist" / LABELS).unlink()
    with pytest.raises(ValueError, match=f"{LABELS}.gz cannot be unpacked"):
        datasets.load("mnist")


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_archive_and_unpacked_files_give_the_same_contents(folders, monkeypatch):
    (file,) = datasets._RELEASES["cifar10"]
    members = {place: random.Random(place).randbytes(1000) for place in file.inside}
    archive = folders[0] / "cifar-10-binary.tar.gz"
    archive.write_bytes(tar_of({"cifar-10-batches-bin/readme.html": b"hello"} | dict(reversed(members.items()))))
    packed = datasets._contents("cifar10", file)
    put(folders[0], {Path(place).name: data for place, data in members.items()}, "cifar-10-batches-bin")
    unpacked = datasets._contents("cifar10", file)
    assert [c.data for c in packed] == [c.data for c in unpacked] == list(members.values())
    assert not any(c.official for c in packed + unpacked)
    monkeypatch.setitem(datasets._MD5, file.inside[2], hashlib.md5(members[file.inside[2]]).hexdigest())
    assert [c.official for c in datasets._contents("cifar10", file)] == [False, False, True, False, False, False]
    monkeypatch.setitem(datasets._MD5, file.place, hashlib.md5(archive.read_bytes()).hexdigest())
    assert all(c.official for c in datasets._unpacked(archive, file))


def test_an_archive_without_a_member_or_cut_short_is_named(folders):
    (file,) = datasets._RELEASES["cifar100"]
    whole = tar_of({place: random.Random(place).randbytes(5000) for place in file.inside})
    lone = tar_of({file.inside[0]: b"1"})
    for wrong in (lone, gzip.compress(b"no tar"), whole[:6000], gzip.compress(gzip.decompress(whole)[:7000])):
        (folders[0] / "cifar-100-binary.tar.gz").write_bytes(wrong)
        with pytest.raises(ValueError, match=r"cifar-100-binary\.tar\.gz cannot be unpacked .*cifar-100-binary/test"):
            datasets.load("cifar100")


def test_cifar_is_standardised_by_its_training_part(folders):
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (1, 500, 3074), dtype=np.uint8) // np.uint8(2)
    tile[..., 0] %= 20
    tile[..., 1] %= 100
    train = np.repeat(tile, 100, 0).tobytes()
    put(folders[0], {"train.bin": train, "test.bin": bytes(10_000 * 3074)}, "cifar-100-binary")
    with pytest.warns(UserWarning, match=r"train\.bin, test\.bin"):
        data = datasets.load("cifar100")
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [45_000, 5_000, 10_000]
    x = data.train[0]
    assert x.shape == (45_000, 3, 32, 32)
    assert x.mean((0, 2, 3)).abs().max() < 1e-3
    assert (x.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert data.test[0].max() < -1  # black images, by the training statistics
    assert data.label == "cifar100 (stand-in: not the official files)"
    assert len(data.classes) == 100
    assert list(data.classes) == sorted(set(data.classes))


@pytest.mark.skipif(
    not (Path(GENUINE) / "mnist").is_dir(), reason="WSNOTEBOOK_DATA does not name a folder with genuine MNIST"
)
def test_genuine_mnist(monkeypatch):
    monkeypatch.setenv("WSNOTEBOOK_DATA", GENUINE)
    data = datasets.load("mnist")
    assert data.official
    assert data.test[1].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.cat([data.train[1], data.validation[1]]).bincount()[:3].tolist() == [5923, 6742, 5958]
    assert (data.train[0].min(), data.train[0].max()) == (0, 1)
    everything = torch.cat([data.train[0], data.validation[0]])
    assert float(everything.mean(dtype=torch.float64)) == pytest.approx(0.1306604762738429, abs=1e-8)  # 33.318421 / 255


# ---- embedded data and splits ----


@pytest.mark.parametrize(("name", "shape", "classes"), [("digits", (1, 8, 8), 10), ("iris", (4,), 3)])
def test_embedded_splits(name, shape, classes):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    parts = [(d.train, d.validation, d.test) for d in (datasets.load(name, seed=seed) for seed in (0, 0, 1))]
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    for (x, y), (x_again, y_again) in zip(*parts[:2], strict=True):
        assert (x.dtype, y.dtype, x.shape[1:]) == (torch.float32, torch.int64, shape)
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
    assert not torch.equal(parts[0][2][0], parts[2][2][0])
    counts = torch.stack([y.bincount(minlength=classes) for _, y in parts[0]])
    assert (counts - torch.tensor([[0.6], [0.2], [0.2]]) * counts.sum(0)).abs().max() <= 1


def test_row_numbers_of_a_stratified_split_are_each_used_once():
    y = np.random.default_rng(0).integers(0, 7, 500)
    for seed in range(5):
        assert sorted(np.concatenate(datasets._stratified(y, seed))) == list(range(500))


def test_splits_are_the_same_on_every_machine():
    assert datasets._order(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert datasets._order(8, 1).tolist() == [2, 4, 7, 5, 0, 6, 3, 1]


def test_digits_are_scikit_learns():
    data = datasets.load("digits")
    assert (data.official, data.label, len(data.classes)) == (True, "digits", 10)
    assert sum(len(y) for _, y in (data.train, data.validation, data.test)) == 1797
    assert data.checksum == "b3bbfd2763e523277101a280bf5bfa2ab8853d79c4663528f165e79255bbb481"
    assert "tensor" not in repr(data)


def test_iris_is_standardised_by_its_training_part():
    data = datasets.load("iris", seed=3)
    x = data.train[0]
    assert x.mean(0).abs().max() < 1e-6
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-6
    assert data.test[0].mean(0).abs().max() > 1e-3
    assert data.classes == ("setosa", "versicolor", "virginica")


@pytest.mark.parametrize("name", ["minst", "MNIST", "fashion-mnist", "", None, ["mnist"]])
def test_unknown_name(name):
    with pytest.raises(ValueError, match="unknown data set .*known are digits, iris, mnist, fashion_mnist, cifar10"):
        datasets.load(name)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'fashion_mnist'"):
        datasets.load("fashion-mnist")


@pytest.mark.parametrize("seed", [None, 0.5, "0"])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(TypeError):
        datasets.load("iris", seed=seed)


# ---- the download ----


@pytest.fixture
def serve(monkeypatch):
    """serve({file: (bytes to send, length to announce)}): a local server in the place of MNIST's mirror."""
    files, servers = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path[1:] not in files:
                self.send_error(404)
                return
            body, length = files[self.path[1:]]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    def start(content):
        files.update(content)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_address[1]}"
        local = [dataclasses.replace(f, url=f"{url}/{Path(f.place).name}") for f in datasets._RELEASES["mnist"]]
        monkeypatch.setitem(datasets._RELEASES, "mnist", local)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download_fills_the_cache_and_is_not_repeated(folders, fake, serve, monkeypatch, caplog, capsys):
    packed = {f"{stem}.gz": pack(content) for stem, content in fake.items()}
    declare_official(monkeypatch, packed)
    serve({name: (data, len(data)) for name, data in packed.items()})
    data = datasets.load("mnist")
    assert data.official
    assert {path.name: path.read_bytes() for path in left_in(folders[1] / "data" / "mnist")} == packed
    monkeypatch.setattr(pooch, "HTTPDownloader", None)
    assert datasets.load("mnist").checksum == data.checksum
    assert caplog.text == ""
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("sent", "announced", "reason"),
    [
        (b"<html>please log in</html>", 26, "what came has the MD5 [0-9a-f]{32}, the published file has [0-9a-f]{32}"),
        (b"half", 8, "IncompleteRead|Connection broken"),
        (None, None, "404"),
    ],
)
def test_a_bad_download_is_refused_and_leaves_nothing(folders, serve, sent, announced, reason):
    serve({} if sent is None else {f"{IMAGES}.gz": (sent, announced)})
    with pytest.raises(FileNotFoundError, match=reason):
        datasets.load("mnist")
    assert left_in(folders[1]) == []


def test_an_interrupted_download_leaves_nothing(folders, monkeypatch):
    class Interrupted:
        def __init__(self, **_):
            pass

        def __call__(self, url, output_file, pooch):
            Path(output_file).write_bytes(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(pooch, "HTTPDownloader", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        datasets.load("cifar10")
    assert left_in(folders[1]) == []


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_offline_one_error_says_what_to_do(folders, name, monkeypatch):
    class Offline:
        def __init__(self, **_):
            pass

        def __call__(self, url, output_file, pooch):
            raise ConnectionError("no route to host")

    monkeypatch.setattr(pooch, "HTTPDownloader", Offline)
    with pytest.raises(FileNotFoundError) as error:
        datasets.load(name)
    file, text = datasets._RELEASES[name][0], str(error.value)
    assert text.startswith(f"{name}: {Path(file.place).name} is not on this machine")
    for part in (
        file.url,
        str(folders[1] / "data" / file.place),
        f"$WSNOTEBOOK_DATA/{file.place}",
        str(folders[0]),
        file.inside[0],
        "load('digits')",
        "load('iris')",
        "ConnectionError: no route to host",
    ):
        assert part in text
    assert error.value.__suppress_context__
    assert left_in(folders[1]) == []


def test_offline_error_names_the_one_missing_batch(folders, monkeypatch):
    (file,) = datasets._RELEASES["cifar10"]
    put(folders[0], {Path(place).name: b"" for place in file.inside[:-1]}, "cifar-10-batches-bin")
    monkeypatch.setattr(datasets, "_RELEASES", {"cifar10": [dataclasses.replace(file, url="http://127.0.0.1:9/x")]})
    with pytest.raises(FileNotFoundError, match=r"\(missing: cifar-10-batches-bin/test_batch\.bin\)"):
        datasets.load("cifar10")


def test_a_cache_that_cannot_be_written_is_named(folders):
    folders[1].write_text("a file where the cache should be")
    with pytest.raises(FileNotFoundError, match=f"(?s)put it at\n  {folders[1]}.*NotADirectoryError"):
        datasets.load("mnist")


def test_every_published_file_has_its_checksum():
    for files in datasets._RELEASES.values():
        for file in files:
            for place in (file.place, *file.inside):
                assert len(bytes.fromhex(datasets._MD5[place])) == 16
    assert {name: len(words) for name, words in datasets._CLASSES.items()} == {
        "mnist": 10,
        "fashion_mnist": 10,
        "cifar10": 10,
        "cifar100": 100,
    }


def test_the_cache_folder_is_the_users_unless_told(monkeypatch, tmp_path):
    assert datasets.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("WSNOTEBOOK_CACHE")
    assert datasets.cache_folder() == Path(pooch.os_cache("wsnotebook"))


# ---- a folder of images ----


@pytest.fixture
def pictures(tmp_path):
    """Three classes of grey 6 x 4 (h x w) PNG images, the class's number times 100 in every pixel; 5, 10, 15 images."""
    root = tmp_path / "pictures"
    for k, name in enumerate(("ash", "beech", "cedar")):
        (root / name).mkdir(parents=True)
        for i in range(5 * (k + 1)):
            Image.new("L", (4, 6), 100 * k).save(root / name / f"{i:02}.png")
    return root


def test_from_folder(pictures):
    (pictures / ".hidden").mkdir()
    (pictures / "ash" / ".DS_Store").write_bytes(b"not an image")
    data = datasets.from_folder(pictures)
    parts = (data.train, data.validation, data.test)
    assert (data.name, data.label, data.classes) == ("pictures", "pictures", ("ash", "beech", "cedar"))
    assert not data.official
    assert [y.bincount().tolist() for _, y in parts] == [[3, 6, 9], [1, 2, 3], [1, 2, 3]]
    for x, y in parts:
        assert (x.dtype, y.dtype, x.shape[1:]) == (torch.float32, torch.int64, (1, 6, 4))
        assert torch.equal((x * 255).round().long(), (100 * y)[:, None, None, None].expand(x.shape))
    again, other = datasets.from_folder(pictures), datasets.from_folder(pictures, seed=1)
    assert torch.equal(again.train[1], data.train[1])
    assert not torch.equal(other.train[1], data.train[1])
    assert again.checksum == other.checksum == data.checksum


def test_from_folder_checksum_follows_names_and_bytes(pictures):
    before = datasets.from_folder(pictures).checksum
    (pictures / "ash").rename(pictures / "aspen")
    renamed = datasets.from_folder(pictures).checksum
    Image.new("L", (4, 6), 7).save(pictures / "aspen" / "00.png")
    assert len({before, renamed, datasets.from_folder(pictures).checksum}) == 3


@pytest.mark.parametrize(("size", "shape"), [(3, (3, 3)), ((5, 2), (5, 2)), (None, (6, 4))])
@pytest.mark.parametrize("channels", [1, 3])
def test_from_folder_size_and_channels(pictures, size, channels, shape):
    x, y = datasets.from_folder(pictures, size=size, channels=channels).train
    assert x.shape[1:] == (channels, *shape)
    assert torch.allclose(x, (y / 2.55)[:, None, None, None].expand(x.shape))


def test_from_folder_one_colour_image_makes_all_rgb(pictures):
    Image.new("RGB", (4, 6), (255, 0, 51)).save(pictures / "ash" / "00.png")
    data = datasets.from_folder(pictures)
    x = torch.cat([part[0] for part in (data.train, data.validation, data.test)])
    assert x.shape == (30, 3, 6, 4)
    assert (x[:, 0] == 1).all((1, 2)).sum() == 1
    assert torch.equal(x[x[:, 0, 0, 0] == 1][0, :, 0, 0], torch.tensor([255, 0, 51]) / 255)


def test_from_folder_applies_exif_rotation(pictures):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("L", (6, 4)).save(pictures / "ash" / "00.png", exif=exif)
    assert datasets.from_folder(pictures).train[0].shape[1:] == (1, 6, 4)


def spoil(root, how):
    match how:
        case "another size":
            Image.new("L", (4, 7)).save(root / "beech" / "03.png")
        case "not an image":
            (root / "beech" / "03.png").write_text("hello")
        case "truncated":
            Image.effect_noise((40, 60), 50).save(root / "beech" / "03.png")
            (root / "beech" / "03.png").write_bytes((root / "beech" / "03.png").read_bytes()[:800])
        case "16 bits":
            Image.fromarray(np.zeros((6, 4), np.uint16)).save(root / "beech" / "03.png")
        case "too few":
            (root / "ash" / "03.png").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("another size", r"beech/03\.png is 7 x 4 pixels \(h x w\), .*ash/00\.png is 6 x 4: give size="),
        ("not an image", r"cannot read .*beech/03\.png as an image"),
        ("truncated", r"cannot read .*beech/03\.png as an image"),
        ("16 bits", r"beech/03\.png has pixels of mode I.*; expected 8 bits"),
        ("too few", r"ash holds 4 files; expected at least 5"),
    ],
)
def test_from_folder_names_what_it_cannot_use(pictures, how, message):
    spoil(pictures, how)
    with pytest.raises(ValueError, match=message):
        datasets.from_folder(pictures)


def test_from_folder_without_classes(pictures, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere: expected one that holds a sub-folder"):
        datasets.from_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="sub-folders of .*ash: none; expected at least two"):
        datasets.from_folder(pictures / "ash")


@pytest.mark.parametrize("arguments", [{"size": 0}, {"size": 2.5}, {"size": (3,)}, {"size": (3, -1)}, {"channels": 2}])
def test_from_folder_arguments(pictures, arguments):
    ((name, _),) = arguments.items()
    with pytest.raises(ValueError, match=f"^{name}=.*: expected"):
        datasets.from_folder(pictures, **arguments)


def test_what_is_made_of_a_stand_in_is_labelled_so(digits):
    one = replace(digits, name="cifar10, moved", official=False)
    assert one.label == "cifar10, moved (stand-in: not the official files)"
    assert replace(one, official=True).label == "cifar10, moved"
    assert replace(one, name="my pictures").label == "my pictures"


def test_fewer_rows_and_other_inputs_keep_the_rest(digits):
    few = digits.first(train=7, test=3)
    assert [len(part[1]) for part in (few.train, few.validation, few.test)] == [7, len(digits.validation[1]), 3]
    torch.testing.assert_close(few.train[0], digits.train[0][:7])
    turned = digits.changed("transposed", lambda x: x.transpose(2, 3))
    assert turned.name == "digits, transposed"
    for before, after in zip((digits.train, digits.test), (turned.train, turned.test), strict=True):
        assert after[0].is_contiguous()
        assert torch.equal(after[0], before[0].transpose(2, 3))
        assert torch.equal(after[1], before[1])
