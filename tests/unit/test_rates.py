"""Shares with Wilson's interval, and the agreement of judges."""

from __future__ import annotations

from math import sqrt

import pytest

from cliffstore.analyze.rates import MISSING, UNDECIDED, Judged, agreements, group_rates, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 10), (81, 263), (1, 1), (500, 1000)])
def test_interval_is_wilsons(k: int, n: int) -> None:
    z, share = 1.959963984540054, k / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    rate = wilson(k, n)
    assert rate.low is not None
    assert rate.high is not None
    assert (rate.k, rate.n, rate.share) == (k, n, share)
    assert rate.low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert rate.high == pytest.approx(min(centre + half, 1), abs=1e-9)


def test_published_interval() -> None:
    """81 of 263 (R. G. Newcombe, Statistics in Medicine 1998, table I): 0.2553 to 0.3662."""
    rate = wilson(81, 263)
    assert (round(rate.low or 0, 4), round(rate.high or 0, 4)) == (0.2553, 0.3662)


def test_share_of_none_is_not_defined() -> None:
    rate = wilson(0, 0)
    assert (rate.share, rate.low, rate.high, str(rate)) == (None, None, None, "-")


def test_rates_leave_out_what_has_no_verdict_and_count_it() -> None:
    examples = [
        Judged(False, True, "a"),
        Judged(True, True, "a"),
        Judged(True, False, "b"),
        Judged(False, False, "b"),
        Judged(False, False, "b"),
        Judged(None, True, "b", MISSING),
        Judged(None, False, None, UNDECIDED),
        Judged(True, None, None),
        Judged(None, None, None, MISSING),
    ]
    whole, nameless, a, b = group_rates("rules", examples, by_group=True)
    assert (whole.attack_success.k, whole.attack_success.n) == (1, 2)
    assert (whole.over_refusal.k, whole.over_refusal.n) == (1, 3)
    assert (whole.refused.k, whole.refused.n) == (3, 6)
    assert (whole.examples, whole.missing, whole.undecided, whole.unlabelled) == (9, 2, 1, 2)
    assert (nameless.group, nameless.examples, nameless.undecided) == ("", 3, 1)
    assert (a.group, a.attack_success.share, a.over_refusal.share) == ("a", 0.5, None)
    assert (b.group, b.attack_success.n, b.missing) == ("b", 0, 1)


def test_agreement_is_over_examples_on_which_both_have_a_verdict() -> None:
    verdicts = {
        "one": [True, True, False, False, True, None, False],
        "two": [True, False, False, False, False, True, None],
    }
    (found,) = agreements(verdicts)
    assert (found.first, found.second) == ("one", "two")
    assert (found.agreement.k, found.agreement.n) == (3, 5)
    assert (found.first_only, found.second_only) == (2, 0)
    observed, by_chance = 3 / 5, (3 / 5) * (1 / 5) + (2 / 5) * (4 / 5)
    assert found.kappa == pytest.approx((observed - by_chance) / (1 - by_chance))


def test_kappa_without_chance_is_not_defined() -> None:
    (found,) = agreements({"one": [True, True], "two": [True, True]})
    assert (found.agreement.share, found.kappa) == (1.0, None)
    (none,) = agreements({"one": [None], "two": [True]})
    assert (none.agreement.n, none.kappa) == (0, None)


def test_three_judges_make_three_pairs() -> None:
    verdicts = {name: [True, False] for name in ("one", "two", "three")}
    assert [(one.first, one.second) for one in agreements(verdicts)] == [
        ("one", "two"),
        ("one", "three"),
        ("two", "three"),
    ]
