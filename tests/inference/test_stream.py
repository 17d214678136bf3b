"""A video's windows: all of it is covered, each has the frames and the faces of its time, none crosses a cut, memory stays."""

import weakref

import numpy as np
import pytest

from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.faces import Face
from avfmae.data.sources import MediaError, Source, VideoInfo, open_clip
from avfmae.inference.stream import Cuts, Windows, ahead, read_sound_windows, read_windows


class Drawn(Source):
    """Frames that ``draw`` makes, and how many of them are alive."""

    def __init__(self, draw, times, fails_at=None):
        super().__init__("drawn")
        self.draw, self.times, self.fails_at = draw, np.asarray(times, float), fails_at
        self.alive = self.most = 0

    @property
    def info(self):
        fps = (len(self.times) - 1) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else 25.0
        return VideoInfo(self.times, float(self.times[0]), fps, has_audio=False)

    def frames(self, numbers, arena=None):
        return np.stack([self.draw(int(n)) for n in numbers])

    def gone(self):
        self.alive -= 1

    def frames_between(self, low, high):
        for number in range(low, high):
            if number == self.fails_at:
                raise MediaError(self.path, f"frame {number} does not decode")
            frame = self.draw(number)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(frame, self.gone)
            yield frame


def plain(number):
    """The number is told by the brightness of 9 blocks."""
    frame = np.full((36, 64, 3), 100, np.uint8)
    frame[0, :12, 0] = [101 if number >> bit & 1 else 99 for bit in range(12)]
    return frame


def told(frame):
    return sum((int(value) > 100) << bit for bit, value in enumerate(frame[0, :12, 0]))


def square(frames):
    """Finds one face, at a place that frames tell, and a second one in the first 60."""
    found = []
    for frame in frames:
        number = told(frame)
        found.append([Face((2.0 + number / 100, 3, 20, 20), 1.0)])
        if number < 60:
            found[-1].append(Face((40.0, 3, 18, 18), 1.0))
    return found


def windows_of(source, data=None, step=None, detector=None, frames=16):
    data = data or DataConfig()
    windows = Windows(source.info, Clip(0, source.path), frames, data, step)
    return list(read_windows(source, windows, 0, len(source.info.times), detector, 5)), windows


@pytest.mark.parametrize("count", [1, 15, 63, 64, 65, 100, 130, 300])
@pytest.mark.parametrize("step", [None, 0.5, 4.0], ids=["half", "0.5 s", "4 s"])
def test_windows_cover_the_video(count, step):
    seen, windows = windows_of(Drawn(plain, np.arange(count) / 25), step=step)
    assert windows.seconds == pytest.approx(64 / 25)
    assert seen[0].first == 0 and seen[-1].last == count
    starts = [s.first for s in seen]
    assert starts == sorted(set(starts))
    for s in seen:
        assert s.last - s.first == min(64, count) and s.window.end - s.window.start <= 64 / 25 + 0.041
        assert [told(frame) for frame in s.frames] == s.window.frames.tolist()
        assert s.first <= s.window.frames[0] and s.window.frames[-1] < s.last
    if step is None and count >= 64:
        assert set(range(count)) == {n for s in seen for n in range(s.first, s.last)}
        assert np.diff(starts).max(initial=0) <= 32


@pytest.mark.parametrize("fps", [6.25, 12, 50, 120])
def test_windows_last_equally_long_at_any_rate(fps):
    source = Drawn(plain, np.arange(round(8 * fps)) / fps + 3.5)
    seen, windows = windows_of(source)
    assert windows.seconds == pytest.approx(2.56)
    for s in seen:
        assert s.window.end - s.window.start == pytest.approx(2.56, abs=1.1 / fps)
        assert [told(frame) for frame in s.frames] == s.window.frames.tolist()
    assert seen[0].window.start == 3.5 and seen[-1].last == len(source.times)


def test_windows_of_real_files_show_the_frames_of_their_times(media):
    for name in ("good_mp4", "ntsc_mp4", "slow_mp4", "fast_mp4", "good_mpg"):
        source = open_clip(media[name])
        seen, _ = windows_of(source, DataConfig(stride=2))
        for s in seen:
            assert np.array_equal(s.frames, source.frames(s.window.frames)), name


