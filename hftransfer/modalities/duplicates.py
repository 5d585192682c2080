"""Equal and nearly equal inputs: by content hash, by difference hash for images, by shingles for texts."""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 16
# Measured on copies that were resized, compressed, brightened, blurred by noise (0.98 and more), on different things
# before one plain background (0.85 at most), and on exposures of one magnetic tile (0.94 for nine of ten).
HASH_DISTANCE = 32
CORRELATION = 0.9
# Different handwritten digits of 28 pixels reach 0.949 in 5,000.
SMALL_PICTURE = 64
SMALL_CORRELATION = 0.95
SHINGLE = 5
MINHASHES, BANDS = 64, 16
MOST_CHARACTERS = 1_000_000  # of a text that are compared
JACCARD = 0.8
NO_PAIRS = np.empty((0, 2), dtype=int)
BLOCK, TILE = 64, 2048  # hashes that are compared at a time: what they leave fits into a processor's cache
MOST_COMPARED = 8_000  # pictures whose hashes are all compared; of more, those that are neighbours in one of the orders
ORDERS, NEIGHBOURS = 32, 4
SLACK = 16  # signs of the hash that two pictures and their mirror images may differ by: those of equal neighbours
KEY = 32  # random projections that make up the place of a picture in an order: the number of bits of a key
MOST_CANDIDATES = 4_000  # whose thumbnails are compared at a time
MOST_PAIRS = 2_000_000  # that are kept one by one


def equal_pairs(digests: list[str]) -> np.ndarray:
    """Pairs (P, 2) that link all rows of equal, non-empty content hash: each row with the one before it."""
    last: dict[str, int] = {}
    pairs = []
    for index, value in enumerate(digests):
        if value and value in last:
            pairs.append((last[value], index))
        last[value] = index
    return np.array(pairs, dtype=int).reshape(-1, 2)


def similar_images(
    thumbnails: list[np.ndarray | None], short_sides: list[int] | None = None, mirrored: bool = True
) -> np.ndarray:
    """Pairs (P, 2), i < j, of images that show the same, with `mirrored` also those, of another size, exposure or compression.

    A difference hash proposes (the signs of the 240 horizontal differences of a 16 x 16 thumbnail, at most 32 of them
    different; N. Krawetz 2013, "Kind of like that"), the correlation of the differences decides: before a plain
    background the signs alone are alike. `short_sides` are the pixels of the originals: of two small pictures, such as
    single digits, the whole 32 x 32 thumbnails have to agree.

    Up to `MOST_COMPARED` images all pairs are tried. Of more, neighbours in sorted orders are, and of a crowd of like images
    links that connect them are returned: docs/scale.md has the recall.
    """
    known = np.array([index for index, item in enumerate(thumbnails) if item is not None], dtype=int)
    if len(known) < 2:
        return NO_PAIRS
    greys = np.stack([thumbnails[index] for index in known])
    sides = np.array(short_sides)[known] if short_sides else np.full(len(known), SMALL_PICTURE)
    search = _all_pairs if len(known) <= MOST_COMPARED else _neighbouring_pairs
    return known[search(greys, sides < SMALL_PICTURE, mirrored)].reshape(-1, 2)


def similar_texts(texts: list[str]) -> np.ndarray:
    """Pairs (P, 2), i < j, of texts whose sets of 5-character shingles overlap by 0.8 or more (Jaccard).

    Letter case, punctuation and blanks do not count. Candidates come from 64 MinHashes in 16 bands (Broder 1997, "On the
    resemblance and containment of documents"; a pair of overlap 0.8 is missed once in 4,000), the exact overlap decides.
    """
    if len(texts) < 2:
        return NO_PAIRS
    shingles = [_shingles(plain(text[:MOST_CHARACTERS])) for text in texts]
    candidates = _banded_candidates(_minhashes(shingles))
    return np.array([pair for pair in candidates if _jaccard(shingles, *pair) >= JACCARD], dtype=int).reshape(-1, 2)


