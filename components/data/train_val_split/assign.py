"""Chooses the groups for validation, so that the number of rows is as close to the target as whole groups allow."""

import numpy as np

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.duplicates import keyed_hash

# Limit of the exact search, in bits. It is needed only if groups are large, and then there are few.
SEARCH_BITS = 400_000_000


def validation_rows(
    labels: np.ndarray, content: np.ndarray, val_ratio: float, seed: int, strata: np.ndarray | None = None
) -> np.ndarray:
    """Chooses the validation rows.

    Groups are ordered by a keyed hash of their content, which depends neither on the machine nor on the order of the
    rows.

    Args:
        labels: Group number of each row, starting at 0.
        content: Hash of each row, shape [rows, 2].
        val_ratio: Target share of the rows.
        seed: Key of the hash.
        strata: Stratum number of each row, starting at 0; each stratum gets its share of the validation rows. A group
            with rows of several strata counts as one of them.

    Returns:
        Boolean array, True for validation, shape [rows].

    Raises:
        UserError: If there are too few rows or groups for two sides.
    """
    rows, groups = len(labels), int(labels.max()) + 1 if len(labels) else 0
    if rows < 2:
        raise UserError(f"{rows} row cannot be split into training and validation; at least two are needed")
    if groups < 2:
        raise UserError(
            f"all {rows:,} rows are near-duplicates of each other or have the same group, so none can be used for "
            "validation. Set near_threshold = 0 to keep only equal rows together, or use another group_key"
        )
    target = min(max(int(rows * val_ratio + 0.5), 1), rows - 1)
    sizes = np.bincount(labels, minlength=groups)
    identity = np.full(groups, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(identity, labels, content[:, 0])
    order = np.lexsort((identity, keyed_hash(identity, seed)))
    chosen = np.zeros(groups, bool)
    if strata is None:
        chosen[order[_fill(sizes[order], target)]] = True
        return np.take(chosen, labels)
    stratum = _group_strata(labels, content, strata, groups)
    for number, wanted in enumerate(_apportion(np.bincount(stratum, weights=sizes), target)):
        own = order[stratum[order] == number]
        if wanted and len(own):
            places = _fill(sizes[own], wanted)
            if sizes[own[places]].sum() < 2 * wanted:  # otherwise no rows are closer to the target
                chosen[own[places]] = True
    if not chosen.any() or chosen.all():
        raise UserError("the groups are too large to split their strata; use another stratify_key, or none")
    return np.take(chosen, labels)


def _group_strata(labels: np.ndarray, content: np.ndarray, strata: np.ndarray, groups: int) -> np.ndarray:
    """Returns the stratum of each group: the stratum of its row with the smallest hash."""
    kind = np.zeros(groups, np.int64)
    order = np.lexsort((strata, content[:, 1], content[:, 0]))[::-1]
    kind[labels[order]] = strata[order]  # the last assignment wins
    return kind


def _apportion(sizes: np.ndarray, target: int) -> list[int]:
    """Divides `target` rows among strata in proportion to their sizes (largest remainder method)."""
    exact = sizes * target / sizes.sum()
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: target - int(shares.sum())]] += 1
    return [int(share) for share in shares]


def _fill(sizes: np.ndarray, target: int) -> np.ndarray:
    """Returns indices of groups whose sizes add up to the target or close to it, from the front if possible."""
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
    best = _search_exactly(sizes, target, missing)
    if best is not None:
        return best
    return np.array(places) if places else np.array([int(np.argmin(sizes))])


def _search_exactly(sizes: np.ndarray, target: int, missing: int) -> np.ndarray | None:
    """Finds the closest subset sum with integers as bit sets; None if the search would be too large."""
    limit = min(target + missing, int(sizes.sum()) - 1)
    if len(sizes) * limit > SEARCH_BITS:
        return None
    mask = (1 << (limit + 1)) - 1
    reachable = [1]  # possible sums of the groups from each index to the end, in reverse order
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
