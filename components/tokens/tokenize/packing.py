"""Best-fit packing of documents into rows of a fixed number of tokens."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assigns documents to rows by best-fit decreasing.

    The longest document goes first; each goes into the fullest row that still holds it. Rows with the same free space
    are kept in one list per free space, and the set of non-empty lists is one integer's bits, so that the best fit is
    the lowest set bit from the document's length upwards.

    Example with capacity 8::

        lengths  5 3 7 2 4          rows  [2]     7 of 8
                                          [0, 1]  5 + 3 of 8
                                          [4, 3]  4 + 2 of 8

    Args:
        lengths: Tokens per document, each between 1 and `capacity`.
        capacity: Tokens per row.

    Returns:
        The documents' indices row by row. Rows stand in the order in which they were opened.

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
