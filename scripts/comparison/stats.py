"""Statistics of the comparison. Plain Python; numpy, where it is there, only makes it faster, with the same resamples and, up to rounding, the same numbers.

A loss is a ratio: summed nats of the books over their summed tokens (or bytes). Two things make it uncertain: which books were asked, and how a training
came out. A difference counts only where it is clear of both:
- books: a resample draws as many books as there are, with replacement, and takes the ratio over them, seeds averaged; both types are given the same draws,
  so that differences are paired. Intervals are percentiles (Efron 1979). Books, not tokens, are the unit, since tokens of one book are alike.
- seeds: Welch's t (Biometrika 34, 1947) on the whole-run losses of the two types, every seed of each; runs that began at one checkpoint a seed (conversions)
  share all of its noise, so that there Student's t on the differences by seed is the one.
The p-value is the larger of the two; it goes into Holm's correction. With fewer than LEAST_SEEDS seeds on either side there is none, and nothing is decided.

Why this rule and not its relatives: simulated with the deviations that the first runs showed (a training 0.009 nat, the rest of a book in a training 0.007,
a type's taste for a book 0.006, 12 books), how often is a difference found at a level of 0.05, and of 0.0125, the first step of Holm's correction over four?

  seeds                        no difference             0.03 nat
                          3, 3   3, 5   5, 5    3, 3       3, 5       5, 5
  books alone             59 %   56 %   53 %    all        all        all
  books and paired t       5 %    6 %    6 %    57, 19 %   57, 20 %   96, 74 %
  books and Welch's t      4 %    5 %    6 %    74, 34 %   87, 59 %   99, 91 %
  one test, Satterthwaite  7 %           5 %    60, 29 %              97, 77 %

A t paired by seed spends half of its degrees of freedom on a likeness of equal seeds that the first runs did not show clearly, and drops the seeds that only
one type has; where equal seeds are alike, Welch's t errs on the careful side (rejects 1 % at a correlation of 0.7). Unequal noise hurts it little: 4 to 6 %
where one type is twice as noisy. One test by crossed random effects (Var = s2_books / B + s2_seeds / S + s2_rest / (B S)) is about as strong as the paired t,
and harder to check by hand. The limit of a rule of two: each test leaves out the other's variance; were tastes for books as large as the noise of trainings
(0.02 nat), it would reject 10 % at five seeds."""
import collections
import dataclasses
import functools
import math
import random

try:
    import numpy
except ImportError:
    numpy = None

RESAMPLES = 10000
SEED = 20240624
LEVEL = 0.95
LEAST_SEEDS = 3


@functools.lru_cache(maxsize=8)
def draws(books, resamples=RESAMPLES, seed=SEED):
    """How often each resample has each book: `resamples` lists of `books` counts. Not to be changed: the next call gets the same lists."""
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


# -- Student's t over seeds ---------------------------------------------------------------------------------------------------------------------------
def incomplete_beta(x, a, b):
    """Regularised, by its continued fraction (DLMF 8.17.22), of which 200 steps are far more than it needs here."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    fraction = 1.0
    for step in range(200, 0, -1):
        m = step // 2
        over = m * (b - m) if step % 2 == 0 else -(a + m) * (a + b + m)
        fraction = 1 + over * x / ((a + step - 1) * (a + step)) / fraction
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) / a / fraction


def student_p(t, degrees):
    """Two-sided."""
    return 0.0 if math.isinf(t) else incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def student_quantile(degrees, level=LEVEL):
    """The t within whose +- `level` of the distribution lies."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - student_p(middle, degrees) < level else (low, middle)
    return (low + high) / 2


def welch(first, second):
    """(low, high, p) of the difference of two samples' means; three times None where one has fewer than two values."""
    if min(len(first), len(second)) < 2:
        return None, None, None
    parts = [(deviation(values) ** 2 / len(values), len(values) - 1) for values in (first, second)]
    variance, gap = sum(part for part, _ in parts), mean(first) - mean(second)
    if variance == 0:
        return gap, gap, 0.0 if gap else 1.0
    degrees = variance ** 2 / sum(part ** 2 / freedom for part, freedom in parts)
    reach = student_quantile(degrees) * math.sqrt(variance)
    return gap - reach, gap + reach, student_p(gap / math.sqrt(variance), degrees)


def one_sample(values):
    """(low, high, p) of a sample's mean against 0, by Student's t; three times None of fewer than two values."""
    if len(values) < 2:
        return None, None, None
    error, centre = deviation(values) / math.sqrt(len(values)), mean(values)
    if error == 0:
        return centre, centre, 0.0 if centre else 1.0
    reach = student_quantile(len(values) - 1) * error
    return centre - reach, centre + reach, student_p(centre / error, len(values) - 1)


# -- a difference between two types -------------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Difference:
    """Of two types, every seed of each. books and seeds: 95 % intervals (low, high), (None, None) where there is none."""
    value: float
    books: tuple
    seeds: tuple
    counted: tuple  # seeds of each
    p: object  # the larger of both, None with fewer than LEAST_SEEDS seeds on a side

    def verdict(self, corrected):
        """worse: value > 0. corrected: p after Holm's correction."""
        if self.p is None:
            return "one seed" if min(self.counted) == 1 else "too few seeds"
        clear = all(low > 0 or high < 0 for low, high in (self.books, self.seeds))
        if corrected >= 1 - LEVEL or not clear:
            return "not decided"
        return "worse" if self.value > 0 else "better"


def pooled(losses):
    """Mean over seeds, book by book; losses: {seed: sums a book}."""
    return [mean(values) for values in zip(*(losses[seed] for seed in sorted(losses)))]


def compare(counts, first, second, denominators, paired=False):
    """first - second, each {seed: sums a book}, as ratios to denominators. paired: runs of one seed began at one checkpoint; seeds of both alone count."""
    if paired:
        common = first.keys() & second.keys()
        first, second = ({seed: kind[seed] for seed in common} for kind in (first, second))
        if not common:
            return Difference(float("nan"), (None, None), (None, None), (0, 0), None)
    value, low, high, p_books = paired_difference(counts, pooled(first), pooled(second), denominators)
    total = sum(denominators)
    ratios = [{seed: sum(sums) / total for seed, sums in kind.items()} for kind in (first, second)]
    seeds_low, seeds_high, p_seeds = (one_sample([ratios[0][seed] - ratios[1][seed] for seed in sorted(first)]) if paired
                                      else welch(*(list(kind.values()) for kind in ratios)))
    p = max(p_books, p_seeds) if min(len(first), len(second)) >= LEAST_SEEDS else None
    return Difference(value, (low, high), (seeds_low, seeds_high), (len(first), len(second)), p)


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
