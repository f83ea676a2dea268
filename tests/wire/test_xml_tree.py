"""XML from strangers: what is read, what is refused, and where each limit is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.errors import DecodeError
from flare.wire import xml_tree
from flare.wire.xml_tree import Element, parse


def test_names_are_local_and_text_is_kept() -> None:
    root = parse(b'<s:a xmlns:s="urn:x"><b> one </b><s:b>two</s:b><!-- no --><c/></s:a>')
    assert (root.name, root.value("b"), root.value("nothing")) == ("a", "one", "")
    assert [child.name for child in root.children] == ["b", "b", "c"]
    assert root.find("c") is root.children[2]
    assert root.find("d") is None


def test_a_prefix_that_is_bound_to_nothing_is_no_mistake() -> None:
    assert parse(b"<u:a><x:b>1</x:b></u:a>").value("b") == "1"


@pytest.mark.parametrize(
    "document",
    [
        b'<!DOCTYPE a SYSTEM "http://10.0.0.1/evil.dtd"><a/>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        b'<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]><a>&y;</a>',
        b'<!DOCTYPE a [<!ENTITY % x SYSTEM "http://10.0.0.1/evil.dtd">%x;]><a/>',
        b"<!DOCTYPE a><a/>",
    ],
)
def test_a_document_type_is_refused(document: bytes) -> None:
    with pytest.raises(DecodeError, match="document type"):
        parse(document)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"no",
        b"<a>",
        b"<a/><b/>",
        b"<a>&x;</a>",
        b"<a>\0</a>",
        b'<?xml version="1.0" encoding="x-no"?><a/>',
    ],
)
def test_what_is_no_xml(document: bytes) -> None:
    with pytest.raises(DecodeError):
        parse(document)


def test_the_largest_document_and_one_byte_more() -> None:
    room = xml_tree.MAX_BYTES - len(b"<a></a>")
    assert len(parse(b"<a>" + b"x" * room + b"</a>").text) == room
    with pytest.raises(DecodeError, match="at most"):
        parse(b"<a>" + b"x" * (room + 1) + b"</a>")


def test_the_most_elements_and_one_more() -> None:
    most = xml_tree.MAX_ELEMENTS - 1
    assert len(parse(b"<a>" + b"<b/>" * most + b"</a>").children) == most
    with pytest.raises(DecodeError, match="more than"):
        parse(b"<a>" + b"<b/>" * (most + 1) + b"</a>")


def test_the_deepest_element_and_one_below() -> None:
    depth = xml_tree.MAX_DEPTH
    assert len(list(parse(b"<a>" * depth + b"</a>" * depth).walk())) == depth
    with pytest.raises(DecodeError, match="deeper"):
        parse(b"<a>" * (depth + 1) + b"</a>" * (depth + 1))


def test_text_in_many_pieces_costs_little() -> None:
    assert parse(b"<a>" + b"x<!---->" * 15_000 + b"</a>").text == "x" * 15_000


TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="<>&\r", exclude_categories=["Cc", "Cs", "Cn"])
)
TREES = st.recursive(
    st.builds(Element, st.sampled_from(["a", "b"]), TEXT),
    lambda inside: st.builds(Element, st.sampled_from(["a", "b"]), TEXT, st.lists(inside, max_size=4)),
    max_leaves=20,
)


def written(element: Element) -> str:
    return f"<{element.name}>{element.text}{''.join(map(written, element.children))}</{element.name}>"


@given(TREES)
def test_any_tree_comes_back(tree: Element) -> None:
    assert parse(written(tree).encode()) == tree


@given(st.binary(max_size=200))
def test_any_bytes_are_a_tree_or_a_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        parse(data)
