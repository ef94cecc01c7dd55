"""The user's view: lines above bars, times that include all remaining work, responses to Ctrl-C."""

import contextlib
import io
import itertools
import logging
import re
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator

import pexpect
import pytest
import yaml
from conftest import SAMPLES, command
from tiny import ROOT

from detsd.__main__ import main
from detsd.utils import progress
from detsd.utils.progress import Bar, Phase, seconds_left

CLOCK = r"(?:\d+:)?\d\d:\d\d"
BAR = re.compile(rf" *\d+%\|.*\| .*\[{CLOCK}<(?:{CLOCK}|\?).*\]")


def screen(sent: str) -> list[str]:
    """Return the lines that a terminal shows after this output."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|[\s\S]", sent):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[A":
            row = max(0, row - 1)
        elif len(part) == 1:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    """Replace both standard streams with a terminal."""
    both = Terminal()
    with contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
        yield both


def test_the_time_left_counts_every_kind_of_work_at_its_own_speed():
    steps, samples = Phase(3, total=100), Phase(2, total=10)
    kinds = {"steps": steps, "samples": samples}
    assert seconds_left(kinds) is None  # nothing seen
    samples.record(4, 2)
    assert seconds_left(kinds) == pytest.approx(8 * 2 + 100 * 3)  # a second per pass
    for _ in range(100):
        steps.record(0.5, 1)
    assert seconds_left(kinds) == pytest.approx(16)  # after 100 of 100 steps, the samples remain
    samples.record(0, 9)  # more than there were, as when a batch is made again
    assert seconds_left(kinds) == 0
    # Work whose time does not depend on the device says nothing about the others.
    fresh = {"steps": Phase(3, total=10), "samples": samples, "drawing": Phase(0, 1, 0, 5.0, 1.0)}
    samples.seconds, samples.seen = 2.0, 1.0
    assert seconds_left(fresh) == pytest.approx(10 * 3 + 5)


def test_a_speed_that_changes_is_noticed():
    work = Phase(1, total=1000)
    for seconds in [1.0] * 100 + [0.1] * 100:
        work.record(seconds, 1)
    assert seconds_left({"steps": work}) == pytest.approx(80, rel=0.5)


def test_lines_stand_above_the_bar():
    with terminal() as there, Bar({"steps": Phase(1, 4)}, "0/4 steps") as bar:
        for k in range(4):
            bar.draw(text=f"{k + 1}/4 steps")
            bar.done("steps")
            progress.say(f"line {k}")
    *lines, last = screen(there.getvalue())
    assert lines == [f"line {k}" for k in range(4)]
    assert BAR.fullmatch(last)
    assert last.startswith("100%")
    assert "4/4 steps" in last


def session_answered_at(moment: int) -> tuple[list[str], bool]:
    """Return the screen after a signal in the `moment`-th call or return of the code that writes.

    Also return whether there was such a moment.
    """
    moments = itertools.count()

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.endswith(("progress.py", "std.py", "utils.py")):
            return None
        if event in ("call", "return") and next(moments) == moment:
            sys.settrace(None)
            progress.print_from_signal("stopping")
            time.sleep(0.002)  # let the thread run as far as it can
        return trace

    with terminal() as there:
        threads = set(threading.enumerate())
        sys.settrace(trace)
        with Bar({"steps": Phase(1, 4)}, "0/4 steps") as bar:
            bar.draw(text="1/4 steps")
            progress.say("a line")
        with progress.spinner("loading"):
            pass
        progress.say("the end")
        sys.settrace(None)
        for thread in {t for t in threading.enumerate() if not t.daemon} - threads:
            thread.join()
    return screen(there.getvalue()), next(moments) > moment


def test_an_answer_to_a_signal_tears_no_line_and_no_bar():
    reached, moment = True, 0
    while reached:
        lines, reached = session_answered_at(moment)
        assert lines.count("stopping") == reached, (moment, lines)
        *others, end = [line for line in lines if line != "stopping"]
        assert others[0] == "a line"
        assert BAR.fullmatch(others[1])
        assert (len(others), end) == (2, "the end")
        moment += 1
    assert moment > 100


def test_off_a_terminal_there_is_no_bar_and_a_line_every_ten_seconds(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Bar({"images": Phase(1, 5)}, "encoding") as bar:
        for _ in range(5):
            now[0] += 4
            bar.done("images")
    out, err = capsys.readouterr()
    assert out == "encoding, 00:08 left\n"
    assert err == ""


def test_other_ranks_are_silent(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with terminal() as there, progress.spinner("loading"), Bar({"steps": Phase(1, 2)}, "") as bar:
        bar.done("steps")
    assert there.getvalue() == ""


def test_waiting_shows_that_it_moves():
    until = time.monotonic() + 60
    with terminal() as there, progress.spinner("loading a model"):
        while there.getvalue().count("loading a model ... 0") < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert screen(there.getvalue()) == []  # nothing is left


def test_an_interrupt_is_handled_as_before_once_the_libraries_are_there():
    def handler() -> object:
        with progress.importing_libraries():
            inside = signal.getsignal(signal.SIGINT)
        return inside, signal.getsignal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        inside, after = handler()
        assert inside is not after is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job
        assert handler() == (signal.SIG_IGN, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_of_several_processes_tells_what_is_odd_about_pictures(tmp_path, monkeypatch):
    """All of them read the same pictures."""
    notes = logging.getLogger("detsd.data")
    try:
        for rank, told in ((0, True), (1, False)):
            monkeypatch.setenv("RANK", str(rank))
            assert main(["show", str(tmp_path / "none.pt")]) == 2
            assert notes.isEnabledFor(logging.WARNING) is told
            assert notes.isEnabledFor(logging.ERROR)
    finally:
        notes.setLevel(logging.NOTSET)


def set_terminal() -> None:
    """Set up the process that becomes detsd: Ctrl-C interrupts, and loses no output."""
    # If the tests run in the background, it is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Otherwise, at the signal, the terminal drops output not yet shown: a part of the response.
    attributes = termios.tcgetattr(0)
    attributes[tty.LFLAG] |= termios.NOFLSH
    termios.tcsetattr(0, termios.TCSANOW, attributes)


def spawn(*args) -> pexpect.spawn:
    """Run detsd in a new terminal; its output is kept in `.logfile_read`."""
    start, *rest = command(*args)
    session = pexpect.spawn(
        start, rest, cwd=ROOT, timeout=240, encoding="utf-8", dimensions=(40, 100),
        preexec_fn=set_terminal,
    )  # fmt: skip
    session.logfile_read = io.StringIO()
    return session


@pytest.mark.slow
def test_a_session_of_fine_tuning(experiment, tmp_path):
    """Lines and bars stay separate up to the response to Ctrl-C, which is immediate."""
    change = {"num_sgd_steps": 40_000, "checkpoint_freq": 20}
    path = experiment(training=change, inference=SAMPLES)
    session = spawn("finetune", path, "--output-dir", tmp_path / "out")
    session.expect("loading the libraries")
    session.expect(r"loading \S+ \.\.\.")
    session.expect(r"step 40  val_loss[^\n]*\n")  # the whole line, since the terminal shows ^C
    session.sendintr()
    session.expect("stopping: storing what has been made")
    session.expect("the same command continues from here")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 130
    lines = screen(session.logfile_read.getvalue())
    told = [line for line in lines if "val_loss" in line]
    assert len(told) >= 2
    for line in told:
        assert re.fullmatch(r"step \d+  val_loss \d\.\d{4}  \(initializer \d\.\d{4}\)", line)
    (bar,) = [line for line in lines if "steps [" in line]
    assert BAR.fullmatch(bar)
    assert re.search(r"/40000 steps \[", bar)
    assert len(list(tmp_path.glob("out/checkpoints/step-*"))) >= 2


def test_a_line_of_somebody_else_takes_the_place_of_the_next(capsys, monkeypatch):
    """It also has the time left, even during a unit; a note comes between."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Bar({"steps": Phase(1, 20)}, "0/20 steps") as bar:
        bar.line("0/20 steps, nothing seen")
        for k in range(12):
            now[0] += 3
            bar.done("steps")
            if k == 2:
                bar.line("3/20 steps, loss 0.5")
            if k == 7:
                bar.draw(note="validating")
        bar.draw(note="")
        now[0] += 4
        bar.line("a line while a unit is being made")
        now[0] += 99
        bar.line("a slow one")
    assert capsys.readouterr().out.splitlines() == [
        "0/20 steps, nothing seen",
        "3/20 steps, loss 0.5, 00:51 left",
        "0/20 steps, 00:39 left",
        "0/20 steps, validating, 00:27 left",
        "a line while a unit is being made, 00:20 left",
        "a slow one, 00:00 left",
    ]


