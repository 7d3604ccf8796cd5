"""Images and tables as tensors in memory: train, validation and test by name, or from your own folder.

Sources: MNIST (LeCun, Cortes, Burges 1998), Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), CIFAR-10 and CIFAR-100
(Krizhevsky 2009, in the binary layout: no pickle), the digits and iris embedded in scikit-learn, and the functions of
`cornn`, a regression each.
A file is looked for in the folders that WSNOTEBOOK_DATA names, then in `<cache>/data`, then downloaded into the latter.
It is official if its MD5 is the published one, or if it unpacks to the bytes that the published file unpacks to: an
unpacked or recompressed copy is official, an altered one is not.

Legend: n examples, c channels, h x w pixels; x (n, c, h, w) or (n, features), y (n,), or in a
regression (n, outputs).
"""

import difflib
import gzip
import hashlib
import io
import math
import operator
import os
import secrets
import tarfile
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pooch
import sklearn.datasets
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor

from wsnotebook import cornn

_CLASSIFIED = ("digits", "iris", "mnist", "fashion_mnist", "cifar10", "cifar100")
NAMES = (*_CLASSIFIED, *(f"cornn-{name}" for name in cornn.FUNCTIONS))  # the first two and cornn-... need no files


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled examples in three parts that share none: fit on train, choose on validation, report on test once.

    Each part is `(x, y)`: x float32 (n, c, h, w), or (n, features) for a table; y int64 (n,), an index into `classes`,
    or, in a regression, which has no classes, float32 (n, outputs).
    `checksum` is the SHA-256 of the unpacked source files one after the other; `official` says whether they are the
    published ones.
    """

    name: str
    train: tuple[Tensor, Tensor] = field(repr=False)
    validation: tuple[Tensor, Tensor] = field(repr=False)
    test: tuple[Tensor, Tensor] = field(repr=False)
    classes: tuple[str, ...]
    checksum: str
    official: bool

    def to(self, device: str | torch.device) -> "Dataset":
        """The same data with its tensors on another device."""
        moved = {part: tuple(t.to(device) for t in getattr(self, part)) for part in ("train", "validation", "test")}
        return replace(self, **moved)

    def first(self, **rows: int) -> "Dataset":
        """The same data with the first so many rows of the parts named, as `first(train=1_000)`."""
        return replace(self, **{part: tuple(t[:n] for t in getattr(self, part)) for part, n in rows.items()})

    def changed(self, how: str, f: Callable[[Tensor], Tensor]) -> "Dataset":
        """The same labels with inputs f(x), called "<name>, <how>": `changed("negative", lambda x: 1 - x)`."""
        parts = {part: getattr(self, part) for part in ("train", "validation", "test")}
        return replace(
            self, name=f"{self.name}, {how}", **{part: (f(x).contiguous(), y) for part, (x, y) in parts.items()}
        )

    @property
    def regression(self) -> bool:
        """Whether the targets are numbers, to be met in the mean square, and not classes."""
        return self.train[1].is_floating_point()

    @property
    def outputs(self) -> int:
        """Number of outputs of a network for this data: one a class, or one a number to be predicted."""
        return self.train[1].shape[1] if self.regression else len(self.classes)

    def check_classes(self, what: str) -> None:
        """Raises ValueError for a regression, which cannot be used for `what`."""
        if self.regression:
            raise ValueError(
                f"{self.name} has numbers for targets, but {what} needs classes: take {', '.join(_CLASSIFIED)}"
            )

    @property
    def label(self) -> str:
        """The name to write beside a result: it says so when the files are not the ones that the name promises.

        A data set made from another keeps that one's name before a comma, as "cifar10, moved".
        """
        if self.official or self.name.partition(",")[0] not in NAMES:
            return self.name
        return f"{self.name} ({'stand-in: ' if self.name.startswith('cifar') else ''}not the official files)"


def load(name: str, *, seed: int = 0) -> Dataset:
    """The data set `name`, one of `NAMES`; `seed` decides the split that is not official.

    digits                 x (n, 1, 8, 8) in [0, 1]; 60 / 20 / 20 % of every class
    iris                   x (n, 4), each feature standardised by the training part's statistics; 60 / 20 / 20 %
    mnist, fashion_mnist   x (n, 1, 28, 28) in [0, 1]; 55,000 / 5,000 and the official 10,000
    cifar10, cifar100      x (n, 3, 32, 32), each channel standardised likewise; 45,000 / 5,000 and the official 10,000
    cornn-ackley, ...      a regression: x (n, 2), y (n, 1), as `cornn.table`; 3,000 / 750 whatever the seed, and the
                           official 1,250

    Files other than the official ones load with one UserWarning naming them, and `official` False.
    Raises ValueError for an unknown name or a damaged file, FileNotFoundError for one neither here nor to be fetched.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        known = f"{', '.join(_CLASSIFIED)}, and cornn-NAME for every name in cornn.FUNCTIONS"
        raise ValueError(f"unknown data set {name!r}{hint}; known are {known}")
    if name.startswith("cornn-"):
        return _regression(name)
    if name not in _RELEASES:
        return _embedded(name, seed)
    contents = [content for file in _RELEASES[name] for content in _contents(name, file)]
    (x, y), test = _parse(name, contents)
    if altered := [Path(content.where) for content in contents if not content.official]:
        files = ", ".join([str(altered[0]), *(path.name for path in altered[1:])])
        message = f"{name}: not the official files (another checksum): {files}. Loaded with official=False."
        warnings.warn(message, UserWarning, stacklevel=2)
    order = _order(len(y), seed)
    parts = [(x[rows], y[rows]) for rows in (order[:-5_000], order[-5_000:])] + [test]
    parts = _standardised(parts) if name.startswith("cifar") else _scaled(parts, 255)
    return Dataset(name, *parts, _CLASSES[name], _sha256(content.data for content in contents), not altered)


