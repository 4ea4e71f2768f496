"""A shop in which nothing went wrong is found to be so, with its figures."""

from pathlib import Path

from verify_judge import examine
from verify_world import clean_world


def test_a_clean_shop_breaks_no_invariant(tmp_path: Path) -> None:
    findings = examine(clean_world(), tmp_path)

    assert {name: finding.lines() for name, finding in findings.items() if not finding.ok} == {}
    assert list(findings) == [f"I{number}" for number in range(1, 13)]


def test_the_figures_of_a_clean_shop_are_what_happened(tmp_path: Path) -> None:
    findings = examine(clean_world(), tmp_path)

    assert findings["I1"].figures["accepted"] == 6
    assert findings["I1"].figures["lost"] == 0
    assert findings["I2"].figures["captures"] == 3
    assert findings["I3"].figures["EUR net"] == 2 * 3998
    assert findings["I3"].figures["EUR due"] == 2 * 3998
    assert findings["I4"].figures["sold"] == 4
    assert findings["I4"].figures["on hand"] == 101
    assert findings["I5"].figures["confirmed"] == 2
    assert findings["I6"].figures["messages"] == 6
    assert findings["I8"].figures["audited"] == findings["I8"].figures["in histories"]


def test_every_finding_is_one_line_with_its_source(tmp_path: Path) -> None:
    for finding in examine(clean_world(), tmp_path).values():
        (line,) = finding.lines()
        assert line.startswith(finding.name)
        assert " ok " in line
        assert finding.source in line
