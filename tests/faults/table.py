"""The table of faults as data: what happens, what is kept, how to go on, and the tests that show it.

python tests/faults/table.py    # writes docs/reliability.md anew
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "reliability.md"
VERBS = ("train", "evaluate", "export", "sweep", "serve", "board")
RESUME = "`factory resume FOLDER`"
AUTO = f"{RESUME}; killed before there was a plan, the same command again with `stage.resume=auto`"


@dataclass(frozen=True)
class Row:
    """`on`: how to go on. `tests` are paths below tests/, as pytest names them."""

    fault: str
    verbs: tuple[str, ...]
    happens: str
    kept: str
    on: str
    tests: tuple[str, ...]


def _row(fault: str, verbs: str, happens: str, kept: str, on: str, *tests: str) -> Row:
    return Row(fault, tuple(verbs.split()), happens, kept, on, tests)


STOPS, DISK, INPUTS = "faults/test_stops.py::", "faults/test_disk.py::", "faults/test_inputs.py::"
MACHINE, TOGETHER = "faults/test_machine.py::", "faults/test_together.py::"
ASKED = "SIGINT (Ctrl-C), SIGTERM or SIGHUP (its terminal is lost)"
ROWS = (
    _row(
        ASKED,
        "train",
        "the step ends, a checkpoint is saved, exit 130; before training at once, and while answers are scored, with "
        "the step before saved as it ended; of a run that finishes or fails "
        "meanwhile exit 130 as well; a second time at once, but not by SIGHUP, which a terminal sends more than once; "
        "under `nohup` SIGHUP does nothing",
        "every step that was done",
        f"the command that is printed: {RESUME}; the losses are those of a run that never stopped",
        f"{STOPS}test_train",
        "execute/test_signals.py::test_while_training_it_saves_and_goes_on",
        "execute/test_signals.py::test_while_answers_are_scored_it_ends_at_once",
        "run/test_launch.py::test_interrupted_before_the_child_listens",
        "run/test_launch.py::test_asked_to_stop_when_there_is_nothing_left_to_do",
        "run/test_launch.py::test_a_lost_terminal_never_ends_a_run_at_once",
        "run/test_launch.py::test_a_hangup_saves_unless_it_is_ignored",
        "run/test_screen.py::test_a_terminal_that_is_closed_leaves_a_checkpoint",
        "ranks/test_launched.py::test_a_hangup_reaches_the_ranks",
    ),
    _row(
        ASKED,
        "evaluate export",
        "it ends at once, exit 130",
        "answers that were given; of an export nothing, and what was in its place before",
        f"the command that is printed: {RESUME}",
        f"{STOPS}test_evaluate",
        f"{STOPS}test_export",
    ),
    _row(
        ASKED,
        "sweep",
        "the job that runs saves and ends, no other starts, exit 130; what there is is compared",
        "finished jobs, and the steps of the one that ran",
        "the command that is printed: `factory -m sweep.resume=FOLDER`",
        f"{STOPS}test_sweep",
        "run/test_sweep_jobs.py::test_ctrl_c_while_a_sweep_is_told_of_says_how_to_go_on",
        "run/test_chain.py::test_a_run_that_was_over_when_it_was_asked_to_stop_is_kept",
    ),
    _row(
        ASKED,
        "serve board",
        "streams are written to their end for `serve.grace` seconds, then cut with a last event; exit 0, or 130 "
        "before it listens",
        "runs that the board started go on",
        "start it again",
        f"{STOPS}test_serve",
        f"{STOPS}test_board",
        "serve/test_serve_end.py::test_a_stream_ends_well_when_the_server_is_stopped",
        "board/test_runs.py::test_a_run_is_stopped_with_a_checkpoint_and_goes_on",
    ),
    _row(
        "nobody reads what is printed: `| head`, a pager that is left, a terminal without SIGHUP, a full disk",
        "train evaluate export sweep",
        "it goes on and prints no more; standard error says so once, and run.log, which has all that follows; standard "
        "output that is closed from the start (`>&-`) is as `> /dev/null`. What only prints (`factory plan`) ends",
        "everything",
        "nothing to do; Ctrl-C, or `kill`, stops it as ever",
        "faults/test_unread.py::test_train",
        "faults/test_unread.py::test_what_reads_a_run",
        "faults/test_unread.py::test_sweep",
        "run/test_screen.py::test_a_run_without_a_reader_goes_on",
        "run/test_screen.py::test_a_sweep_without_a_reader_closes_its_run",
        "test_outlet.py::test_what_only_prints_ends_in_silence",
        "test_outlet.py::test_closed_streams_are_as_none_that_anybody_reads",
    ),
    _row(
        "SIGKILL, a crash, a power cut",
        "train",
        "the child ends with its parent; a killed child is told with its memory and what would need less",
        "the newest whole checkpoint; half of one never has its name; before the first, the one of another folder that "
        "it was started from (`stage.resume=PATH`)",
        AUTO,
        f"{STOPS}test_train",
        "slow/test_killed.py::test_goes_on_however_often",
        "run/test_launch.py::test_killed_child_then_killed_parent",
        "run/test_launch.py::test_what_was_started_from_another_folder_goes_on_from_there",
        "execute/test_damaged.py::test_what_the_killed_left_is_removed",
    ),
    _row(
        "SIGKILL, a crash, a power cut",
        "evaluate export",
        "what was written beside its place is removed by the next",
        "an export that was in its place; answers that were given",
        f"{RESUME}, or the same command",
        f"{STOPS}test_evaluate",
        f"{STOPS}test_export",
    ),
    _row(
        "SIGKILL, a crash, a power cut",
        "sweep",
        "the job's child ends with it",
        "finished jobs, and the checkpoints of the one that ran",
        "`factory -m sweep.resume=FOLDER`",
        f"{STOPS}test_sweep",
    ),
    _row(
        "SIGKILL, a crash, a power cut",
        "serve board",
        "no process is left; what the board serves to talk to ends with it",
        "runs that the board started go on",
        "start it again: its address is free",
        f"{STOPS}test_serve",
        f"{STOPS}test_board",
        "board/test_children.py::test_a_command_ends_with_its_input_where_that_is_asked",
    ),
    _row(
        "full disk",
        "train",
        "`[disk-full]` with the bytes that are missing, or `[cannot-write]` with the file; exit 1, or 2 "
        "before anything was done",
        "all whole checkpoints",
        f"free space, then {RESUME}",
        f"{DISK}test_train",
        "execute/test_full_disk.py::test_with_as_much_as_it_says_it_works",
    ),
    _row(
        "full disk",
        "evaluate export sweep",
        "`[cannot-write]`, exit 1; of a sweep the comparison is shown though it cannot be written",
        "finished jobs; never half an export",
        f"free space, then {RESUME} or `factory -m sweep.resume=FOLDER`",
        f"{DISK}test_evaluate",
        f"{DISK}test_export",
        f"{DISK}test_sweep",
    ),
    _row(
        "full disk of the cache",
        "train",
        "`[data-cache]`, exit 1",
        "what other runs prepared",
        f"free space or set `FACTORY_CACHE`, then {RESUME}",
        f"{DISK}test_the_cache",
        "data/test_prepare.py::test_a_full_disk_is_told_and_leaves_nothing",
    ),
    _row(
        "read-only folder",
        "train evaluate export sweep board serve",
        "`[cannot-write]` or `[export-unwritable]` before anything is loaded, exit 2; serve writes nothing, and works",
        "everything",
        "set `hydra.run.dir`, or start it elsewhere",
        f"{DISK}test_nobody_can_write",
    ),
    _row(
        "out of memory",
        "train",
        "`[out-of-memory]` or `[killed]` with what was reached, what was estimated and overrides that need "
        "less, exit 1",
        "all whole checkpoints",
        "the command with one of the overrides",
        f"{MACHINE}test_memory_ends",
        "run/test_advice.py::test_a_run_that_is_really_out_of_memory",
    ),
    _row(
        "out of memory",
        "evaluate export",
        "`[out-of-memory]`, exit 1; no process is left",
        "everything that was there",
        "a smaller `evaluate.batch_size`, a smaller model, another machine",
        f"{MACHINE}test_memory_ends",
    ),
    _row(
        "out of memory",
        "serve",
        "a request that finds no memory is answered with 503, `out_of_memory`, in OpenAI's shape, or its stream ends "
        "with that; answers that are written beside it may end so too; where the system kills the server, as above",
        "the server goes on",
        "a shorter prompt, fewer at a time (`engine.batch`), or the same request later",
        f"{MACHINE}test_memory_ends_while_serving",
        "inference/test_writing_engine.py::test_a_prompt_too_long_for_the_memory_ends_alone",
        "inference/test_writing_engine.py::test_an_answer_that_finds_no_room_beside_the_others_is_told",
        "serve/test_serve_api.py::test_what_there_is_no_memory_for_is_told_and_the_server_goes_on",
    ),
    _row(
        "the clock jumps",
        "train",
        "nothing: durations are of a clock that never jumps; times of day in the files are as the clock says",
        "everything",
        "nothing to do",
        f"{MACHINE}test_the_clock_jumps",
    ),
    _row(
        "MLflow's database is locked or corrupt",
        "train",
        "the run ends as it would; what was not logged is counted, told with the reason, and in report.json",
        "all of it in the run's folder",
        "`factory track FOLDER`, of a corrupt one `factory track FOLDER tracking.uri=sqlite:///other.db`",
        f"{MACHINE}test_the_database",
        "tracking/test_to_mlflow.py::test_a_locked_database_is_tried_again",
    ),
    _row(
        "the tracking server is away or slow",
        "train sweep",
        "told when it happens and when it answers again; the end waits 20 s at most after the last thing that arrived",
        "all of it in the run's folder",
        "`factory track FOLDER`",
        "slow/test_tracking_server.py::test_a_server_that_dies_and_returns_gets_it_all",
        "tracking/test_outages.py::test_a_server_that_hangs_holds_up_no_end",
        "tracking/test_to_mlflow.py::test_a_sweep_made_without_its_server_is_sent_whole",
    ),
    _row(
        "the server of rewards goes away",
        "train",
        "asked `stage.reward_retries` times again, then `[reward-server]`, exit 1",
        "every step that was done: the last is saved as it ended",
        f"start it again, then {RESUME}",
        "rewards/test_rewards.py::test_a_run_whose_server_goes_away_loses_no_step",
    ),
    _row(
        "the hub goes away in the middle of a file",
        "train",
        "`[model-unreachable]`, exit 1 (2 while planning)",
        "what is in the hub's cache, the part of a file too",
        RESUME,
        f"{INPUTS}test_the_hub",
    ),
    _row(
        "a checkpoint is cut, or a bit of it flips",
        "train",
        "found by its checksums before it is used, told, and passed over for the one before it; so is one whose best "
        "so far is damaged, where that is put back at the end (`[best-missing]`, exit 2, where no other is left); one "
        "that is named by `stage.resume=PATH` is refused with the newest sound one",
        "the damaged one, until the run saves that step again",
        f"{RESUME}: it has gone on already",
        "faults/test_checkpoints.py::test_it_is_said_on_the_screen",
        "execute/test_damaged.py::test_every_change_is_found",
        "execute/test_damaged.py::test_the_one_before_goes_on_and_the_damaged_is_saved_anew",
        "execute/test_damaged.py::test_a_named_one_is_refused_with_the_one_before",
        "execute/test_damaged.py::test_a_damaged_best_is_never_put_back",
        "run/test_folder.py::test_a_checkpoint_whose_best_is_lost_is_passed_over",
    ),
    _row(
        "the rows' file changes or goes away",
        "train",
        "prepared rows are kept: nothing; a stream stops with `[stream-changed]`, exit 1; while it is prepared: "
        "`[data-changed]`",
        "the newest whole checkpoint",
        f"put it back, then {RESUME}, which compares its checksum",
        f"{INPUTS}test_rows",
    ),
    _row(
        "the model's folder goes away",
        "train",
        "the run ends and saves; with `checks=full` the check `save_reload` is red, exit 1",
        "the trained model",
        "put it back; `factory evaluate run=FOLDER`",
        f"{INPUTS}test_the_models_folder",
    ),
    _row(
        "two processes on one folder",
        "train evaluate export sweep",
        "the second is refused, exit 2: `[folder-in-use]` or `[folder-taken]`; of two exports to one place "
        "the first to end has it",
        "the first, as it is",
        "set another `hydra.run.dir`",
        f"{TOGETHER}test_two_in_one_folder",
        f"{TOGETHER}test_two_exports_to_one_place",
        "run/test_launch.py::test_an_interrupted_run_goes_on",
    ),
    _row(
        "a rank dies",
        "train",
        "`[rank-died]` names it and what it died of; the others end within seconds, exit 1",
        "the newest whole checkpoint",
        RESUME,
        "ranks/test_launched.py::test_ranks_stop_at_the_same_step_and_end_with_each_other",
        "ranks/test_launched.py::test_the_error_of_the_rank_that_raised_is_told",
    ),
    _row(
        "a rank hangs",
        "train",
        "`[rank-hung]` names it: the others wait for it `hardware.rank_timeout` seconds in a step, it gets 30 more to "
        "end, exit 1; Ctrl-C twice ends all of them before, exit 130. Where one works for all, as it prepares data or "
        "writes, the others wait a day",
        "the newest whole checkpoint",
        f"the command that is printed: {RESUME}",
        f"{TOGETHER}test_a_rank_that_hangs",
        f"{TOGETHER}test_a_rank_that_hangs_is_interrupted",
        "ranks/test_plan_of_ranks.py::test_who_said_nothing_while_others_waited_hung",
    ),
)
# what no test shows, and why
OPEN = {
    "out of memory": {
        "sweep": "a job is a run like any other",
        "board": "it holds no model: what it starts are runs and servers",
    },
    "full disk": {"serve": "it writes nothing", "board": "its runs are in the row of train"},
    "two processes on one folder": {
        "serve": "it has no folder; a port that is taken is refused",
        "board": "two boards show the same runs, each of which has one lock",
    },
}
HEAD = """# What happens when something goes wrong

What is written is written aside and renamed: a file or folder that has its name is whole. A run's folder is held by a
lock, a checkpoint has a SHA-256 of each of its files, and a run that goes on ends with the losses of one that never
stopped, bit for bit on the same CPU.

This page is made from tests/faults/table.py, and a test holds it to the tests that it names. `make test-faults` breaks
short runs of every stage at moments and places that are drawn from a seed; `FAULTS_SEED=N` repeats one.

"""


def document() -> str:
    lines = [
        "| what goes wrong | in | what happens | what is kept | how to go on | shown by |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        shown = ", ".join(dict.fromkeys(test.partition("::")[0] for test in row.tests))
        lines.append(f"| {row.fault} | {', '.join(row.verbs)} | {row.happens} | {row.kept} | {row.on} | {shown} |")
    lines += ["", "No test shows:", ""]
    lines += [f"- {fault}, {verb}: {why}." for fault, verbs in OPEN.items() for verb, why in verbs.items()]
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOC.write_text(document(), encoding="utf-8")
