"""The list of mistakes that the tests have to notice (tests/mistakes.py) fits the code as it is."""

from pathlib import Path

from mistakes import AREAS, MISTAKES, check


def test_each_mistake_can_still_be_put_in():
    check(MISTAKES)


def test_each_mistake_has_an_area_with_tests():
    assert {mistake.area for mistake in MISTAKES} == AREAS.keys()
    tests = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    assert tests >= {name for names in AREAS.values() for name in names}
