"""Bytes that are nearly right: what a decoder has to fear more than noise."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import strategies as st

CHANGES_MAX = 4
# What turns one thing into another in JSON, HTTP, NATS, forms and headers.
TOKENS = (
    *(b"null", b"true", b"-1", b"0", b"1e400", b"1E+3", b"NaN", b"-0.0", b"9" * 30, b"0.000"),
    *(b'""', b"[]", b"{}", b"[" * 40, b'{"a":' * 40, b'"\\u0000"', b'"\\ud800"', b"\\", b'"'),
    *(b"\x00", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\r\n", b"\n", b"\r", b" ", b",", b":"),
)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Draw one of the seeds, with up to a few of its bytes cut, doubled, replaced or added."""
    found = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, CHANGES_MAX))):
        begin = draw(st.integers(0, len(found)))
        end = min(len(found), begin + draw(st.sampled_from((0, 0, 1, 1, 2, 5, 30))))
        put = draw(st.sampled_from(TOKENS) | st.binary(max_size=3) | st.just(found[begin:end] * 2))
        found = found[:begin] + put + found[end:]
    return found


def pieces(whole: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Cut bytes at these places, wherever they fall; nothing is lost, no piece is empty."""
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[begin:end] for begin, end in pairwise(places)]


CUTS = st.lists(st.integers(0, 10_000), max_size=6)
