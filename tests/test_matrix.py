"""The table of protocols and misfortunes: nothing that a device sent is lost, whatever happens."""

import pytest

from tests.matrix import DEVICES, LASTS_S, PROTOCOLS, cells
from tests.publishing import in_order_per_device
from tests.rig import Rig

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

CELLS = [(name, misfortune) for name, protocol in PROTOCOLS.items()
         for misfortune in protocol.misfortunes]


def struck(rig):
    if isinstance(rig, Rig):
        return rig.struck
    silenced = getattr(rig.rule, "lost", 0)
    return silenced + rig.lost + rig.doubled + rig.swapped + rig.carried * (rig.rule.delay_s > 0)


@pytest.mark.parametrize(("protocol", "misfortune"), CELLS)
def test_nothing_is_lost(protocol, misfortune):
    cell = cells(protocol)[misfortune]
    said = f"{cell.rig!r} {cell.result.publishers} {cell.result.errors} {cell.result.notes}"
    assert cell.result.rows == DEVICES * LASTS_S
    assert set(cell.received) == cell.sent, said
    ledger, = cell.result.publishers.values()
    assert ledger.acknowledged == ledger.offered == cell.result.rows, said
    assert not cell.result.errors, said
    first = list(dict.fromkeys(cell.received))
    assert in_order_per_device(first), said


@pytest.mark.parametrize(("protocol", "misfortune"), CELLS)
def test_the_law_held_at_every_step(protocol, misfortune):
    cell = cells(protocol)[misfortune]
    assert sum(ledger.moves for ledger in cell.ledgers) > 2
    assert all(ledger.snapshot().balanced for ledger in cell.ledgers)
    assert [wrong for ledger in cell.ledgers for wrong in ledger.wrong] == []
    assert all(ledger.compared > 2 for ledger in cell.ledgers)


@pytest.mark.parametrize(("protocol", "misfortune"), CELLS)
def test_there_was_trouble_and_the_audit_says_what_came_of_it(protocol, misfortune):
    cell = cells(protocol)[misfortune]
    assert struck(cell.rig), repr(cell.rig)
    assert cell.audit.ok, cell.audit.verdict
    assert cell.audit.lost_by_simulator == cell.audit.lost_by_broker == 0
    doubles = len(cell.received) - len(set(cell.received))
    assert f"{doubles:,} duplicated" in cell.audit.verdict or not doubles, cell.audit.verdict