def test_a_grid_off_a_terminal_has_rate_and_time_left(tiny_model, tmp_path, monkeypatch, capsys):
    """This includes lines during a batch; once there are images, every line has their rate."""
    monkeypatch.setattr(progress, "LINE", 0)
    grid = {"prompts": "a ball", "num_inference_steps": 4, "num_seeds": 6}
    given = {"model": {"pretrained_model_name_or_path": str(tiny_model)}, "grid": grid}
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"hyperparameters": given | {"output": {"batch_size": 2}}}))
    assert main(["generate", str(path), "--output-dir", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    told = [line for line in out.splitlines() if re.match(r"\d+/6 images", line)]
    told = [line for line in told if line != "0/6 images"]  # before the first step
    within = [line for line in told if line.startswith("0/6")]
    assert len(within) >= 3  # a line per step
    for line in within:
        assert re.fullmatch(rf"0/6 images, {CLOCK} left", line)
    *between, last = told[len(within) :]
    for line in between:
        assert re.fullmatch(rf"[24]/6 images, \d+\.\d\d images/s, {CLOCK} left", line)
    assert re.fullmatch(r"6/6 images, \d+\.\d\d images/s", last)
    assert "0.00 images/s" not in out


@pytest.mark.slow
def test_a_session_of_a_grid(tiny_model, tmp_path):
    """The bar moves by denoising steps within the one batch; Ctrl-C before the first image."""
    path = tmp_path / "grid.yaml"
    grid = {
        "prompts": "a ball",
        "num_inference_steps": 60,
        "num_seeds": 4,
        "scheduler_names": "ddim",
    }
    given = {"model": {"pretrained_model_name_or_path": str(tiny_model)}, "grid": grid}
    path.write_text(yaml.safe_dump({"hyperparameters": given}))
    with terminal() as there:
        assert main(["generate", str(path), "--output-dir", str(tmp_path / "out")]) == 0
    sent = there.getvalue()
    moments = {int(p) for p in re.findall(r"(\d+)%\|[^\r]*?0/4 images", sent)}
    assert len(moments - {0, 100}) >= 2, sent
    assert "0.00 images/s" not in sent
    session = spawn("generate", path, "--output-dir", tmp_path / "other")
    session.expect("loading the libraries")
    session.sendintr()
    session.expect("stopped")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 130
    assert "Traceback" not in session.logfile_read.getvalue()
    assert not (tmp_path / "other").exists()