def from_folder(
    path: str | os.PathLike, *, size: int | tuple[int, int] | None = None, channels: int | None = None, seed: int = 0
) -> Dataset:
    """Your own images: a folder with a sub-folder for each class, holding at least 5 images that pillow can read.

    x (n, c, h, w) in [0, 1]. `size` is the side, or (height, width), to resize to (proportions are not kept); None
    requires that all images have the same. `channels` is 1 (grey) or 3 (RGB); None takes 1 if every image is grey.
    60 / 20 / 20 % of every class by `seed`. Classes are sorted by name, hidden files left out, EXIF rotation applied,
    transparency dropped. `checksum` covers file names and bytes; there is no official version, so `official` is False.

    Raises FileNotFoundError for a missing folder, ValueError naming what in it cannot be used.
    """
    shape = (size, size) if isinstance(size, int) else size
    if shape is not None and not (isinstance(shape, tuple | list) and len(shape) == 2 and min(shape) > 0):
        raise ValueError(f"size={size!r}: expected a side in pixels, (height, width), or None (all images alike)")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r}: expected 1 (grey), 3 (RGB), or None (1 if every image is grey)")
    root = Path(path).expanduser().resolve()
    files = _class_files(root)
    paths = [file for inside in files.values() for file in inside]
    images = [_decode(file, shape, channels) for file in paths]
    for file, image in zip(paths, images, strict=True):
        if image.shape[1:] != images[0].shape[1:]:
            seen, first = ("{1} x {2}".format(*i.shape) for i in (image, images[0]))
            raise ValueError(f"{file} is {seen} pixels (h x w), {paths[0]} is {first}: give size= to resize all")
    depth = max(len(image) for image in images)
    x = np.stack([np.broadcast_to(image, (depth, *image.shape[1:])) for image in images])
    y = np.repeat(np.arange(len(files)), [len(inside) for inside in files.values()])
    parts = _scaled([(x[rows], y[rows]) for rows in _stratified(y, seed)], 255)
    names = (file.relative_to(root).as_posix().encode() for file in paths)
    checksum = _sha256(part for name, file in zip(names, paths, strict=True) for part in (name, file.read_bytes()))
    return Dataset(root.name, *parts, tuple(files), checksum, official=False)


def cache_folder() -> Path:
    """The writable folder for downloads and heavy results: WSNOTEBOOK_CACHE, by default the user's cache folder."""
    return Path(os.environ.get("WSNOTEBOOK_CACHE") or pooch.os_cache("wsnotebook")).expanduser()


# ---- splits and scales; `parts` is [(x, y) of train, validation, test] ----


def _order(n: int, seed: int) -> np.ndarray:
    """0 .. n - 1 shuffled. From raw bits, because numpy keeps their stream, unlike `permutation`, the same for ever."""
    return np.argsort(np.random.PCG64(operator.index(seed)).random_raw(n), kind="stable")


def _stratified(y: np.ndarray, seed: int) -> list[np.ndarray]:
    """Row numbers of train, validation and test, shuffled: 60 / 20 / 20 % of every class, rounded."""
    order = _order(len(y), seed)
    part = np.empty(len(y), int)
    for label in np.unique(y):
        rows = order[y[order] == label]
        part[rows] = np.digitize((np.arange(len(rows)) + 0.5) / len(rows), (0.6, 0.8))
    return [order[part[order] == k] for k in range(3)]


