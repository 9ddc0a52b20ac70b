"""Lines that are no rows, in a stream: counted as anywhere else, and their places are taken when it resumes."""

import json
from itertools import islice
from pathlib import Path

from planned import pack, planned, questions, settings, spec

from factory.data.prepare.workers import Workers
from factory.data.stream import Position, Stream


def test_broken_lines_of_a_stream_are_counted_and_it_resumes_after_them(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in questions(40)]
    lines[0], lines[4], lines[39] = "{", "3", '"cut'
    (tmp_path / "rows.jsonl").write_text("\n\n".join(lines))
    sources = {"rows": planned(path=str(tmp_path / "rows.jsonl"))}

    def streamed() -> Stream:
        plan = settings(sources, streaming=True, shuffle_buffer=16)
        return Stream(plan, sources, pack(), "messages", 0, Workers(spec(), 1))

    found = list(islice(streamed().samples(), 37))
    counts = found[-1][1].read
    assert counts["rows"] == 40 and counts["used"] == 37
    assert counts["dropped"] == {
        "not JSON": {"count": 2, "first": [1, 40]},
        "not an object": {"count": 1, "first": [5]},
    }
    place = Position.from_json(json.loads(json.dumps(found[20][1].as_json())))
    assert [sample for sample, _ in islice(streamed().samples(place), 16)] == [sample for sample, _ in found[21:]]
