"""Which groups go to validation: as near to the wanted number of rows as whole groups allow."""

import numpy as np

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.duplicates import mixed

# Bits of the exact search; it is only needed where groups are large, and then there are few.
SEARCH_BITS = 400_000_000


def validation_rows(
    labels: np.ndarray, content: np.ndarray, val_ratio: float, seed: int, strata: np.ndarray | None = None
) -> np.ndarray:
    """Chooses the validation rows.

    The order in which groups are taken is a keyed hash of their content: it does not depend on the machine, nor on the
    order of the rows.

    Args:
        labels: Group of each row, from 0.
        content: Hash of each row, shape [rows, 2].
        val_ratio: Share of the rows that is wanted.
        seed: Key of the hash.
        strata: Kind of each row, from 0; each kind is to have its share of the validation rows. A group of several
            kinds counts as one of them.

    Returns:
        True for validation, shape [rows].

    Raises:
        UserError: If there are too few rows or groups to have one on each side.
    """
    rows, groups = len(labels), int(labels.max()) + 1 if len(labels) else 0
    if rows < 2:
        raise UserError(f"{rows} row can't be split into training and validation; at least two are needed")
    if groups < 2:
        raise UserError(
            f"all {rows:,} rows are near-duplicates of each other or of one group, so that none can be kept apart for "
            "validation. Set near_threshold = 0 to keep only equal rows together, or choose another group_key"
        )
    target = min(max(int(rows * val_ratio + 0.5), 1), rows - 1)
    sizes = np.bincount(labels, minlength=groups)
    identity = np.full(groups, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(identity, labels, content[:, 0])
    order = np.lexsort((identity, mixed(identity, seed)))
    chosen = np.zeros(groups, bool)
    if strata is None:
        chosen[order[_filled(sizes[order], target)]] = True
        return chosen[labels]
    kind = _kinds(labels, content, strata, groups)
    for number, wanted in enumerate(_shares(np.bincount(kind, weights=sizes), target)):
        own = order[kind[order] == number]
        if wanted and len(own):
            places = _filled(sizes[own], wanted)
            if sizes[own[places]].sum() < 2 * wanted:  # else nothing is nearer
                chosen[own[places]] = True
    if not chosen.any() or chosen.all():
        raise UserError("the groups are too large for their kinds to be split; choose another stratify_key or none")
    return chosen[labels]


def _kinds(labels: np.ndarray, content: np.ndarray, strata: np.ndarray, groups: int) -> np.ndarray:
    """Returns the kind of each group: that of its row with the least hash."""
    kind = np.zeros(groups, np.int64)
    order = np.lexsort((strata, content[:, 1], content[:, 0]))[::-1]
    kind[labels[order]] = strata[order]  # the last one counts
    return kind


def _shares(sizes: np.ndarray, target: int) -> list[int]:
    """Divides a number of rows among kinds as their sizes are, by the largest remainders."""
    exact = sizes * target / sizes.sum()
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: target - int(shares.sum())]] += 1
    return shares.tolist()


def _filled(sizes: np.ndarray, target: int) -> np.ndarray:
    """Returns places of groups, from the front where possible, whose sizes add up to the target or next to it."""
    totals = np.cumsum(sizes)
    count = int(np.searchsorted(totals, target, side="right"))
    places, missing = list(range(count)), target - (int(totals[count - 1]) if count else 0)
    for place in range(count, len(sizes)):
        if not missing:
            break
        if sizes[place] <= missing:
            places.append(place)
            missing -= int(sizes[place])
    if not missing:
        return np.array(places)
    best = _searched(sizes, target, missing)
    if best is not None:
        return best
    return np.array(places) if places else np.array([int(np.argmin(sizes))])


def _searched(sizes: np.ndarray, target: int, missing: int) -> np.ndarray | None:
    """Searches all sums of groups, as bits of whole numbers; None if there are too many."""
    limit = min(target + missing, int(sizes.sum()) - 1)
    if len(sizes) * limit > SEARCH_BITS:
        return None
    mask = (1 << (limit + 1)) - 1
    reachable = [1]  # sums that the groups from some place to the end can have, the last place first
    for size in sizes[::-1].tolist():
        reachable.append((reachable[-1] | reachable[-1] << size) & mask)
    reachable.reverse()
    nearest = min(
        (total for total in range(max(1, target - missing), limit + 1) if reachable[0] >> total & 1),
        key=lambda total: (abs(total - target), total),
        default=None,
    )
    if nearest is None:
        return None
    places = []
    for place, size in enumerate(sizes.tolist()):
        if size <= nearest and reachable[place + 1] >> (nearest - size) & 1:
            places.append(place)
            nearest -= size
    return np.array(places)
