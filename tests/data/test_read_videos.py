"""Frames of videos are those that were asked for, sounds are as long as they were, or a row says why not."""

import base64
import struct
from pathlib import Path

import av
import films
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.data.media.audio import read_audio
from factory.data.media.video import Frames, chosen, read_video
from factory.data.record import BadRow

ALL = Frames(fps=None, most=20)
RATE = 10
NOISE = np.random.default_rng(0).integers(0, 256, (20, 16, 32, 3), np.uint8)


def film(path: Path, codec: str = "ffv1", pixels: str = "bgr0", shown: np.ndarray = NOISE) -> str:
    return films.save(path, shown, RATE, codec, pixels)


def sound(path: Path, wave: np.ndarray, rate: int) -> str:
    """`wave` (channels, samples) in 16 bits."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=rate, layout={1: "mono", 2: "stereo"}[len(wave)])
        whole = np.ascontiguousarray((wave * 32767).astype(np.int16).T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(whole, format="s16", layout=stream.layout.name)
        frame.sample_rate = rate
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return str(path)


@given(st.integers(1, 3000), st.sampled_from([8.0, 23.976, 25.0, 59.94]), st.integers(2, 200), st.floats(0.1, 30))
def test_frames_are_chosen_evenly_from_the_first_to_the_last(count: int, rate: float, most: int, fps: float) -> None:
    found = chosen(count, rate, Frames(fps=fps, most=most))
    assert found[0] == 0 and found[-1] == (count - 1 if len(found) > 1 else 0)
    assert list(found) == sorted(set(found))
    assert len(found) == min(max(int(count / rate * fps), 2), most, count)
    gaps = np.diff(found)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    assert len(chosen(count, rate, Frames(fps=None, most=most))) == most


def test_the_frames_are_the_films(tmp_path: Path) -> None:
    place = film(tmp_path / "a.mkv")
    content = base64.b64encode(Path(place).read_bytes()).decode()
    for each in (place, Path(place).as_uri(), f"data:video/x-matroska;base64,{content}"):
        found = read_video(each, ALL)
        assert (found.count, found.rate, found.numbers) == (20, RATE, tuple(range(20)))
        assert np.array_equal(found.frames, NOISE)
    some = read_video(place, Frames(fps=2.0, most=128))
    assert some.numbers == (0, 6, 12, 19)
    assert np.array_equal(some.frames, NOISE[[0, 6, 12, 19]])
    told = some.metadata()
    assert (told.total_num_frames, told.fps, told.duration, told.sampled_fps) == (20, 10.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.webm", "libvpx"), ("a.ts", "mpeg2video"), ("a.avi", "mjpeg"), ("a.gif", "gif")],
)
def test_files_of_many_kinds_are_counted_right(name: str, codec: str, tmp_path: Path) -> None:
    """Some say no number of frames, some only at their end."""
    shown = np.repeat(np.repeat(np.linspace(0, 250, 20, dtype=np.uint8)[:, None, None, None], 16, 1), 32, 2)
    pixels = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    found = read_video(film(tmp_path / name, codec, pixels, np.repeat(shown, 3, 3)), ALL)
    assert found.count == 20 and found.rate == pytest.approx(RATE, rel=0.01)
    assert (np.diff(found.frames[..., 1].mean(axis=(1, 2))) > 0).all()


def test_a_film_is_turned_upright_as_its_camera_noted(tmp_path: Path) -> None:
    """By the matrix of the track's header: x and y are (0, 1), (-1, 0), a quarter to the right."""
    shown = np.zeros((4, 16, 32, 3), np.uint8)
    shown[:, :8, :16] = 255, 0, 0
    place = Path(film(tmp_path / "a.mp4", "mpeg4", "yuv420p", shown))
    content = bytearray(place.read_bytes())
    at = content.find(b"tkhd") + 4 + 4 + 20 + 16  # behind the version, its times and numbers, and its layer
    assert content[at : at + 4] == struct.pack(">i", 1 << 16)
    content[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    place.write_bytes(content)
    frame = read_video(str(place), Frames(fps=None, most=2)).frames[0]
    assert frame.shape == (32, 16, 3)
    assert frame[4, 12, 0] > 200 and max(frame[4, 4, 0], frame[28, 12, 0]) < 50


def test_a_film_that_was_cut_without_being_encoded_anew_has_the_frames_that_are_shown(tmp_path: Path) -> None:
    """From within a group of pictures on: by an edit list that hides what is before, and a stream that begins there."""
    shown = np.repeat(np.repeat(np.linspace(0, 240, 40, dtype=np.uint8)[:, None, None, None], 16, 1), 32, 2)
    whole = film(tmp_path / "whole.ts", "mpeg2video", "yuv420p", np.repeat(shown, 3, 3))
    kept = {}
    for name, hidden in (("hidden.mp4", True), ("begun.ts", False)):
        with av.open(whole) as old, av.open(str(tmp_path / name), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for number, packet in enumerate(old.demux(video=0)):
                if packet.dts is None or (not hidden and number < 5):
                    continue
                if hidden:  # what is shown before 0 is hidden by the edit list
                    packet.pts, packet.dts = packet.pts - 5 * 9000, packet.dts - 5 * 9000
                packet.stream = stream
                new.mux(packet)
        found = read_video(str(tmp_path / name), Frames(fps=None, most=2))
        kept[name] = found.count
        with av.open(str(tmp_path / name)) as file:
            there = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert found.count == len(there)
        assert np.array_equal(found.frames, np.stack([there[0], there[-1]]))
    assert max(kept.values()) < 40


def test_what_is_no_film_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(film(tmp_path / "a.mp4", "mpeg4", "yuv420p")).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:2,\n{film(tmp_path / 'a.ts', 'mpeg2video', 'yuv420p')}\n")
    (tmp_path / "joined.ts").write_text(f"ffconcat version 1.0\nfile '{tmp_path}/a.ts'\n")
    sound(tmp_path / "a.wav", np.zeros((1, 800)), 8000)
    unreadable = ("half.mp4", "empty.mp4", "text.mp4", "list.m3u8", "joined.ts", "a.wav", ".")
    for name in unreadable:
        with pytest.raises(BadRow, match=r"^a video cannot be read$"):
            read_video(str(tmp_path / name), ALL)
    for place, why in (
        ("none.mp4", "a video is missing"),
        (f"concat:{tmp_path}/a.ts|{tmp_path}/a.ts", "a video is missing"),
        ("https://example.org/a.mp4", "a video is at an address, and none is fetched"),
        ("data:video/mp4;base64,????", "a video cannot be read"),
    ):
        with pytest.raises(BadRow, match=f"^{why}$"):
            read_video(place, ALL)
    monkeypatch.setattr("factory.data.media.video.MOST_OF_ALL", 20 * 16 * 32 - 1)
    with pytest.raises(BadRow, match="too many pixels"):
        read_video(str(tmp_path / "a.mp4"), ALL)


def test_a_sound_is_the_wave_in_one_channel_at_the_models_rate(tmp_path: Path) -> None:
    times = np.arange(8000) / 8000
    left, right = np.sin(2 * np.pi * 440 * times), np.sin(2 * np.pi * 220 * times)
    place = sound(tmp_path / "a.wav", np.stack([left, right]) / 2, 8000)
    same = read_audio(place, 8000, None)
    np.testing.assert_allclose(same, (left + right) / 4, atol=2e-4)
    finer = read_audio(place, 16000, 30)
    assert len(finer) == pytest.approx(16000, abs=64)
    wanted = (
        np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) + np.sin(2 * np.pi * 220 * np.arange(16000) / 16000)
    ) / 4
    np.testing.assert_allclose(finer[100:15800], wanted[100:15800], atol=5e-3)
    content = base64.b64encode(Path(place).read_bytes()).decode()
    assert np.array_equal(read_audio(f"data:audio/wav;base64,{content}", 8000, None), same)


def test_what_cannot_be_heard_says_why(tmp_path: Path) -> None:
    place = sound(tmp_path / "a.wav", np.zeros((1, 8001)), 8000)
    with pytest.raises(BadRow, match="an audio is longer than the 1 seconds that the model hears"):
        read_audio(place, 8000, 1)
    (tmp_path / "text.wav").write_text("no sound")
    for name, why in (("text.wav", "cannot be read"), ("none.wav", "is missing"), ("a.mkv", "cannot be read")):
        film(tmp_path / "a.mkv")
        with pytest.raises(BadRow, match=f"^an audio {why}$"):
            read_audio(str(tmp_path / name), 8000, None)
