"""The decision of the sweep, without a bucket."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.dcp.names import folder_of
from aiockpt.dcp.remnants import Remnant, Standing, Verdict, by_checkpoint, judge

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DAY = timedelta(days=1)


def thing(key: str, hours: float | None = 30, upload_id: str = "") -> Remnant:
    return Remnant(key, 10, None if hours is None else NOW - timedelta(hours=hours), upload_id)


def standing(key: str, *data: str) -> Standing:
    return Standing(key, frozenset(data))


def unreadable(key: str) -> Standing:
    return Standing(key, None, "refused")


def judged(
    remnants: list[Remnant], metadata: list[Standing], grace: timedelta = DAY, now: datetime | None = NOW
) -> tuple[list[str], dict[str, str]]:
    """Names of what goes, and of what stays with the reason."""
    verdicts = judge(remnants, metadata, grace, now)
    names = {v.remnant.name: f"{v.remnant.key}{v.remnant.upload_id}" for v in verdicts}
    return (
        [names[v.remnant.name] for v in verdicts if v.goes],
        {names[v.remnant.name]: v.reason for v in verdicts if not v.goes},
    )


OLD, NEW = "c/__0_0.distcp", "c/__0_1.distcp"


@pytest.mark.parametrize(
    ("remnants", "metadata", "goes", "stays"),
    [
        pytest.param([thing(OLD)], [standing("c/.metadata", OLD)], [], {}, id="referred to"),
        pytest.param([thing(OLD)], [standing("c/__3.metadata", OLD)], [], {}, id="referred to by a rank's"),
        pytest.param([thing(OLD)], [standing("c/.metadata.tmp", OLD)], [], {}, id="referred to by an unfinished one"),
        pytest.param([thing(OLD)], [standing("c/.metadata", NEW)], [OLD], {}, id="replaced"),
        pytest.param([thing(OLD)], [], [OLD], {}, id="never committed"),
        pytest.param([thing(OLD, upload_id="u")], [], [f"{OLD}u"], {}, id="an upload"),
        pytest.param(
            [thing(OLD), thing(OLD, upload_id="u")],
            [standing("c/.metadata", OLD)],
            [f"{OLD}u"],
            {},
            id="an upload of what stands already",
        ),
        pytest.param([thing(OLD, 24)], [], [OLD], {}, id="just old enough"),
        pytest.param([thing(OLD, 23.99)], [], [], {OLD: "is 23:59:24 old"}, id="a little too young"),
        pytest.param([thing(OLD, -2)], [], [], {OLD: "is 0:00:00 old"}, id="from the future"),
        pytest.param(
            [thing(OLD), thing(NEW, 1, "u")],
            [],
            [],
            {OLD: f"at work: {NEW} is 1:00:00 old", f"{NEW}u": "at work"},
            id="an old object of a save that still sends",
        ),
        pytest.param(
            [thing(OLD, upload_id="u"), thing(NEW, 1)],
            [],
            [],
            {f"{OLD}u": "at work", NEW: "at work"},
            id="an old upload beside a young object",
        ),
        pytest.param(
            [thing(OLD), thing(NEW, 1)],
            [standing("c/.metadata", NEW)],
            [OLD],
            {},
            id="what is committed is no sign of a writer at work",
        ),
        pytest.param([thing(OLD, None)], [], [], {OLD: "how old"}, id="no time"),
        pytest.param([thing(OLD), thing(NEW, None)], [], [], {OLD: "how old", NEW: "how old"}, id="one without time"),
        pytest.param([thing(OLD)], [unreadable("c/.metadata")], [], {OLD: "cannot be read: refused"}, id="unreadable"),
        pytest.param([thing(OLD)], [unreadable(".metadata")], [], {OLD: "cannot be read"}, id="unreadable far above"),
        pytest.param([thing(OLD)], [unreadable("d/.metadata")], [OLD], {}, id="unreadable elsewhere"),
        pytest.param(
            [thing(OLD, upload_id="u")], [unreadable("c/.metadata")], [f"{OLD}u"], {}, id="no metadata name uploads"
        ),
    ],
)
def test_verdicts(remnants: list[Remnant], metadata: list[Standing], goes: list[str], stays: dict[str, str]) -> None:
    removed, kept = judged(remnants, metadata)
    assert removed == goes
    assert kept.keys() == stays.keys()
    assert all(part in kept[name] for name, part in stays.items())


def test_without_the_services_time() -> None:
    assert judged([thing(OLD)], [], now=None) == ([], {OLD: "the service does not say what time it is"})
    assert judged([thing(OLD)], [], timedelta(0), now=None)[0] == [OLD]


def test_no_grace_asks_for_no_age() -> None:
    assert judged([thing(OLD, None), thing(NEW, -5)], [], timedelta(0))[0] == [OLD, NEW]


KEYS = st.sampled_from(["c/__0_0.distcp", "c/__0_1.distcp", "c/__1_0.distcp", "c/00/epoch_1/__2_0.distcp"])
THINGS = st.builds(
    thing, KEYS, st.one_of(st.none(), st.floats(-10, 100)), st.sampled_from(["", "", "upload-1", "upload-2"])
)
METADATA = st.builds(
    Standing,
    st.sampled_from(["c/.metadata", "c/__0.metadata", ".metadata", "c/00/.metadata"]),
    st.one_of(st.none(), st.frozensets(KEYS)),
)


@given(
    st.lists(THINGS, unique_by=lambda r: r.name),
    st.lists(METADATA, max_size=3),
    st.integers(0, 50),
    st.one_of(st.none(), st.just(NOW)),
)
def test_nothing_that_may_be_needed_goes(
    remnants: list[Remnant], metadata: list[Standing], hours: int, now: datetime | None
) -> None:
    grace = timedelta(hours=hours)
    verdicts = judge(remnants, metadata, grace, now)
    going = [v.remnant for v in verdicts if v.goes]
    referred = {key for one in metadata for key in one.data or ()}
    guarded = tuple(folder_of(one.key) for one in metadata if one.data is None)
    for remnant in going:
        assert remnant.upload_id or (remnant.key not in referred and not remnant.key.startswith(guarded))
    left = [r for r in remnants if r.upload_id or r.key not in referred]
    assert [v.remnant for v in verdicts] == left
    if going and grace:
        assert now is not None
        assert all(r.touched is not None and now - r.touched >= grace for r in left)
    if not grace:
        assert going == [r for r in left if r.upload_id or not r.key.startswith(guarded)]
    assert all(v.reason for v in verdicts)


@given(st.lists(THINGS, unique_by=lambda r: r.name), st.lists(METADATA, max_size=2))
def test_a_longer_grace_never_removes_more(remnants: list[Remnant], metadata: list[Standing]) -> None:
    def gone(hours: int) -> set[Remnant]:
        verdicts: list[Verdict] = judge(remnants, metadata, timedelta(hours=hours), NOW)
        return {v.remnant for v in verdicts if v.goes}

    assert gone(48) <= gone(24) <= gone(1) <= gone(0)


@pytest.mark.parametrize(
    ("folder", "metadata", "names", "groups"),
    [
        ("c/", [], ["c/__0_0.distcp", "c/00/__1_0.distcp"], {"c/": 2}),
        ("c/", ["c/.metadata"], ["c/00/__0_0.distcp", "c/01/__1_0.distcp"], {"c/": 2}),
        ("run/", ["run/b/.metadata"], ["run/a/__0_0.distcp", "run/b/00/__1_0.distcp"], {"run/a/": 1, "run/b/": 1}),
        ("run/", ["run/b/.metadata"], [], {}),
        ("c/", ["c/.metadata"], [], {}),
        ("", [], ["run/a/__0_0.distcp", "__0_0.distcp"], {"": 2}),
        ("", [], ["run/a/__0_0.distcp", "other/__0_0.distcp"], {"run/": 1, "other/": 1}),
    ],
)
def test_whose_remnants(folder: str, metadata: list[str], names: list[str], groups: dict[str, int]) -> None:
    found = by_checkpoint(folder, metadata, [thing(name) for name in names])
    assert {checkpoint: len(things) for checkpoint, things in found.items()} == groups
