"""Write the entries of a reasoning_gym data set to a file: NAME SEED SIZE FILE.

Run with PYTHONHASHSEED=0: some of the generators walk over sets, so that their questions depend on
the process's hash seed (seen: isomorphic_strings, knight_swap, polynomial_multiplication,
ransom_note, word_ladder). Pickled, because scorers want tuples that JSON would turn into lists.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import reasoning_gym


def main() -> None:
    """Generate and write."""
    name, seed, size, file = sys.argv[1:]
    made = reasoning_gym.create_dataset(name, seed=int(seed), size=int(size))
    Path(file).write_bytes(pickle.dumps([made[index] for index in range(int(size))]))


if __name__ == "__main__":
    main()