def components(count: int, pairs: np.ndarray) -> np.ndarray:
    """For each of `count` rows the number of the connected component that `pairs` put it in."""
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def plain(text: str) -> str:
    """Lower-case words of letters and digits with single blanks between them; a text without any stays as it is."""
    visible = text
    for sign in () if text.isascii() else {c for c in set(text) if unicodedata.category(c) == "Cf"}:
        visible = visible.replace(sign, "")
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", visible).casefold())) or text


def _all_pairs(greys: np.ndarray, small: np.ndarray, mirrored: bool) -> np.ndarray:
    """Pairs (P, 2), i < j, of alike images (N, 32, 32) uint8, after a comparison of all hashes."""
    views = (greys, greys[:, :, ::-1])[: 1 + mirrored]
    return np.unique(np.concatenate([_close_pairs(greys, view, small) for view in views]), axis=0)


def _neighbouring_pairs(greys: np.ndarray, small: np.ndarray, mirrored: bool) -> np.ndarray:
    """Pairs (P, 2), i < j, that link alike images (N, 32, 32) uint8; time grows as N log N, memory as N.

    Each order sorts images and mirror images by the signs of random projections of their changes (Charikar 2002,
    "Similarity estimation techniques from rounding algorithms", sec. 3; the sorted search is Ravichandran et al. 2005, sec.
    2.3). Neighbours are tried as `_all_pairs` tries every pair.
    """
    count = len(greys)
    keys, hashes = _sort_keys(greys, mirrored)
    component, links, tried = np.arange(count), [NO_PAIRS], np.empty(0, dtype=np.int64)
    for key in keys:
        pairs = np.unique(_neighbours(np.flatnonzero(key)[np.argsort(key[key > 0], kind="stable")], hashes, count))
        one, other = np.divmod(np.setdiff1d(pairs, tried, assume_unique=True), 2 * count)
        one, other = _where(component[one] != component[other % count], one, other)
        tried = np.union1d(tried, one * 2 * count + other)[:MOST_PAIRS]
        agree = _agreeing(greys, small, one, other)
        links.append(np.stack([one[agree], other[agree] % count], 1))
        component = components(count, np.concatenate(links))
    return np.unique(np.concatenate(links), axis=0)


def _neighbours(order: np.ndarray, hashes: np.ndarray, count: int) -> np.ndarray:
    """Numbers (P,) of pairs that are near in an order and by their hashes: `one` * 2 * count + `other`."""
    ordered, found = hashes[order], []
    for step in range(1, NEIGHBOURS + 1):
        near = np.bitwise_count(ordered[:-step] ^ ordered[step:]).sum(1) <= HASH_DISTANCE + SLACK
        one, other = _plain_first(order[:-step][near], order[step:][near], count)
        distance = np.bitwise_count(hashes[one] ^ hashes[other]).sum(1)
        found.append((one * 2 * count + other)[distance <= HASH_DISTANCE])
    return np.concatenate(found)


