"""What TensorBoard and wandb were given, read back from their own files."""

import json
import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from followed import LOSSES, lines, more, run

from factory.execute.context import append
from factory.run.folder import RunFolder
from factory.tracking import delivery, ledger
from factory.tracking.delivery import Delivery
from factory.tracking.tracker import Tracker


def events(folder: Path) -> list[Any]:
    """Of all files of a run, in the order of their writing."""
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401  whose reader it comes with
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted(folder.glob("events.out.*")):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            payload = data[12 : 12 + size]
            assert int.from_bytes(data[12 + size : 16 + size], "little") == masked_crc32c(payload)
            found.append(Event.FromString(payload))
            data = data[16 + size :]
    return found


def test_tensorboard_has_the_curves_and_the_hyperparameters(here: Path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    losses = (4.0, None, 3.0)
    plan, folder, report = run(here / "run", "board", tool="tensorboard", losses=losses, parent_run="sweep_1")
    folder.system.write_text(json.dumps({"time": 1.7e9, "values": {"system/cpu_utilization_percentage": 5.0}}) + "\n")
    told = Tracker(plan, folder).finish({**report, "status": "interrupted", "evaluate": {}})
    assert told is not None and (told["sent"], told["unsent"]) == (6, 0), told
    more(folder, 4)
    resumed = Tracker(plan, folder).finish(report)
    assert resumed == {**told, "sent": 7}
    where = Path(told["run_id"])
    assert where.parent == here / "board" / "factory" / "sweep_1"
    assert where.name.startswith(f"{here.name}_run_")
    written = scalars(events(where))
    curve = [(step, value) for tag, step, value, _ in written if tag == "loss"]
    assert [step for step, _ in curve] == [1, 2, 3, 4] and math.isnan(curve[1][1])
    assert [value for _, value in curve if not math.isnan(value)] == [4.0, 3.0, 3.0]
    (sample,) = scalars(events(where / "system"))
    assert sample == ("system/cpu_utilization_percentage", 0, 5.0, 1.7e9)
    assert {tag: value for tag, _, value, _ in written if tag.startswith("perplexity")} == report["evaluate"]
    plugins = {value.metadata.plugin_data.plugin_name for event in events(where) for value in event.summary.value}
    assert {"hparams", "text"} <= plugins


def scalars(found: list[Any]) -> list[tuple[str, int, float, float]]:
    return [
        (value.tag, event.step, value.simple_value, event.wall_time)
        for event in found
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    ]


def shown(folder: Path) -> list[Any]:
    """The events less what TensorBoard forgets where a file starts: all of that step and later ones, of every name."""
    found = list[Any]()
    for event in events(folder):
        restarts = event.WhichOneof("what") == "session_log"
        found = [each for each in found if each.step < event.step] if restarts else [*found, event]
    return found


def test_tensorboard_forgets_nothing_that_is_not_sent_again(here: Path) -> None:
    """There are more samples of the machine than steps: those beyond the step it goes on from were forgotten."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    plan, folder, report = run(here / "run", "board", tool="tensorboard", system_metrics=True)
    for count in (20, 3):
        for _ in range(count):
            append(folder.system, {"time": 1.7e9, "values": {"system/cpu_utilization_percentage": 5.0}})
        told = Tracker(plan, folder).finish({**report, "status": "interrupted", "evaluate": {}})
        assert told is not None and told["unsent"] == 0, told
        more(folder, len(lines(folder)) + 1)
    where = Path(told["run_id"])
    assert [step for tag, step, *_ in scalars(shown(where)) if tag == "loss"] == [1, 2, 3, 4, 5]
    assert [step for _, step, *_ in scalars(shown(where / "system"))] == list(range(23))


def test_what_tensorboard_got_and_nobody_noted_is_there_once(here: Path) -> None:
    """The first attempt was killed before it could note a step."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    plan, folder, report = run(here / "run", "board", tool="tensorboard")
    book = ledger.of(plan.settings.tracking, folder)
    Delivery(plan, folder, book).send()
    replace(book, step=0).write(folder)
    told = Tracker(plan, folder).finish(report)
    assert told is not None and told["unsent"] == 0, told
    found = scalars(shown(Path(told["run_id"])))
    assert [step for tag, step, *_ in found if tag == "loss"] == [1, 2, 3, 4]


def kept(file: Path) -> Iterator[bytes]:
    """The records of wandb's own file: LevelDB's log, in blocks of 32 KiB, after a header of 7 bytes."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if kind == 0 or 32768 - at % 32768 < 7:  # the rest of a block
            at += 32768 - at % 32768
            continue
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def records(folder: RunFolder) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (folder.path / "wandb").glob("offline-run-*/*.wandb")
    return [Record.FromString(data) for data in kept(file)]


def rows(found: list[Any]) -> list[dict[str, Any]]:
    """Of the history."""
    return [
        {"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]


def test_wandb_has_the_curves_offline(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("HF_TOKEN", "tell-nobody-of-this")
    samples = [{"prompt": "p", "after": "tell-nobody-of-this"}]
    plan, folder, report = run(here / "run", None, tool="wandb", mode="offline", samples=samples)
    told = Tracker(plan, folder).finish(report)
    assert told is not None and told["unsent"] == 0, told
    found = records(folder)
    assert [(row["_step"], row["loss"]) for row in rows(found) if "loss" in row] == list(enumerate(LOSSES, start=1))
    (first,) = (record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (first.run_id, first.project) == (told["run_id"], "factory")
    config = {
        item.key: json.loads(item.value_json)
        for record in found
        if record.WhichOneof("record_type") == "config"
        for item in record.config.update
    }
    assert (config["stage.max_steps"], config["digest"]) == (4, plan.digest())  # a number is one: charts sort by it
    (file,) = (folder.path / "wandb").glob("offline-run-*/*.wandb")
    assert "tell-nobody" not in file.read_bytes().decode("latin-1")


def test_wandb_drops_no_step_for_the_samples_beside_it(here: Path) -> None:
    """It has one count of steps: that of the samples, which are more, was taken for it."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    plan, folder, report = run(here / "run", None, tool="wandb", mode="offline", system_metrics=True)
    plan = plan.with_settings(options={**plan.options, "method": f"/a/file/{'far/' * 20}mine.py"})  # no tag is so long
    sending = Delivery(plan, folder, ledger.of(plan.settings.tracking, folder))
    for steps in ((), (5, 6), (7,)):
        more(folder, *steps)
        for _ in range(9):
            append(folder.system, {"time": 1.7e9, "values": {"system/cpu_utilization_percentage": 5.0}})
        sending.send()
    sending.finish(report)
    found = records(folder)
    assert [row["step"] for row in rows(found) if "loss" in row] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["system/sample"] for row in rows(found) if "loss" not in row] == list(range(27))
    assert [row["_step"] for row in rows(found)] == list(range(1, 7 + 27 + 1))
    axes = {record.metric.name: record.metric.step_metric for record in found}
    assert axes["loss"] == "step"


