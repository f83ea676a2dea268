"""The page that make interop writes."""

from tests.interop.table import DIRECT, Place, Table


def lines(table: Table) -> list[str]:
    """The only section's table, its head first."""
    return [line for line in table.render().splitlines() if line.startswith("|")]


def rows(table: Table) -> list[str]:
    return lines(table)[2:]


def test_rows_are_in_the_order_of_their_tests_however_those_end() -> None:
    table = Table()
    table.add(Place(DIRECT, "echo", "go dials"), 5, True)
    table.add(Place(DIRECT, "ping", "go dials"), 3, True)
    table.add(Place(DIRECT, "ping", "flare dials"), 1, True)
    assert lines(table)[0].endswith("| flare dials | go dials |")
    assert rows(table) == ["| ping | yes | yes |", "| echo | – | yes |"]


def test_a_cell_is_yes_when_all_its_tests_passed() -> None:
    table = Table()
    for number, passed in enumerate([True, False, True]):
        table.add(Place(DIRECT, "ping", "go dials"), number, passed)
    assert rows(table) == ["| ping | NO |"]


def test_security_is_a_column_where_it_is_told_apart() -> None:
    table = Table()
    table.add(Place(DIRECT, "ping", "go dials", "TLS"), 1, True)
    table.add(Place(DIRECT, "ping", "go dials", "Noise"), 2, False)
    table.add(Place(DIRECT, "limits", "go dials"), 3, True)
    assert rows(table) == ["| ping | TLS | yes |", "| ping | Noise | NO |", "| limits | either | yes |"]


def test_what_fails_in_the_peer_itself_is_said() -> None:
    table = Table()
    table.add(Place(DIRECT, "ping", "go dials", cannot="its own listener too"), 1, True)
    assert rows(table) == ["| ping | cannot: its own listener too |"]
