"""One file with one thing wrong with it: its bytes, a value in its JSON or YAML, or the header of its tensors.

Values are hostile to what reads them (wrong types, escapes, depths, sizes), never to the machine: the largest file is 2 MB.
"""

from __future__ import annotations

import itertools
import json
import random
import struct
from pathlib import Path
from typing import Any

import yaml

DEEP, HUGE = "@deep@", "@huge@"
"""Stand for what no writer of JSON writes: 5,000 lists in each other, an integer of 5,000 digits."""
WRITTEN = {f'"{DEEP}"': "[" * 5000 + "]" * 5000, f'"{HUGE}"': "9" * 5000}
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 0.5, -0.0, 1e308, 1e-320, 2**31, 2**63, 10**400),
    *(
        float("nan"),
        float("inf"),
        "",
        " ",
        "0",
        "\0",
        "a\0b",
        "\ud800",
        "x" * 5000,
        "(?i)query",
        "(",
        "[a",
        "a|b",
        "F4",
    ),
    *("../../outside/canary", "/", ".", "..", "~", "\x1b[2J", "\x9b2J", "a\nb", "name: {", "!!python/name:os.system"),
    *([], {}, [[]], [1, "a", None], {"a": {"b": []}}, {"": 0}, [None] * 3, {"1": 1}, list(range(300)), DEEP, HUGE),
)
CHUNKS = (b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"{", b"]", b'"', b",", b": ", b"&a *a", b"\x1b[2J", b"9" * 400)


def mutated(path: Path, draw: random.Random) -> str:
    """Change one thing in the file; returns what, in words."""
    content = path.read_bytes()
    readers = {".json": _json, ".yaml": _yaml, ".jsonl": _json_lines, ".safetensors": _header}
    changed = readers[path.suffix](content, draw) if path.suffix in readers and draw.random() < 0.75 else None
    what = f"{path.name}, {changed[1] if changed else 'bytes'}"
    path.write_bytes(changed[0] if changed else _bytes(content, draw))
    return what


def _bytes(content: bytes, draw: random.Random) -> bytes:
    """Cut off, emptied, a piece doubled or left out, a bit turned, something put in, a long line."""
    one, two = sorted(draw.choices(range(len(content) + 1), k=2))
    match draw.randrange(8):
        case 0:
            return content[:one]
        case 1:
            return b""
        case 2:
            return content[:two] + content[one:]
        case 3:
            return content[:one] + content[two:]
        case 4 if one < len(content):
            return content[:one] + bytes([content[one] ^ (1 << draw.randrange(8))]) + content[one + 1 :]
        case 5:
            return content[:one] + b"x" * draw.choice((300, 2_000_000)) + content[one:]
        case _:
            return content[:one] + draw.choice(CHUNKS) + content[one:]


def _json(content: bytes, draw: random.Random) -> tuple[bytes, str] | None:
    if content.startswith(b'{"format"'):  # manifest.json
        return _json_lines(content, draw)
    value, what = changed_value(json.loads(content), draw)
    return _written(value), what


def _yaml(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """The result is JSON, which YAML reads too; now and then something is named once and used often."""
    value, what = changed_value(yaml.safe_load(content), draw)
    if draw.random() < 0.05:
        names = "abcdef"[: draw.randint(2, 6)]
        lines = [f"x{one}: &{one} [{', '.join([f'*{two}'] * 6)}]" for two, one in itertools.pairwise(names)]
        return "\n".join([f"x{names[0]}: &{names[0]} [1, 2]", *lines, ""]).encode() + content, "aliases"
    return _written(value), what


def _json_lines(content: bytes, draw: random.Random) -> tuple[bytes, str] | None:
    lines = content.split(b"\n")
    number = draw.randrange(len(lines))
    if not lines[number]:
        return None
    value, what = changed_value(json.loads(lines[number]), draw)
    lines[number] = _written(value)
    return b"\n".join(lines), f"line {number + 1}, {what}"


def _header(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """The JSON in front of the tensors of a safetensors file; now and then its stated length is wrong."""
    (length,) = struct.unpack("<Q", content[:8])
    value, what = changed_value(json.loads(content[8 : 8 + length]), draw)
    header = _written(value)
    stated = draw.choice((0, 1, 2**40, 2**64 - 1)) if draw.random() < 0.05 else len(header)
    return struct.pack("<Q", stated) + header + content[8 + length :], what


def _written(value: Any) -> bytes:
    text = json.dumps(value)
    for name, other in WRITTEN.items():
        text = text.replace(name, other)
    return text.encode()


def changed_value(value: Any, draw: random.Random) -> tuple[Any, str]:
    """The value with something at a random place in it replaced, left out, renamed, wrapped or added."""
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if inner and draw.random() < 0.85:
        key = draw.choice(inner)
        if draw.random() < 0.75:
            changed, what = changed_value(value[key], draw)
            return _with(value, key, changed), f"{key!s:.40}.{what}"
        return _rearranged(value, key, draw)
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.4:
        new = draw.choice((-value, value + 1, value * 3, value / 3, str(value), [value]))
    else:
        new = draw.choice(VALUES)
    return new, f"{new!r:.30}"


def _with(value: Any, key: Any, new: Any) -> Any:
    copy = value.copy()
    copy[key] = new
    return copy


def _rearranged(value: Any, key: Any, draw: random.Random) -> tuple[Any, str]:
    other = draw.choice([one for one in VALUES if isinstance(one, str)])
    copy = value.copy()
    match draw.randrange(4):
        case 0:
            del copy[key]
            return copy, f"without {key!s:.40}"
        case 1 if isinstance(copy, dict):
            copy[other] = copy.pop(key)
            return copy, f"{key!s:.40} called {other!r:.20}"
        case 2 if isinstance(copy, dict):
            copy[other] = draw.choice(VALUES)
            return copy, f"with {other!r:.20}"
        case _:
            copy[key] = draw.choice(([value[key]], {"a": value[key]}, value))
            return copy, f"{key!s:.40} wrapped"
