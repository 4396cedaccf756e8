"""A state as the sections of a file, and back.

The main part keeps its image and its graph. Rows of the tail are few, and encoded again when they are read.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search.graph import Copied, Links
from mmfast.search.image import Image, sizes
from mmfast.search.native import Native
from mmfast.search.segment import Segment
from mmfast.search.settings import KEY_LIMIT, STORED, Settings
from mmfast.search.state import Part, State
from mmfast.search.storage import Bytes
from mmfast.search.tail import appended
from mmfast.search.tuning import Curve


def pack_state(state: State) -> list[Bytes]:
    """Return the sections: a description in JSON, then arrays in the order that :func:`unpack_state` reads them."""
    described: dict[str, Any] = {"main": None, "tail": 0}
    arrays: list[npt.NDArray[Any]] = []
    if state.main:
        segment = state.main.segment
        described["main"] = {
            "rows": len(segment),
            "unit": segment.image.unit,
            "removed": state.main.alive is not None,
            "links": [segment.links.neighbours.shape, segment.links.upper.shape] if segment.links else None,
            "entries": segment.links.entries if segment.links else 0,
            "native": segment.native is not None,
            "curve": segment.curve.to_json() if segment.curve else None,
            "built": segment.built,
        }
        arrays += [segment.keys, segment.stored, *segment.image[:4]]
        if state.main.alive is not None:
            arrays.append(state.main.alive)
        if segment.links:
            arrays += [segment.links.neighbours, segment.links.upper, segment.links.copies]
        if segment.native:
            arrays += [segment.native.save(), *segment.native.copied]
    if state.tail:
        alive = slice(None) if state.tail.alive is None else state.tail.alive
        keys = state.tail.segment.keys[alive]
        described["tail"] = len(keys)
        arrays += [keys, state.tail.segment.stored[alive]]
    return [
        json.dumps(described).encode(),
        *(np.ascontiguousarray(each).reshape(-1).view(np.uint8).data for each in arrays),
    ]


class Sections:
    """What is in a file, to be read one after the other."""

    def __init__(self, sections: list[memoryview]) -> None:
        self.described: dict[str, Any] = json.loads(bytes(sections[0]))
        self._left = iter(sections[1:])

    def next(self) -> memoryview:
        """Return the next section, an empty one after the last."""
        return next(self._left, memoryview(b""))

    def read(self, dtype: str, *shape: int) -> npt.NDArray[Any]:
        """Return the next section as an array, where it lies."""
        return np.frombuffer(self.next(), dtype).reshape(shape)


def unpack_state(settings: Settings, sections: list[memoryview]) -> State:
    """Return the state; raise ValueError, KeyError or TypeError for sections that are not like that."""
    given = Sections(sections)
    main, fresh = unpack_main(settings, given), None
    if count := given.described["tail"]:
        keys, stored = given.read("<i8", count), given.read(STORED[settings.dtype], count, settings.ndim)
        fresh = appended(None, settings, keys, stored, torch.get_num_threads())
    state = State(main, fresh)
    held = np.concatenate([np.zeros(0, np.int64), *(part.keys() for part in state.parts())])
    if len(np.unique(held)) != len(held) or (len(held) and not 0 <= held.min() <= held.max() < KEY_LIMIT):
        raise ValueError("its keys are repeated or out of range")
    return state


def unpack_main(settings: Settings, given: Sections) -> Part | None:
    """Return the main part, of arrays where they lie."""
    if (told := given.described["main"]) is None:
        return None
    read, rows, ndim = given.read, told["rows"], settings.ndim
    keys, stored = read("<i8", rows), read(STORED[settings.dtype], rows, ndim)
    plane, terms = sizes(rows, ndim)
    digits = read("<u1", *plane), read("<u1", *plane)
    image = Image(*digits, read("<f4", *terms), read("<f4", ndim), told["unit"])
    alive = read("<u1", rows) if told["removed"] else None
    if alive is not None:
        if len(alive) and alive.max() > 1:
            raise ValueError("what is removed is damaged")
        alive = alive.view(np.bool_)
    links = None
    if told["links"]:
        neighbours, upper = (read("<i4", *shape) for shape in told["links"])
        links = Links(neighbours, upper, read("<i4", rows), told["entries"])
    native = None
    if told.get("native"):
        native = Native.restore(given.next(), Copied(read("<i8", -1), read("<i8", -1)))
    curve = Curve.from_json(told["curve"]) if told["curve"] else None
    return Part(Segment(settings, keys, stored, image, links, curve, told["built"], native), alive)
