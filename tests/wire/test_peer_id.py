"""flare.wire.peer_id (peer-ids.md, "Peer Ids")."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.errors import InvalidPeerId
from flare.wire.keys import Identity, PublicKey
from flare.wire.multibase import multibase_encode
from flare.wire.peer_id import MAX_INLINE_KEY, PeerId

VECTORS = Path(__file__).parents[1] / "vectors"
IDS = json.loads((VECTORS / "peer_ids.json").read_text())
KEYS = json.loads((VECTORS / "keys.json").read_text())["pairs"]


class TestText:
    def test_the_specs_examples(self) -> None:
        cid, base58 = IDS["same"]
        assert PeerId(cid) == PeerId(base58)
        assert str(PeerId(cid)) == base58
        assert PeerId(base58).to_cid() == cid
        assert PeerId(IDS["ed25519"]).extract_public_key() is not None
        assert PeerId(base58).extract_public_key() is None

    @given(st.binary(min_size=1, max_size=MAX_INLINE_KEY) | st.binary(min_size=32, max_size=32))
    def test_comes_back_in_every_notation(self, content: bytes) -> None:
        inlined = PeerId(bytes((0, len(content))) + content)
        for peer in [inlined] + ([PeerId(b"\x12\x20" + content)] if len(content) == 32 else []):
            assert PeerId(str(peer)) == peer
            assert PeerId(bytes(peer)) == peer
            for base in "bkzfu":
                assert PeerId(peer.to_cid(base)) == peer

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "1",
            "Qm",
            "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5",
            "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx50",
            "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SAA",
            "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",  # a CID, but of no key
            "hello",
            "1" * 600,
        ],
    )
    def test_malformed(self, text: str) -> None:
        with pytest.raises(InvalidPeerId):
            PeerId(text)

    @given(st.text(max_size=60))
    def test_junk_raises_nothing_else(self, text: str) -> None:
        try:
            peer = PeerId(text)
        except InvalidPeerId:
            return
        assert PeerId(str(peer)) == peer


class TestBytes:
    @given(st.binary(max_size=50))
    def test_junk_raises_nothing_else(self, data: bytes) -> None:
        try:
            peer = PeerId(data)
        except InvalidPeerId:
            return
        assert bytes(peer) == data

    def test_an_inlined_key_has_at_most_42_bytes(self) -> None:
        PeerId(bytes((0, 42)) + bytes(42))
        with pytest.raises(InvalidPeerId):
            PeerId(bytes((0, 43)) + bytes(43))
        with pytest.raises(InvalidPeerId):
            PeerId(b"\x00\x00")

    @pytest.mark.parametrize("size", [31, 33])
    def test_a_sha256_has_32_bytes(self, size: int) -> None:
        with pytest.raises(InvalidPeerId):
            PeerId(b"\x12\x20" + bytes(size))
        with pytest.raises(InvalidPeerId):
            PeerId(bytes((0x12, size)) + bytes(size))

    def test_other_hashes_are_refused(self) -> None:
        with pytest.raises(InvalidPeerId):
            PeerId(b"\x13\x40" + bytes(64))
        with pytest.raises(InvalidPeerId, match="not int"):
            PeerId(5)  # type: ignore[arg-type]


class TestKeys:
    @pytest.mark.parametrize("kind", KEYS)
    def test_short_keys_are_inlined_and_long_ones_hashed(self, kind: str) -> None:
        key = PublicKey.from_protobuf(bytes.fromhex(KEYS[kind]["public"]))
        peer = PeerId.from_public_key(key)
        if kind in ("ed25519", "secp256k1"):
            assert bytes(peer)[2:] == key.to_protobuf()
            assert peer.extract_public_key() == key
        else:
            assert bytes(peer)[:2] == b"\x12\x20"
            assert peer.extract_public_key() is None

    def test_usual_prefixes(self) -> None:
        assert str(Identity.generate("ed25519").peer_id).startswith("12D3KooW")
        assert str(Identity.generate("secp256k1").peer_id).startswith("16Uiu2HA")
        assert str(Identity.generate("ecdsa").peer_id).startswith("Qm")

    def test_an_inlined_key_may_be_junk(self) -> None:
        with pytest.raises(InvalidPeerId, match="holds no public key"):
            PeerId(b"\x00\x03abc").extract_public_key()


def test_hash_order_and_repr() -> None:
    one, two = PeerId(b"\x00\x01a"), PeerId(b"\x00\x01b")
    assert len({one, two, PeerId(bytes(one))}) == 2
    assert sorted([two, one]) == [one, two]
    assert repr(one) == f"PeerId('{one}')"
    assert PeerId(IDS["ed25519"]).short() == "eQAJU5SA"
    assert one != bytes(one)


def test_the_cid_must_be_of_a_libp2p_key() -> None:
    with pytest.raises(InvalidPeerId, match="no CIDv1 of a libp2p key"):
        PeerId(multibase_encode("b", b"\x01\x70\x12\x20" + bytes(32)))