def _tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))


def _scaled(parts: list, top: int) -> list[tuple[Tensor, Tensor]]:
    """From 0 .. top to [0, 1]."""
    return [_tensors(np.divide(x, top, dtype=np.float32), y) for x, y in parts]


def _standardised(parts: list) -> list[tuple[Tensor, Tensor]]:
    """Zero mean and unit variance along axis 1 (channel or feature), by the statistics of the training part."""
    x = parts[0][0]
    x = x.reshape(*x.shape[:2], -1)  # (n, c, h * w)
    wide = np.int64 if x.dtype == np.uint8 else np.float64  # pixels: exact sums, the same whatever the order
    count = x.shape[0] * x.shape[2]
    mean = x.sum((0, 2), dtype=wide) / count
    deviation = np.sqrt(np.einsum("nct,nct->c", x, x, dtype=wide) / count - mean**2)
    deviation[deviation == 0] = 1  # a constant channel becomes 0, not NaN
    tensors = [_tensors(x.astype(np.float32), y) for x, y in parts]
    for x, _ in tensors:
        m, s = (torch.from_numpy(v).float().view(-1, *[1] * (x.ndim - 2)) for v in (mean, deviation))
        x.sub_(m).div_(s)
    return tensors


def _embedded(name: str, seed: int) -> Dataset:
    digits = name == "digits"
    bunch = sklearn.datasets.load_digits() if digits else sklearn.datasets.load_iris()
    x, y = bunch.images[:, None] if digits else bunch.data, bunch.target
    parts = [(x[rows], y[rows]) for rows in _stratified(y, seed)]
    parts = _scaled(parts, 16) if digits else _standardised(parts)  # ink from 0 to 16
    checksum = _sha256([x.astype("<f8").tobytes(), y.astype("u1").tobytes()])
    return Dataset(name, *parts, tuple(map(str, bunch.target_names)), checksum, official=True)


def _regression(name: str) -> Dataset:
    table = cornn.table([name.removeprefix("cornn-")])
    parts = [table.train, table.validation, table.test]
    checksum = _sha256(values.numpy().astype("<f4").tobytes() for part in parts for values in part)
    return Dataset(name, *parts, (), checksum, official=True)


# ---- the published files ----


@dataclass(frozen=True)
class _File:
    """One published file: where from, its place below a data folder, and the places of what it unpacks to."""

    url: str
    place: str
    inside: tuple[str, ...]


@dataclass(frozen=True)
class _Content:
    """The bytes of one unpacked file, where they were found, and whether they are the published ones."""

    where: str
    data: bytes
    official: bool


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_MOST = 1 << 28  # bytes: more than any of these unpacks to
_CIFAR10, _CIFAR100 = "cifar-10-binary.tar.gz", "cifar-100-binary.tar.gz"

