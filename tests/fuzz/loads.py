"""Loads damaged items until told otherwise, in a process whose memory is bounded: ``loads.py SEED COUNT``.

A program and not a test, since what is looked for is a crash: torch.load reads what a pickle says of a storage.
"""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from aiockpt.dcp import load
from aiockpt.errors import AiockptError
from dcp.stored import Stored, Targets

#: Beside what torch itself has mapped when it has been imported.
MEMORY_BYTES = 1 << 30

VALUES = {
    "small": torch.arange(15.0).reshape(3, 5),
    "large": torch.arange(90_000.0).reshape(300, 300),
    "columns": torch.arange(90_000.0).reshape(300, 300).t(),
    "conjugated": torch.ones(20, 30, dtype=torch.complex64).conj(),
}


def damage(data: bytearray, rng: random.Random) -> None:
    """Change a few bytes, mostly in what surrounds the elements."""
    for _ in range(rng.randint(1, 3)):
        near = rng.choice([0, max(0, len(data) - 1600)])
        at = min(len(data) - 1, near + rng.randrange(1600))
        size = rng.choice([1, 1, 2, 4, 8])
        value = rng.choice([rng.getrandbits(8 * size), 0, (1 << 8 * size) - 1, 1 << (8 * size - 1)])
        data[at : at + size] = value.to_bytes(size, "little")


def main(seed: int, count: int) -> None:
    rng = random.Random(seed)
    outcomes: dict[str, int] = {}
    for _ in range(count):
        name = rng.choice(list(VALUES))
        value = VALUES[name]
        stored = Stored()
        lengths = tuple(rng.randint(1, side) for side in value.shape) if rng.random() < 0.3 else tuple(value.shape)
        item = stored.add(name, value, (0,) * value.dim(), lengths)
        damage(stored.data, rng)
        planner = Targets(**{name: torch.zeros(lengths, dtype=value.dtype)})
        try:
            stored.serve(list(load._tasks(planner.loading, [item])))
            right = torch.equal(planner.targets[name], value[: lengths[0], : lengths[1]])
            outcome = "right" if right else "wrong" if item.is_whole else "slice without proof"
        except AiockptError as error:
            outcome = type(error).__name__
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    sys.stdout.write(f"{outcomes}\n")
    if "wrong" in outcomes or "right" not in outcomes:
        sys.exit("a damaged tensor was taken for right, or none was right")


if __name__ == "__main__":
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES,) * 2)
    main(int(sys.argv[1]), int(sys.argv[2]))
