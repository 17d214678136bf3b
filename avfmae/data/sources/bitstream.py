"""What coded pictures say of themselves: at which of them decoding can begin, and on which of them no other depends.

A container marks key frames, but its mark promises less than a reader needs. Decoding may begin at one only if
every picture that is *shown* from it on comes out as it does when all of the file is decoded. Pictures shown before it, though
coded after it (leading pictures, of an open group), are never taken from there.
"""

from collections.abc import Iterator

import av

KEY_CODECS = {"mpeg1video", "mpeg2video", "mpeg4", "flv1", "vp8", "vp9", "av1", "mjpeg", "prores", "ffv1"}
"""Codecs whose key frames all keep that promise: nothing after them in the order of showing refers to what was before."""

SLICE, IDR_SLICE, SUPPLEMENT = 1, 5, 6  # H.264's types of units
RECOVERY_POINT = 6  # H.264's type of supplement
HEVC_ACCESS = range(16, 24)  # HEVC's types of pictures for random access


def length_size(stream: av.VideoStream) -> int:
    """How many bytes hold the length of each unit of an H.264 or HEVC stream; 0 where units are parted by start codes."""
    codec, setup = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    place = {"h264": 4, "hevc": 21}.get(codec, 0)
    return (setup[place] & 3) + 1 if place and len(setup) > place and setup[0] == 1 else 0


def units(packet: bytes | av.Packet, size: int) -> Iterator[memoryview]:
    """The units of a packet whose lengths take ``size`` bytes each; none where ``size`` is 0, since start codes part them."""
    data, at = memoryview(packet), 0
    while size and at + size < len(data):
        end = at + size + int.from_bytes(data[at : at + size], "big")
        yield data[at + size : end]
        at = end


def is_disposable(packet: bytes | av.Packet, size: int = 4) -> bool:
    """Whether no other frame is predicted from this one: an H.264 picture all of whose slices have nal_ref_idc 0."""
    ranks = [unit[0] >> 5 & 3 for unit in units(packet, size) if len(unit) and unit[0] & 31 in (SLICE, IDR_SLICE)]
    return bool(ranks) and not any(ranks)


def is_reset(packet: av.Packet, size: int) -> bool:
    """Whether nothing that follows this H.264 picture, in whatever order, depends on what was before it: an IDR picture."""
    return any(unit[0] & 31 == IDR_SLICE for unit in units(packet, size) if len(unit))


def begins_anew(packet: av.Packet, codec: str, size: int) -> bool:
    """Whether what is shown from this frame on depends on nothing before it.

    Args:
        codec: its canonical name. size: as :func:`length_size` gives it.
    """
    if not packet.is_keyframe:
        return False
    if codec not in ("h264", "hevc"):
        return codec in KEY_CODECS
    if not size:
        return False
    coded = [unit for unit in units(packet, size) if len(unit) > 1]
    if codec == "hevc":
        kinds = [unit[0] >> 1 & 63 for unit in coded]
        return any(kind in HEVC_ACCESS for kind in kinds if kind < 32)
    return is_reset(packet, size) or any(_recovers(bytes(unit)) for unit in coded if unit[0] & 31 == SUPPLEMENT)


def _recovers(unit: bytes) -> bool:
    """Whether a supplement promises that every picture from this one on is exact: a recovery point with recovery_frame_cnt 0."""
    data, at = unit.replace(b"\0\0\3", b"\0\0"), 1
    while at + 2 < len(data):
        numbers = []
        for _ in range(2):  # type and size, each in bytes of 255 and a last one
            number = 0
            while at < len(data) and data[at] == 255:
                number, at = number + 255, at + 1
            numbers.append(number + data[at] if at < len(data) else number)
            at += 1
        kind, length = numbers
        if kind == RECOVERY_POINT:
            return at < len(data) and data[at] & 0b11000000 == 0b11000000  # frame_cnt 0 is one bit; then exact_match_flag
        at += length
    return False
