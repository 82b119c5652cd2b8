"""Who is meant: parsing, and who is chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsim import Fleet
from iotsim.errors import BadValue, UnknownName
from iotsim.outlets import routes_of
from iotsim.readings import Group
from iotsim.selectors import ids, parse, select


def group(index, device_type, count, first=0, **labels):
    names = [f"{device_type}-{i:04d}" for i in range(first, first + count)]
    return Group(index, device_type, names, labels)


GROUPS = [group(0, "pump", 400, site="north"), group(1, "pump", 100, first=400, site="south"),
          group(2, "meter", 500)]


def chosen(where, groups=GROUPS):
    found = select(where, groups)
    names = [name for g in groups for name, yes in zip(g.ids, found.masks[g.index], strict=True)
             if yes]
    assert len(names) == found.count
    return names


def test_all_and_several_keys_and_alternatives():
    assert len(chosen("all")) == 1000
    assert len(chosen("device_type=pump")) == 500
    assert len(chosen("device_type=pump,site=south")) == 100
    assert len(chosen("site=north|south")) == 500
    assert chosen("id=pump-0000|meter-0001") == ["pump-0000", "meter-0001"]
    assert len(chosen(" device_type = pump , site = north ")) == 400


def test_empty_text_is_an_error_and_no_ids_selects_nobody():
    for empty in ("", "  "):
        with pytest.raises(BadValue, match="is empty"):
            parse(empty)
    assert chosen(ids([])) == []
    assert chosen(ids(["pump-0003"])) == ["pump-0003"]


def test_an_unknown_key_is_an_error_and_an_unknown_value_matches_nobody_and_says_so():
    with pytest.raises(UnknownName, match="Did you mean 'site'"):
        select("sit=north", GROUPS)
    found = select("site=west", GROUPS)
    assert found.count == 0
    assert found.note == "where='site=west' matches no device"
    assert select("site=north", GROUPS).note == ""


def test_the_part_that_back_pressure_writes_is_for_the_log_and_no_name_for_people():
    parts = [chosen(f"site=north,shard={k}/4") for k in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(chosen("site=north"))
    assert str(parse("site=north,shard=1/4")) == "site=north,shard=1/4"
    for where in ("shrad=0/4", "sit=north"):
        with pytest.raises(UnknownName) as caught:
            select(where, GROUPS)
        assert "shard" not in str(caught.value)
    with pytest.raises(BadValue, match="label='shard' is a reserved name"):
        Fleet("p", seed=1).add("pump", labels={"shard": "1"})


def test_a_fraction_is_about_that_many_and_stable_when_devices_come_and_go():
    few = chosen("fraction=10%")
    assert 60 <= len(few) <= 140
    more = [*GROUPS, group(3, "valve", 5000)]
    assert [n for n in chosen("fraction=10%", more) if not n.startswith("valve")] == few
    fewer = [group(0, "pump", 200, site="north")]
    assert chosen("fraction=10%", fewer) == [n for n in few if n in fewer[0].ids]
    assert set(chosen("fraction=0.05")) <= set(few)
    assert chosen("fraction=0%") == []
    assert len(chosen("fraction=100%")) == 1000
    assert len(chosen("fraction=1")) == 1000


def test_a_count_is_exact_and_the_same_ones_every_time():
    five = chosen("device_type=pump,count=5")
    assert len(five) == 5
    assert five == chosen("count=5,device_type=pump")
    assert set(five) < set(chosen("device_type=pump,count=6"))
    assert chosen("count=0") == []
    assert len(chosen("count=5000")) == 1000


def test_a_fraction_and_a_count_say_how_many_and_a_count_says_who():
    few = select("site=north,fraction=10%", GROUPS)
    assert few.note == (
        f"where='site=north,fraction=10%' matches {few.count} of 1,000 devices")
    three = chosen("device_type=pump,count=3")
    assert select("device_type=pump,count=3", GROUPS).note == (
        f"where='device_type=pump,count=3' matches 3 of 1,000 devices: {', '.join(three)}")
    eleven = select("count=11", GROUPS).note
    assert eleven.endswith(f": {', '.join(chosen('count=11')[:10])}, …")
    assert select("count=0", GROUPS).note == "where='count=0' matches no device"


def test_nobody_is_written_as_it_is_typed():
    assert select(ids([]), GROUPS).note == "where=ids([]) matches no device"
    assert [repr(ids(names)) for names in ([], ["a", "b"], list("abcd"))] == [
        "ids([])", "ids(['a', 'b'])", "ids(['a', 'b', 'c', …])"]


def test_the_notes_of_a_fleets_routes_say_whom_an_outlet_serves():
    made = (Fleet("p", seed=1).add("pump", count=20).publish_to("memory:a")
            .publish_to("memory:b", where="count=2").publish_to("memory:c", where="id=x"))
    groups = [member.group(i) for i, member in enumerate(made.members)]
    notes = routes_of(made.outlets, made.members, groups)[1]
    assert [note.partition(" matches ")[0] for note in notes] == [
        "publish_to('memory:b'): where='count=2'", "publish_to('memory:c'): where='id=x'"]


@given(st.integers(0, 1000))
def test_any_count_gives_that_many(count):
    assert select(f"count={count}", GROUPS).count == count


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_is_a_selector_or_one_line_of_error(text):
    try:
        selector = parse(text)
    except BadValue:
        return
    assert parse(str(selector)) == selector


@pytest.mark.parametrize(
    "where",
    ["site", "site=", "=north", "site=north,", "site=a,site=b", "fraction=110%", "fraction=-1%",
     "fraction=nan", "fraction=x", "count=-1", "count=1.5", "count=5|6", None, 5, "site=a||b"],
)
def test_what_is_no_selector_is_an_error(where):
    with pytest.raises(BadValue, match=r"^where="):
        parse(where)


def test_ids_of_a_text_is_an_error_that_says_what_to_write():
    with pytest.raises(BadValue, match=r"Write ids\(\['pump-0001'\]\)\."):
        ids("pump-0001")


def test_a_selection_is_a_mask_per_group():
    found = select("site=south", GROUPS)
    assert {index: int(mask.sum()) for index, mask in found.masks.items()} == {0: 0, 1: 100, 2: 0}
    assert all(mask.dtype == np.bool_ for mask in found.masks.values())
