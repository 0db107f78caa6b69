"""Statistics of the comparison: a paired bootstrap over books and Holm's correction. Plain Python; numpy, where it is there, only makes it faster, with
the same resamples and, up to rounding, the same numbers.

A loss is a ratio: summed nats of the books over their summed tokens (or bytes). A resample draws as many books as there are, with replacement, and takes
the ratio over them; every type is given the same draws, so that differences are paired. Intervals are percentiles (Efron 1979). Books, not tokens, are the
unit, since tokens of one book are alike."""
import collections
import random

try:
    import numpy
except ImportError:
    numpy = None

RESAMPLES = 10000
SEED = 20240624
LEVEL = 0.95


def draws(books, resamples=RESAMPLES, seed=SEED):
    """How often each resample has each book: `resamples` lists of `books` counts."""
    if books < 1 or resamples < 1:
        raise ValueError(f"a bootstrap of {books} books and {resamples} resamples")
    rng = random.Random(seed)
    everything = range(books)
    counts = []
    for _ in range(resamples):
        counted = collections.Counter(rng.choices(everything, k=books))
        counts.append([counted.get(book, 0) for book in everything])
    return counts


def resampled_sums(counts, values):
    """sum over books of count * value, one a resample."""
    if any(len(row) != len(values) for row in counts[:1]):
        raise ValueError(f"{len(values)} books, but the resamples are of {len(counts[0])}")
    if numpy is not None:
        return (numpy.asarray(counts, dtype=float) @ numpy.asarray(values, dtype=float)).tolist()
    return [sum(count * value for count, value in zip(row, values) if count) for row in counts]


def resampled_ratios(counts, numerators, denominators):
    """Ratios of sums, one a resample; resamples whose denominator is 0 (only books without such a token) are left out by None."""
    above, below = resampled_sums(counts, numerators), resampled_sums(counts, denominators)
    return [a / b if b > 0 else None for a, b in zip(above, below)]


def percentile(ordered, share):
    """Of an ascending list, between the neighbours in proportion."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def interval(values, level=LEVEL):
    """(low, high) that holds `level` of the values."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None, None
    return percentile(ordered, (1 - level) / 2), percentile(ordered, (1 + level) / 2)


def p_value(values):
    """Two-sided, of resampled differences against 0; never 0, since there are finitely many resamples."""
    known = [value for value in values if value is not None]
    least = min(sum(value <= 0 for value in known), sum(value >= 0 for value in known))
    return min(1.0, 2 * (least + 1) / (len(known) + 1))


def paired_difference(counts, first, second, denominators):
    """first - second as ratios over the same books: (difference, low, high, p)."""
    total = sum(denominators)
    values = [a - b if a is not None and b is not None else None
              for a, b in zip(resampled_ratios(counts, first, denominators), resampled_ratios(counts, second, denominators))]
    low, high = interval(values)
    return (sum(first) - sum(second)) / total, low, high, p_value(values)


def holm(p_values):
    """Holm's adjusted p-values (Scand. J. Statist. 6, 1979), in the order given: below alpha means rejected at family-wise alpha."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def mean(values):
    return sum(values) / len(values) if values else None


def deviation(values):
    """Standard deviation of a sample, None of fewer than two."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return (sum((value - centre) ** 2 for value in values) / (len(values) - 1)) ** 0.5
