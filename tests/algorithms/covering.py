"""A covering array: few groups of compatible items, so that each pair is in a group."""


def covering_groups(items, compatible, size):
    """Return groups in which each compatible pair of items is together at least once.

    Greedy: a group starts with the first uncovered pair, and grows by the item that covers most of
    the remaining pairs.

    Args:
        items: the items; their order decides ties.
        compatible: says whether two items may be in one group.
        size: the most items of a group, at least 2.
    """
    order = list(items)
    left = {
        (a, b) for i, a in enumerate(order) for b in order[i + 1 :] if compatible(a, b)
    }  # each pair in the order of the items
    rank = {item: i for i, item in enumerate(order)}

    def pair(a, b):
        return (a, b) if rank[a] < rank[b] else (b, a)

    groups = []
    while left:
        group = list(min(left, key=lambda two: (rank[two[0]], rank[two[1]])))
        while len(group) < size:
            able = [
                item
                for item in order
                if item not in group and all(compatible(item, other) for other in group)
            ]
            gains = {item: sum(pair(item, other) in left for other in group) for item in able}
            best = max(able, key=lambda item: gains[item], default=None)
            if best is None or gains[best] == 0:
                break
            group.append(best)
        left -= {pair(a, b) for i, a in enumerate(group) for b in group[i + 1 :]}
        groups.append(sorted(group, key=lambda item: rank[item]))
    return groups
