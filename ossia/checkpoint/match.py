"""Which stored tensor is which: the layout that a folder's names follow, read as transformers reads
them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ossia.checkpoint.files import StoredTensor
from ossia.errors import OssiaError, shortened
from ossia.families.keys import warn
from ossia.families.mapping import Layout

_ROWS_AT_ONCE = 1 << 24  # bytes to compare at a time


@dataclass(frozen=True)
class Match:
    """A layout, and the stored tensors by the names that it gives them.

    missing: names of the layout that are not stored; unknown: stored names that it does not use.
    """

    layout: Layout
    stored: Mapping[str, StoredTensor]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]


def match(
    layouts: tuple[Layout, ...],
    stored: Mapping[str, StoredTensor],
    folder: Path,
    ignore_unknown: bool = False,
) -> Match:
    """The layout whose names match the stored ones. Raises OssiaError that names the missing and
    unknown tensors of the closest layout; `ignore_unknown` turns unknown ones into a warning.
    """
    found = max((_assigned(layout, stored) for layout in layouts), key=lambda m: len(m.stored))
    if ignore_unknown and found.unknown and not found.missing:
        warn(f"{folder}: ignoring {_listed(found.unknown, 'unknown')}")
        return found
    if found.missing or found.unknown:
        problems = [
            _listed(names, what)
            for names, what in ((found.missing, "missing"), (found.unknown, "unknown"))
            if names
        ]
        files = {tensor.file for tensor in stored.values()}
        if found.unknown and not found.missing:
            files = {stored[name].file for name in found.unknown}
            problems.append("--ignore-unknown-keys loads the model without them")
        where = files.pop() if len(files) == 1 else folder
        raise OssiaError(f"{where}: tensors do not fit config.json; {'; '.join(problems)}")
    return found


def tied_differ(layouts: tuple[Layout, ...], stored: Mapping[str, StoredTensor]) -> bool:
    """Whether two tensors that the layouts tie are both stored, with different values."""
    for layout in layouts:
        for other, name in layout.tied.items():
            own = stored.get(name) or stored.get(name.removeprefix(layout.prefix))
            if other in stored and own is not None and not _equal(own, stored[other]):
                return True
    return False


def _assigned(layout: Layout, stored: Mapping[str, StoredTensor]) -> Match:
    wanted = dict.fromkeys(row.theirs for row in layout.rows)
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in layout.ignored) or r"(?!)")
    found: dict[str, StoredTensor] = {}
    unknown = []
    for name, tensor in stored.items():
        if name in wanted:
            found[name] = tensor
        elif (full := layout.prefix + name) in wanted and full not in stored:
            found[full] = tensor
        elif name not in layout.tied and not ignored.fullmatch(name):
            unknown.append(name)
    for other, name in layout.tied.items():
        if name not in found and other in stored:
            found[name] = stored[other]
    return Match(layout, found, tuple(name for name in wanted if name not in found), tuple(unknown))


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors have the same shape and values, read in parts."""
    if one.shape != other.shape:
        return False
    left, right = one.tensor().flatten(), other.tensor().flatten()
    return all(
        torch.equal(a.float(), b.float()) if a.dtype is not b.dtype else torch.equal(a, b)
        for a, b in zip(left.split(_ROWS_AT_ONCE), right.split(_ROWS_AT_ONCE), strict=True)
    )


def _listed(names: tuple[str, ...], what: str) -> str:
    shown = ", ".join(shortened(name) for name in names[:3])
    return f"{len(names)} {what}: {shown}{', ...' if len(names) > 3 else ''}"
