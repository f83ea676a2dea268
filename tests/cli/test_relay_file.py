"""relay.toml: what it may say, what it says by default, and what is told of a mistake."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.cli import main, parser
from flare.cli.relay import DEFAULT_LISTEN, settings_from
from flare.cli.relay_file import KEYS, RelaySettings, flatten, load, with_values
from flare.config import Rate, RelayLimits, Timeouts
from flare.errors import UsageError
from flare.wire.multiaddr import Multiaddr

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "relay.toml"
DOCS = (ROOT / "docs" / "relay.md").read_text()
PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "relay.toml"


def told(file: Path, text: str) -> str:
    """What is said of a file that is wrong."""
    file.write_text(text)
    with pytest.raises(UsageError) as wrong:
        load(file)
    return str(wrong.value)


class TestExample:
    def test_it_says_the_defaults(self) -> None:
        settings = load(EXAMPLE)
        assert settings.limits == RelayLimits()
        assert settings.drain_timeout == Timeouts().relay_drain
        assert settings.listen == tuple(Multiaddr(addr) for addr in DEFAULT_LISTEN)
        rest = {name: getattr(settings, name) for name in RelaySettings.__slots__}
        defaults = RelaySettings()
        for name in ("limits", "drain_timeout", "listen"):
            del rest[name]
        assert rest == {name: getattr(defaults, name) for name in rest}

    def test_it_has_every_key(self) -> None:
        text = EXAMPLE.read_text()
        whole = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
        assert flatten(tomllib.loads(whole), "").keys() == KEYS.keys()
        with_values(RelaySettings(), flatten(tomllib.loads(whole), ""), "")

    def test_the_documentation_has_every_key_and_no_other(self) -> None:
        assert re.findall(r"^\| `([a-z_0-9.]+)` \|", DOCS, flags=re.MULTILINE) == list(KEYS)


class TestValues:
    def test_an_empty_file_says_nothing(self, file: Path) -> None:
        file.write_text("")
        assert load(file) == RelaySettings()

    def test_each_kind(self, file: Path) -> None:
        file.write_text(
            f"""
            listen = ["/ip4/127.0.0.1/tcp/1"]
            identity = "keys/relay.key"
            threads = 3
            drain_timeout = "1m"
            [status]
            listen = "127.0.0.1:1"
            [reservations]
            max = 7
            lifetime = "10m"
            rate_per_peer = "1/h"
            [circuits]
            bytes = "none"
            max = "none"
            [bandwidth]
            total = {{ rate = "1 Gbit/s", burst = "1 MiB" }}
            [prefix]
            ipv6 = 48
            [access]
            deny = ["{PEER}", "10.0.0.0/8"]
            """
        )
        settings = load(file)
        assert settings == RelaySettings(
            listen=(Multiaddr("/ip4/127.0.0.1/tcp/1"),),
            identity=file.parent / "keys/relay.key",
            threads=3,
            drain_timeout=60.0,
            status="127.0.0.1:1",
            deny=(PEER, "10.0.0.0/8"),
            limits=RelayLimits(
                max_reservations=7,
                reservation_ttl=600.0,
                reservation_rate_per_peer=Rate(1 / 3600),
                circuit_bytes=0,
                max_circuits=0,
                byte_rate=Rate(1.25e8, 1 << 20),
                ipv6_prefix=48,
            ),
        )

    def test_an_absolute_identity_stays(self, file: Path) -> None:
        file.write_text('identity = "/somewhere/relay.key"')
        assert load(file).identity == Path("/somewhere/relay.key")

    def test_threads_by_the_cores(self, file: Path) -> None:
        file.write_text('threads = "auto"')
        assert load(file).threads >= 1

    @pytest.mark.parametrize(
        ("key", "good", "bad"),
        [
            ("threads", 1024, 1025),
            ("reservations.max", 0, -1),
            ("reservations.per_peer", 1, 0),
            ("reservations.per_ip", 1 << 31, (1 << 31) + 1),
            ("reservations.lifetime", "1s", "999ms"),
            ("circuits.bytes", "1 TiB", 1 + (1 << 40)),
            ("prefix.ipv4", 32, 33),
            ("prefix.ipv6", 128, 129),
            ("prefix.ipv4", 0, -1),
        ],
    )
    def test_at_the_bound_and_one_past_it(self, key: str, good: object, bad: object) -> None:
        with_values(RelaySettings(), {key: good}, "x")
        with pytest.raises(UsageError, match=rf"^x: {key}: "):
            with_values(RelaySettings(), {key: bad}, "x")


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("circuit.bytes = 1", "circuit: there is no such key"),
            ("[circuits]\nbyts = 1", "circuits.byts: there is no such key; did you mean circuits.bytes?"),
            ("deny = []", "deny: there is no such key; did you mean access.deny?"),
            ("[prefix]\nqqqq = 1", "prefix.qqqq: there is no such key; there are prefix.ipv4, prefix.ipv6"),
            ("circuits = 5", "circuits: it is a table: write [circuits]"),
            ("[circuits]\nbytes = '12 XB'", "circuits.bytes: '12 XB' is not a size"),
            ("[circuits]\nmax = 'many'", "circuits.max: 'many' is not a whole number"),
            ("[reservations]\nmax = 'none'", "reservations.max: 'none' is not a whole number"),
            ("[reservations]\nmax = true", "reservations.max: True is not a whole number"),
            ("drain_timeout = 'none'", "drain_timeout: there is no waiting without end"),
            ("listen = '/ip4/1.2.3.4/tcp/1'", "listen: it is a list of texts"),
            ("listen = ['4001']", "listen: '4001' is no multiaddr"),
            ("identity = ''", "identity: '' is not a text"),
            ("[access]\nallow = ['nobody']", "access.allow: 'nobody' is neither a peer id nor a network"),
            ("[access]\nallow = ['10.0.0.1/8']", "access.allow: '10.0.0.1/8' is neither"),
            ("[access\n", "not TOML: "),
        ],
    )
    def test_file_key_and_what_is_wrong(self, file: Path, text: str, sentence: str) -> None:
        assert told(file, text).startswith(f"{file}: {sentence}")

    def test_toml_says_the_line(self, file: Path) -> None:
        assert "line 2" in told(file, "threads = 1\nlisten = 4001 tcp\n")

    def test_bytes_that_are_no_text(self, file: Path) -> None:
        file.write_bytes(b"\xff\xfe")
        with pytest.raises(UsageError, match="not TOML"):
            load(file)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        try:
            document = tomllib.loads(data.decode(errors="replace"))
        except tomllib.TOMLDecodeError:
            return
        try:
            with_values(RelaySettings(), flatten(document, ""), "")
        except UsageError:
            return

    def test_the_command_ends_with_2(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file.write_text("[circuits]\nbyts = 1")
        assert main(["relay", "--config", str(file)]) == 2
        assert capsys.readouterr().err == (
            f"flare relay: {file}: circuits.byts: there is no such key; did you mean circuits.bytes?\n"
        )

    def test_a_file_that_is_not_there_is_1(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["relay", "--config", str(file)]) == 1
        assert "No such file" in capsys.readouterr().err


class TestFlags:
    def settings(self, *words: str) -> RelaySettings:
        return settings_from(parser("relay").parse_args(["relay", *words]))

    def test_none_is_the_defaults(self) -> None:
        assert self.settings() == RelaySettings()

    def test_they_come_after_the_file(self, file: Path) -> None:
        file.write_text(
            "announce = ['/ip4/1.1.1.1/tcp/1']\n"
            "[circuits]\nbytes = 1\nmax = 5\n[access]\ndeny = ['10.0.0.0/8']"
        )
        settings = self.settings(
            *("--config", str(file)),
            *("--circuit-bytes", "1 MiB"),
            *("--circuit-duration", "none"),
            *("--max-reservations", "9"),
            *("--bandwidth", "8 Mbit/s"),
            *("--peer-bandwidth", "1 MB/s"),
            *("--deny", PEER, "--deny", "2001:db8::/32"),
            *("--allow", "1.2.3.4", "--unlimited", PEER),
            *("--drain-timeout", "2m"),
        )
        assert settings == RelaySettings(
            announce=(Multiaddr("/ip4/1.1.1.1/tcp/1"),),
            drain_timeout=120.0,
            allow=("1.2.3.4",),
            deny=("10.0.0.0/8", PEER, "2001:db8::/32"),
            unlimited=(PEER,),
            limits=RelayLimits(
                max_circuits=5,
                circuit_bytes=1 << 20,
                circuit_duration=0.0,
                max_reservations=9,
                byte_rate=Rate(1e6),
                byte_rate_per_peer=Rate(1e6),
            ),
        )

    def test_no_limits_is_where_the_rest_starts(self, file: Path) -> None:
        file.write_text("[circuits]\nmax = 5")
        limits = self.settings("--no-limits", "--config", str(file)).limits
        assert (limits.max_circuits, limits.circuit_bytes) == (5, 0)
        assert limits.reservation_rate_per_peer == Rate()

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["--circuit-bytes", "12 XB"], "argument --circuit-bytes: '12 XB' is not a size"),
            (["--bandwidth", "fast"], "argument --bandwidth: 'fast' is not a rate"),
            (["--deny", "nobody"], "argument --deny: 'nobody' is neither a peer id nor a network"),
            (["--drain-timeout", "none"], "argument --drain-timeout: there is no waiting without end"),
            (["--max-circuits", "-1"], "argument --max-circuits: -1 is less than nothing"),
        ],
    )
    def test_a_wrong_one(self, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            self.settings(*words)
        assert sentence in capsys.readouterr().err.splitlines()[-1]