def test_windows_do_not_cross_cuts():
    def draw(number):
        frame = plain(number)
        frame[4:] = ((200, 40, 30), (20, 60, 190), (20, 190, 60))[(number >= 90) + (number >= 110)]
        return frame

    seen, _ = windows_of(Drawn(draw, np.arange(200) / 25), detector=square)
    assert all(not s.first < cut < s.last for s in seen for cut in (90, 110))
    assert {s.first for s in seen} >= {0, 90, 110} and {s.last for s in seen} >= {90, 110, 200}
    before, after = (
        {id(face) for s in seen if test(s) for face, _ in s.faces} for test in (lambda s: s.last <= 90, lambda s: s.first >= 90)
    )
    assert before and after and not before & after  # a face after a cut is another one, as far as can be told


def test_motion_light_and_noise_are_no_cuts():
    rng, cuts = np.random.default_rng(0), Cuts()
    room = rng.integers(0, 256, (90, 160, 3), np.uint8)
    room = np.repeat(np.repeat(room, 4, 0), 4, 1)
    for number in range(80):
        light = 1 - 0.004 * number
        frame = np.roll(room, 3 * number, 1) * light + rng.normal(0, 3, room.shape)
        assert not cuts.is_new(frame.clip(0, 255).astype(np.uint8)), number
    assert cuts.is_new(np.full_like(room, 20))


def test_faces_are_those_of_the_window():
    seen, _ = windows_of(Drawn(plain, np.arange(200) / 25), detector=square)
    numbers = {id(face) for s in seen for face, _ in s.faces}
    assert len(numbers) == 2
    for s in seen:
        assert len(s.faces) == (2 if s.first < 60 else 1)
        _, track = max(s.faces, key=lambda pair: pair[1].area())
        assert len(track.faces) == s.looks and all((s.first + n) % 5 == 0 for n in track.faces)
        assert all(found.box[0] == 2 + (s.first + n) / 100 for n, found in track.faces.items())


def test_memory_does_not_grow():
    source = Drawn(plain, np.arange(3000) / 25)
    windows = Windows(source.info, Clip(0, "drawn"), 16, DataConfig())
    for s in read_windows(source, windows, 0, 3000, square, 5):
        del s
    assert source.most <= 64 + 32 + 2 * 20 + 10  # a window, half of one, blocks of 4 looks, what the thread is ahead


def test_what_is_damaged_midway_ends_there():
    source = Drawn(plain, np.arange(200) / 25, fails_at=150)
    windows, seen = Windows(source.info, Clip(0, "drawn"), 16, DataConfig()), []
    with pytest.raises(MediaError, match="frame 150 does not decode"):
        for s in read_windows(source, windows, 0, 200, None, 5):
            seen.append(s)
    assert len(seen) >= 2


def test_a_thread_that_is_no_longer_wanted_ends():
    made = []

    def items():
        for number in range(10_000):
            made.append(number)
            yield number

    some = ahead(items(), 4)
    assert [next(some) for _ in range(3)] == [0, 1, 2]
    some.close()
    count = len(made)
    assert count <= 3 + 4 + 2
    assert len(made) <= count + 1


def test_sound_alone_has_windows_too():
    info = VideoInfo(np.arange(200) / 25, 0.0, 25.0, has_audio=True, has_video=False)
    seen = list(read_sound_windows(Windows(info, Clip(0, "x"), 16, DataConfig()), 0, 200))
    assert seen[0].frames is None and seen[0].window.start == 0 and seen[-1].window.end == pytest.approx(8)


def test_a_window_lasts_as_long_as_its_frames_are_apart():
    """At a rate that varies, windows are 64 25ths of a second, whatever the average; frames are then all different."""
    times = np.concatenate([np.arange(240) / 24, 10 + np.arange(320) / 32])
    info = VideoInfo(times, 0.0, (len(times) - 1) / times[-1], has_audio=False)
    windows = Windows(info, Clip(0, "v"), 16, DataConfig())
    assert 23 <= info.fps <= 31 and windows.seconds == 16 * 4 / 25
    for first in (0, 100, 300):
        assert len(set(windows.at(first, windows.end(first)).frames.tolist())) == 16