def _plain_first(one: np.ndarray, other: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of image numbers, mirror images from `count` on, with the lower image first and not mirrored."""
    swapped = one % count > other % count
    one, other = np.where(swapped, other, one), np.where(swapped, one, other)
    turned = one >= count  # both are turned: the pair stays what it is
    return np.where(turned, one - count, one), np.where(turned, (other + count) % (2 * count), other)


def _sort_keys(greys: np.ndarray, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Keys (ORDERS, M) uint32, 0 for a blank image, and hashes (M, 4), of images and then of their mirror images."""
    planes = np.random.default_rng(0).standard_normal((2 * SIDE * (SIDE - 1), ORDERS * KEY), dtype=np.float32)
    keys, hashes = [], []
    for view in (greys, greys[:, :, ::-1])[: 1 + mirrored]:
        for start in range(0, len(view), 1000):
            halved = _halved(view[start : start + 1000])
            changes = _changes(halved)
            bits = np.packbits((changes @ planes > 0).reshape(len(changes), ORDERS, KEY), axis=2)
            found = np.maximum(bits.view(np.uint32)[:, :, 0].byteswap(), 1)  # the first projection decides first
            keys.append(np.where(changes.any(1, keepdims=True), found, 0))
            hashes.append(_hashes(halved))
    return np.ascontiguousarray(np.concatenate(keys).T), np.concatenate(hashes)


def _agreeing(greys: np.ndarray, small: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return whether images of these numbers show the same (P,); those from N on are mirror images."""
    agree = np.zeros(len(one), dtype=bool)
    for start in range(0, len(one), MOST_CANDIDATES):
        part = slice(start, start + MOST_CANDIDATES)
        first, second = (_seen(greys, numbers[part]) for numbers in (one, other))
        found = _products(_changes(_halved(first)), _changes(_halved(second))) >= CORRELATION
        tiny = np.flatnonzero(found & small[one[part] % len(greys)] & small[other[part] % len(greys)])
        found[tiny] = _products(_changes(first[tiny]), _changes(second[tiny])) >= SMALL_CORRELATION
        agree[part] = found
    return agree


def _seen(greys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the thumbnails of these numbers, mirrored from N on."""
    found = greys[numbers % len(greys)]
    return np.where((numbers >= len(greys))[:, None, None], found[:, :, ::-1], found)


def _close_pairs(first: np.ndarray, second: np.ndarray, small: np.ndarray) -> np.ndarray:
    """Pairs i < j where image i of `first` shows what image j of `second` shows, both (N, 32, 32) uint8.

    All hashes are compared, in blocks: time grows with the square of N, memory does not. Of more than `MOST_PAIRS` pairs,
    as of a film, links that connect the same images remain.
    """
    (hashes, changes), (other_hashes, other_changes) = _described(first), _described(second)
    component, pairs = np.arange(len(first)), NO_PAIRS
    for start in range(0, len(first), BLOCK):
        found = [pairs]
        for i, j in _near_hashes(hashes, other_hashes, start):
            i, j = _where(component[i] != component[j], i, j)
            i, j = _where(_products(changes[i], other_changes[j]) >= CORRELATION, i, j)
            agree = ~(small[i] & small[j])
            tiny = np.flatnonzero(~agree)
            agree[tiny] = _products(_changes(first[i[tiny]]), _changes(second[j[tiny]])) >= SMALL_CORRELATION
            found.append(np.stack(_where(agree, i, j), 1))
        pairs = np.concatenate(found)
        if len(pairs) > MOST_PAIRS:
            component = components(len(first), pairs)
            pairs = _links(component)
    return pairs


def _where(kept: np.ndarray, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return i[kept], j[kept]


def _links(component: np.ndarray) -> np.ndarray:
    """Pairs that link each image to the first one of its component."""
    _, first, number = np.unique(component, return_index=True, return_inverse=True)
    pairs = np.stack([first[number], np.arange(len(component))], 1)
    return pairs[pairs[:, 0] < pairs[:, 1]]


def _described(greys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (4, N) and changes (N, 480) of thumbnails (N, 32, 32), a thousand at a time."""
    parts = [_halved(greys[start : start + 1000]) for start in range(0, len(greys), 1000)]
    hashes = np.concatenate([_hashes(part) for part in parts])
    return np.ascontiguousarray(hashes.T), np.concatenate([_changes(part) for part in parts])


def _near_hashes(hashes: np.ndarray, others: np.ndarray, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows i of a block and j > i whose hashes differ by at most 32 signs, a few thousand at a time.

    Half of a hash decides first. An exact search by bands has nothing to gain: they would have 7 signs each.
    """
    block = hashes[:, start : start + BLOCK]
    for left in range(start, others.shape[1], TILE):
        tile = others[:, left : left + TILE]
        half = np.bitwise_count(block[0, :, None] ^ tile[0]) + np.bitwise_count(block[1, :, None] ^ tile[1])
        i, j = np.divmod(np.flatnonzero(half <= HASH_DISTANCE), half.shape[1])
        i, j = _where(i + start < j + left, i, j)
        distance = half[i, j] + sum(np.bitwise_count(block[word, i] ^ tile[word, j]) for word in (2, 3))
        i, j = _where(distance <= HASH_DISTANCE, i + start, j + left)
        for part in range(0, len(i), MOST_CANDIDATES):
            yield i[part : part + MOST_CANDIDATES], j[part : part + MOST_CANDIDATES]


def _halved(greys: np.ndarray) -> np.ndarray:
    """(N, 16, 16) float32 means of (N, 32, 32)."""
    greys = greys.astype(np.float32)
    return (greys[:, ::2, ::2] + greys[:, ::2, 1::2] + greys[:, 1::2, ::2] + greys[:, 1::2, 1::2]) / 4


def _hashes(greys: np.ndarray) -> np.ndarray:
    """(N, 4) uint64: which of the horizontal differences are positive."""
    signs = np.zeros((len(greys), 256), dtype=bool)
    signs[:, : SIDE * (SIDE - 1)] = np.diff(greys, axis=2).reshape(len(greys), -1) > 0
    return np.packbits(signs, axis=1).view(np.uint64)


def _changes(greys: np.ndarray) -> np.ndarray:
    """(N, D) all differences between neighbours, as a vector of length one (zero for a blank image)."""
    greys = greys.astype(np.float32)
    across = [np.diff(greys, axis=axis) for axis in (1, 2)]
    changes = np.concatenate([part.reshape(len(part), part.shape[1] * part.shape[2]) for part in across], 1)
    length = np.linalg.norm(changes, axis=1, keepdims=True)
    blank = length < 0.7 * np.sqrt(changes.shape[1])  # of 255, in the mean
    return np.where(blank, 0, changes / np.maximum(length, 1e-9))


def _products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", first, second)


def _shingles(text: str) -> np.ndarray:
    """Return the set of 5-character pieces as sorted 32-bit hashes; a shorter text is one piece."""
    codes = np.frombuffer(text.ljust(SHINGLE).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    pieces = sum(
        codes[offset : len(codes) - SHINGLE + 1 + offset] * np.uint64(0x9E3779B1 ** (offset + 1) & 0xFFFFFFFFFFFFFFFF)
        for offset in range(SHINGLE)
    )
    return np.unique((pieces ^ (pieces >> np.uint64(29))).astype(np.uint32))


def _minhashes(shingles: list[np.ndarray]) -> np.ndarray:
    """(N, 64) uint32 signatures: the smallest value of each of 64 random affine maps over a text's shingles."""
    rng = np.random.default_rng(0)
    factors, shifts = rng.integers(1, 2**32, (2, MINHASHES, 1), dtype=np.uint32)
    signatures = [((factors | 1) * values + shifts).min(1) for values in shingles]  # wraps around at 32 bits
    return np.stack(signatures)


def _banded_candidates(signatures: np.ndarray) -> list[tuple[int, int]]:
    """Pairs i < j that agree on a whole band; of a large bucket, all pairs with its first and neighbouring members."""
    count = len(signatures)
    mixed = np.random.default_rng(1).integers(1, 2**63, MINHASHES // BANDS, dtype=np.uint64) | np.uint64(1)
    found = [np.empty(0, dtype=np.int64)]
    for band in np.split(signatures, BANDS, axis=1):
        bucket = (band.astype(np.uint64) * mixed).sum(1)  # wraps around at 64 bits
        order = np.argsort(bucket, kind="stable")
        alike = np.diff(bucket[order]) == 0
        first = np.maximum.accumulate(np.where(np.r_[False, alike], 0, np.arange(count)))  # of each place's bucket
        later = np.flatnonzero(alike) + 1
        found += [order[first[later]] * count + order[later], order[later - 1] * count + order[later]]
    return list(zip(*(part.tolist() for part in np.divmod(np.unique(np.concatenate(found)), count)), strict=True))


def _jaccard(shingles: list[np.ndarray], first: int, second: int) -> float:
    common = len(np.intersect1d(shingles[first], shingles[second], assume_unique=True))
    return common / (len(shingles[first]) + len(shingles[second]) - common)
