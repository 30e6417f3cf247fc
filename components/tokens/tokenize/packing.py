"""Best-fit packing of documents into rows of a fixed number of tokens."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assigns documents to rows by best-fit decreasing.

    Documents are assigned from the longest to the shortest, each to the fullest row with enough free space. There is a
    list of rows for every amount of free space, and the bits of one integer say which lists are not empty, so that the
    best fit is the lowest set bit at or above the document's length.

    Example with capacity 8::

        lengths  5 3 7 2 4          rows  [2]     7 of 8
                                          [0, 1]  5 + 3 of 8
                                          [4, 3]  4 + 2 of 8

    Args:
        lengths: Tokens per document, each between 1 and `capacity`.
        capacity: Tokens per row.

    Returns:
        Indices of the documents of each row; rows are in the order in which they were opened.

    Raises:
        ValueError: If a document is empty or longer than a row.
    """
    rows: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[document]
        if not 0 < length <= capacity:
            raise ValueError(f"document {document} has {length} tokens; a row takes 1 to {capacity}")
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                spaces &= ~(1 << space)
            rows[row].append(document)
        else:
            space, row = capacity, len(rows)
            rows.append([document])
        left = space - length
        if left:
            by_space[left].append(row)
            spaces |= 1 << left
    return rows
