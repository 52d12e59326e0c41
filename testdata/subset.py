#!/usr/bin/env python3
"""Cuts the first samples out of a data file: how the small .npz files beside this script were made.

    python3 testdata/subset.py BIG.npz COUNT SMALL.npz

Arrays keep their names and types; files are compressed. Needs numpy.
"""

import sys

import numpy as np


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    source, count, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with np.load(source) as arrays:
        np.savez_compressed(target, **{name: array[:count] for name, array in arrays.items()})


if __name__ == "__main__":
    main()
