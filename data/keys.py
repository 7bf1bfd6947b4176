"""Key lists: which samples of a data set to keep.

Read from .txt (one key per line), .json (a list of strings), or a .pkl that holds a list of strings and nothing else.
Pickles are never loaded: their opcodes are read as data, and the few that build a list of strings are understood.
"""

from __future__ import annotations

import json
import pickletools
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import write_json_atomically, write_text_atomically

SCANNER = "python imagenet_info/scan_keys.py --data-path DATA --min-side 256 --output FILE"


def read_key_list(path: str | Path) -> list[str]:
    """The sample keys in a .txt, .json or .pkl file, in their order.

    Raises: DataError if the file is missing (it names the command that makes one), has another suffix, or holds
        anything but a list of strings.
    """
    path = Path(path)
    readers = {".txt": _read_text, ".json": _read_json, ".pkl": _read_pickle}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: found suffix {path.suffix!r}, expected a key list in .txt, .json or .pkl.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the key list cannot be read ({error.strerror}). Make one with `{SCANNER}`, or set "
            "data.filter_keys_path to null to keep every sample."
        ) from error
    keys = readers[path.suffix.lower()](path, content)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DataError(f"{path}: found {_describe(keys)}, expected a list of strings (sample keys).")
    return keys


def write_key_list(path: str | Path, keys: list[str]) -> None:
    """Write keys as .txt (one per line) or .json (a list), by the suffix of `path`.

    Raises: DataError for another suffix, or a key with a line break in a .txt.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        write_json_atomically(path, keys, indent=0)
    elif path.suffix.lower() == ".txt":
        broken = [key for key in keys if len(key.splitlines()) != 1]
        if broken:
            raise DataError(f"{path}: key {broken[0]!r} does not fit on one line; write a .json file.")
        write_text_atomically(path, "".join(f"{key}\n" for key in keys))
    else:
        raise DataError(f"{path}: found suffix {path.suffix!r}, expected .txt or .json.")


def _describe(value: Any) -> str:
    if not isinstance(value, list):
        return type(value).__name__
    other = next(item for item in value if not isinstance(item, str))
    return f"a list with {type(other).__name__}"


def _read_text(path: Path, content: bytes) -> list[str]:
    return [line for line in _decode(path, content).splitlines() if line.strip()]


def _read_json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(_decode(path, content))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}), expected a list of strings.") from error


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8 ({error}).") from error


# --- pickle, read as data ------------------------------------------------------------------------------------

_IGNORED = {"PROTO", "FRAME"}
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_MEMO_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_MEMO_GETS = {"GET", "BINGET", "LONG_BINGET"}
_MARK = object()


def _read_pickle(path: Path, content: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, position in pickletools.genops(content):
            if opcode.name == "STOP":
                return stack.pop()
            if not _apply(opcode.name, argument, stack, memo):
                raise DataError(
                    f"{path}: refused: opcode {opcode.name} at byte {position}. A key list holds a list of strings "
                    "and nothing else; this pickle was not loaded and nothing in it was run."
                )
    except (ValueError, IndexError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not a well-formed pickle of a list of strings ({error}).") from error
    raise DataError(f"{path}: not a well-formed pickle: it has no end.")


def _apply(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> bool:
    """Follow one opcode; False if it is not one of those that build a list of strings."""
    if name in _IGNORED:
        pass
    elif name in _STRINGS:
        stack.append(argument)
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "LIST":
        stack.append(_pop_to_mark(stack))
    elif name == "APPEND":
        item = stack.pop()
        stack[-1].append(item)
    elif name == "APPENDS":
        items = _pop_to_mark(stack)
        stack[-1].extend(items)
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in _MEMO_PUTS:
        memo[argument] = stack[-1]
    elif name in _MEMO_GETS:
        stack.append(memo[argument])
    else:
        return False
    return True


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]