class FakeWandb(ModuleType):
    """With one run at a time, which `init` gives whoever asks for another meanwhile."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.run: Any = None
        self.Settings = dict
        self.logged: list[tuple[str, float]] = []
        self.broken = False

    def init(self, *, id: str, **_: Any) -> Any:
        if self.run is None:
            self.run = SimpleNamespace(id=id, step=0, config={}, define_metric=lambda *_, **__: None)
            self.run.summary = SimpleNamespace(get=lambda _: None, update=self.update)
            self.run.log = lambda told, step: self.logged.append((id, told["loss"]))
            self.run.finish = lambda **_: setattr(self, "run", None)
        return self.run

    def update(self, told: dict[str, Any]) -> None:
        if self.broken:
            raise OSError(told)


def test_wandb_sends_no_run_into_the_one_before(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is still open where its end is slow or has failed."""
    fake, name = FakeWandb(), "to_a_fake_wandb"
    monkeypatch.setitem(sys.modules, "wandb", fake)
    spec = spec_from_file_location(name, Path(delivery.__file__).with_name("to_wandb.py"))
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(delivery.TOOLS, "wandb", replace(delivery.TOOLS["wandb"], sink=f"{name}:WandbSink"))
    monkeypatch.setattr(module.WandbSink, "describe", lambda _: None)
    monkeypatch.setattr(module.WandbSink, "_artifact", lambda *_: None)
    jobs = [run(here / name, None, tool="wandb", mode="online") for name in ("one", "two")]
    one, two = (Delivery(plan, folder, ledger.of(plan.settings.tracking, folder)) for plan, folder, _ in jobs)
    one.send()
    one._sink = None  # as after an error: it is opened again
    one.send()
    with pytest.raises(ConnectionError, match="earlier run"):
        two.send()
    assert [loss for _, loss in fake.logged] == list(LOSSES)
    fake.broken = True
    with pytest.raises(OSError):
        one.finish(jobs[0][2])
    fake.broken = False
    two.send()
    two.finish(jobs[1][2])
    assert [loss for _, loss in fake.logged] == [*LOSSES, *LOSSES] and len({name for name, _ in fake.logged}) == 2


def test_wandb_is_asked_how_far_it_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that goes on its own count is at the next step, which is still to be sent."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    from factory.tracking import to_wandb

    plan, folder, _ = run(here / "run", None, tool="wandb", mode="online")
    for summary, last in (({"_step": 4, "step": 4}, 4), ({}, 2)):
        resumed = SimpleNamespace(step=5, summary=summary, define_metric=lambda *_, **__: None)
        monkeypatch.setattr(to_wandb.wandb, "init", lambda resumed=resumed, **_: resumed)
        book = replace(ledger.of(plan.settings.tracking, folder), run_id="known", step=2)
        assert to_wandb.WandbSink(plan, folder, book).last_step() == last
    sent = list[int]()
    killed = SimpleNamespace(
        step=14, summary={"step": 4}, define_metric=resumed.define_metric, log=lambda _, step: sent.append(step)
    )
    monkeypatch.setattr(to_wandb.wandb, "init", lambda **_: killed)
    sink = to_wandb.WandbSink(plan, folder, replace(book, step=4))  # nine samples were sent, and nobody noted them
    sink.log(5, 1.7e9, {"loss": 2.0})
    sink.log(0, 1.7e9, {"system/cpu_utilization_percentage": 5.0})
    assert sent == [14, 14]  # not below its own