_RELEASES = {
    "mnist": [_File(f"{_MNIST}{stem}.gz", f"mnist/{stem}.gz", (f"mnist/{stem}",)) for stem in _IDX],
    "fashion_mnist": [
        _File(f"{_FASHION}{stem}.gz", f"fashion_mnist/{stem}.gz", (f"fashion_mnist/{stem}",)) for stem in _IDX
    ],
    "cifar10": [_File(_CIFAR + _CIFAR10, _CIFAR10, tuple(f"cifar-10-batches-bin/{b}.bin" for b in _BATCHES))],
    "cifar100": [_File(_CIFAR + _CIFAR100, _CIFAR100, ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin"))],
}

_MD5 = {  # by place: of the packed files as their authors publish them, and of what they unpack to
    "mnist/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "mnist/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "mnist/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "mnist/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "mnist/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "mnist/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "mnist/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "mnist/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "fashion_mnist/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "fashion_mnist/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "fashion_mnist/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    "fashion_mnist/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "fashion_mnist/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "fashion_mnist/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "fashion_mnist/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "cifar-10-batches-bin/data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "cifar-10-batches-bin/data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "cifar-10-batches-bin/data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "cifar-10-batches-bin/data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "cifar-10-batches-bin/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-100-binary/train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
    "cifar-100-binary/test.bin": "4499cfba6c016c1be1438163640a0898",
}

_CLASSES = {
    "mnist": "0,1,2,3,4,5,6,7,8,9",
    "fashion_mnist": "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot",
    "cifar10": "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck",
    "cifar100": "apple,aquarium_fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,"
    "camel,can,castle,caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,cup,dinosaur,"
    "dolphin,elephant,flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,lawn_mower,leopard,lion,lizard,lobster,"
    "man,maple_tree,motorcycle,mountain,mouse,mushroom,oak_tree,orange,orchid,otter,palm_tree,pear,pickup_truck,"
    "pine_tree,plain,plate,poppy,porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,"
    "snail,snake,spider,squirrel,streetcar,sunflower,sweet_pepper,table,tank,telephone,television,tiger,tractor,train,"
    "trout,tulip,turtle,wardrobe,whale,willow_tree,wolf,woman,worm",
}
_CLASSES = {name: tuple(words.split(",")) for name, words in _CLASSES.items()}


def _parse(name: str, contents: Sequence[_Content]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(x, y) of the official training set and of the official test set, x uint8 (n, c, h, w)."""
    if name.startswith("cifar"):
        counts, limits = ([10_000] * 6, (10,)) if name == "cifar10" else ([50_000, 10_000], (20, 100))
        *train, test = (read_cifar(c.data, n, limits, c.where) for c, n in zip(contents, counts, strict=True))
        return tuple(map(np.concatenate, zip(*train, strict=True))), test
    x, y, x_test, y_test = contents
    return tuple(
        (read_idx(x.data, (n, 28, 28), 256, x.where)[:, None], read_idx(y.data, (n,), 10, y.where))
        for x, y, n in ((x, y, 60_000), (x_test, y_test, 10_000))
    )


def read_idx(data: bytes, shape: tuple[int, ...], limit: int, where: str) -> np.ndarray:
    """The uint8 array in an IDX file: bytes 0, 0, 8 (unsigned byte), axes; each axis as a big-endian uint32; values.

    Raises ValueError, naming the file `where`, unless it holds exactly `shape` and every value is below `limit`.
    """
    magic, header = bytes((0, 0, 8, len(shape))), 4 + 4 * len(shape)
    if data[:4] != magic:
        raise _damaged(where, f"begins with the bytes {data[:4].hex() or '(none)'}", f"{magic.hex()} (IDX)")
    if len(data) >= header and (axes := np.frombuffer(data[4:header], ">u4").tolist()) != list(shape):
        raise _damaged(where, f"holds an array of {axes}", f"one of {list(shape)}")
    if len(data) != header + math.prod(shape):
        raise _damaged(where, f"is {len(data):,} bytes long", f"{header + math.prod(shape):,}")
    return _in_range(np.frombuffer(data, np.uint8, offset=header), limit, where).reshape(shape)


def read_cifar(data: bytes, n: int, limits: Sequence[int], where: str) -> tuple[np.ndarray, np.ndarray]:
    """(x, y), uint8 (n, 3, 32, 32) and (n,), of a CIFAR file: records of label bytes, then red, green, blue planes.

    `limits` gives the number of classes of each label byte, (10,) or (20, 100) for coarse and fine; y is the last.
    Raises ValueError, naming the file `where`, unless it holds exactly n records and every label is below its limit.
    """
    width = len(limits) + 3 * 32 * 32
    if len(data) != n * width:
        raise _damaged(where, f"is {len(data):,} bytes long", f"{n * width:,} ({n:,} records of {width:,})")
    records = np.frombuffer(data, np.uint8).reshape(n, width)
    labels = [_in_range(records[:, column], limit, where) for column, limit in enumerate(limits)]
    return records[:, len(limits) :].reshape(n, 3, 32, 32), labels[-1]


def _in_range(values: np.ndarray, limit: int, where: str) -> np.ndarray:
    if (top := values.max(initial=0)) >= limit:
        raise _damaged(where, f"has the label {top} (example {values.argmax()})", f"0 to {limit - 1}")
    return values


def _damaged(where: str, seen: str, expected: str) -> ValueError:
    advice = (
        "It is damaged or not what its name says: put the official file there, or delete it and load again to fetch it"
    )
    return ValueError(f"{where} {seen}; expected {expected}. {advice}.")


# ---- finding them ----


def _contents(name: str, file: _File) -> list[_Content]:
    """What `file` unpacks to, in order, from the first place that has it, unpacked or packed, else downloaded."""
    roots = [Path(root).expanduser() for root in os.environ.get("WSNOTEBOOK_DATA", "").split(os.pathsep) if root]
    roots.append(cache_folder() / "data")
    for root in roots:
        if all((root / place).is_file() for place in file.inside):
            return _judged({str(root / place): (root / place).read_bytes() for place in file.inside}, file)
        if (root / file.place).is_file():
            return _unpacked(root / file.place, file)
    _download(name, file, roots)
    return _unpacked(roots[-1] / file.place, file)


def _unpacked(path: Path, file: _File) -> list[_Content]:
    packed = path.read_bytes()
    try:
        data = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(_MOST + 1)
        if len(data) > _MOST:
            raise OSError(f"more than {_MOST:,} bytes are in it")
        if file.place.endswith(".tar.gz"):
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                parts = {f"{path}/{place}": _member(tar, place) for place in file.inside}
        else:
            parts = {str(path): data}
    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError) as error:
        raise _damaged(str(path), f"cannot be unpacked ({error})", f"gzip of {', '.join(file.inside)}") from None
    return _judged(parts, file, _md5(packed) == _MD5[file.place])


def _member(tar: tarfile.TarFile, place: str) -> bytes:
    """The bytes of a plain file: links, folders, devices and files with holes are none of the published archives'."""
    member = tar.getmember(place)
    if not member.isreg() or member.issparse():
        raise tarfile.ReadError(f"{place} is no plain file")
    return tar.extractfile(member).read()


def _judged(parts: dict[str, bytes], file: _File, official: bool = False) -> list[_Content]:
    """Each unpacked file counts as official if the packed one does, or by its own checksum."""
    found = zip(parts.items(), file.inside, strict=True)
    return [_Content(where, data, official or _md5(data) == _MD5[place]) for (where, data), place in found]


def _download(name: str, file: _File, roots: Sequence[Path]) -> None:
    """Put `file` into the last of `roots`, whole and with the published checksum, or raise and leave nothing there."""
    target = roots[-1] / file.place
    try:
        with replacing(target) as part:
            pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 18)(file.url, part, None)
            if (seen := _md5(part.read_bytes())) != _MD5[file.place]:
                raise OSError(f"what came has the MD5 {seen}, the published file has {_MD5[file.place]}")
    except OSError as error:  # the network's errors are such too, and so is a cache that cannot be written
        absent = [place for place in file.inside if not any((root / place).is_file() for root in roots)]
        raise FileNotFoundError(
            f"{name}: {target.name} is not on this machine and could not be downloaded.\n"
            f"Fetch {file.url} and put it at\n"
            f"  {target} or\n"
            f"  $WSNOTEBOOK_DATA/{file.place} (WSNOTEBOOK_DATA is {os.environ.get('WSNOTEBOOK_DATA') or 'not set'}).\n"
            f"Unpacked it serves as well (missing: {', '.join(absent)}).\n"
            f"The whole set: {', '.join(f.place for f in _RELEASES[name])}.\n"
            "With no files at all: load('digits') (images) and load('iris') (a table) are embedded.\n"
            f"The download failed with {type(error).__name__}: {textwrap.shorten(str(error), 400)}"
        ) from None


@contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """A path beside `target` to write to: renamed to it when the block ends well, removed when it does not.

    Raises OSError naming the target and what to do when the system does not let it be written.
    """
    target = Path(target)
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")  # not the process's number: threads, machines
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, target)
    except (OSError, SafetensorError) as error:
        kind, reason = (type(error), error.strerror) if isinstance(error, OSError) else (OSError, error)
        if reason is None:  # not the system's, or told already
            raise
        another = "set WSNOTEBOOK_CACHE to" if cache_folder() in target.parents else "choose"
        raise kind(f"cannot write {target} ({reason}): make room, or {another} a folder you can write to") from error
    finally:
        with suppress(OSError):  # of a folder that is none
            part.unlink()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _sha256(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


# ---- a folder of images ----


def _class_files(root: Path) -> dict[str, list[Path]]:
    """{class: its image files}, both sorted by name."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: expected one that holds a sub-folder of images for each class")
    folders = [path for path in _visible(root) if path.is_dir()]
    if len(folders) < 2:
        seen = ", ".join(path.name for path in folders) or "none"
        raise ValueError(f"sub-folders of {root}: {seen}; expected at least two, one for each class of images")
    files = {folder.name: [path for path in _visible(folder) if path.is_file()] for folder in folders}
    for name, inside in files.items():
        if len(inside) < 5:
            raise ValueError(f"{root / name} holds {len(inside)} files; expected at least 5 images, to split in three")
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _decode(path: Path, shape: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """(c, h, w) uint8: c as asked, else 1 for a grey image and 3 for any other."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened)
    except Exception as error:  # each of pillow's readers has its own, for content of every kind
        raise ValueError(f"cannot read {path} as an image ({error}): mend it or move it out of the folder") from None
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{path} has pixels of mode {image.mode}; expected 8 bits a channel: convert it first")
    channels = channels or (1 if image.mode in ("1", "L", "LA") else 3)
    image = image.convert("L" if channels == 1 else "RGB")
    if shape is not None:
        image = image.resize(shape[::-1], Image.Resampling.BILINEAR)  # averages over the area when it shrinks
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
