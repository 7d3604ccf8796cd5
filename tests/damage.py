"""Accidents that happen to files, and files that say what is not so."""

import copy
import json
import random

NUMBERS = (0, 1, 127, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
NASTY = (None, True, -1, 0, 1, 0.5, 1e308, float("nan"), 1 << 40, 1 << 70, "", "x", "\0", "é\n'\"\\", "F32", "F64")
NASTY += ("I64", "BOOL", "BF16", "[]", "[" * 3000, [], {}, [[]], [-1], [1 << 40, 0], [1 << 31] * 3, {"a": {}}, [None])


def damaged(rng: random.Random, files: list[bytes]) -> bytes:
    """One of the files after one to three accidents."""
    data = bytearray(rng.choice(files))
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        near = rng.randrange(min(len(data), 16) + 1)  # headers lie at the beginning
        match rng.randrange(9):
            case 0 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
            case 2:
                del data[at:]
            case 3:
                del data[at : min(to, at + 64)]
            case 4:
                data[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 5:
                data[at:at] = data[at : min(to, at + 64)]
            case 6:
                other = rng.choice(files)
                data = data[:at] + other[rng.randrange(len(other) + 1) :]
            case 7:
                width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
                start = rng.choice((at, near))
                data[start : start + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, order)
            case 8:
                data[at : at + 16] = rng.randbytes(16)
    return bytes(data) if rng.random() < 0.98 else rng.randbytes(rng.randrange(200))


def twisted(rng: random.Random, value):
    """A JSON value with one of its parts, also of JSON inside its texts, replaced, dropped or doubled."""
    if isinstance(value, str) and value[:1] in ("[", "{", '"') and rng.random() < 0.8:
        return json.dumps(twisted(rng, json.loads(value)))
    if not value or not isinstance(value, dict | list) or rng.random() < 0.1:
        return copy.deepcopy(rng.choice(NASTY))
    value = copy.copy(value)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    match rng.randrange(10):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value[rng.choice(("", "weights", "facts.x", "__metadata__", "é"))] = value[key]
        case 1:
            value.append(value[key])
        case _:
            value[key] = twisted(rng, value[key])
    return value


def tensors_file(text: dict, data: bytes) -> bytes:
    """A .safetensors file of this header."""
    head = json.dumps(text).encode()
    return len(head).to_bytes(8, "little") + head + data


def ordered(data: bytes) -> bytes:
    """A .safetensors file with its header in order of names, not in that of the hashes of one process."""
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:end])
    return tensors_file({key: dict(sorted(head[key].items())) for key in sorted(head)}, data[end:])


def damaged_tensors(rng: random.Random, files: list[bytes]) -> bytes:
    """A .safetensors file that is damaged, or says in good form what is not so."""
    if rng.random() < 0.4:
        return damaged(rng, files)
    data = rng.choice(files)
    end = 8 + int.from_bytes(data[:8], "little")
    return tensors_file(twisted(rng, json.loads(data[8:end])), data[end:])
