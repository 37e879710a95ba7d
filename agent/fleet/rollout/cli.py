"""``nibblectl rollout``: carry out a plan, agree to its waves, stop it, and say what became of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.adapters.mqtt_operator import RefusedMessageError
from agent.exits import DONE, FAILED, INTERRUPTED, WAITS_FOR_A_PERSON
from agent.fleet.rollout import commands, page, report, running
from agent.fleet.rollout.journal import Journal, JournalError
from agent.fleet.rollout.link import Link
from agent.fleet.rollout.membership import members
from agent.fleet.rollout.person import Person
from agent.fleet.rollout.plan import PlanError, load
from agent.fleet.rollout.state import Status
from agent.fleet.rows import number_of
from agent.fleet.sealing import sealer
from agent.fleet.target import UNREACHABLE, fail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.fleet.rollout.membership import Membership
    from agent.fleet.rollout.plan import Plan
    from agent.fleet.rollout.state import Rollout
    from agent.fleet.rollout.timeline import Entry
    from agent.fleet.target import Target

_REFUSED = "who was not sent anything counts as not begun with; nibblectl doctor says what the login may do"
_ANY = "d" * 64
_STATUS = {Status.FINISHED: DONE, Status.ABORTED: FAILED}
_PLAN = click.argument("plan", metavar="PLAN.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
_STATE_DIR = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where rollouts are recorded; default: $XDG_STATE_HOME/nibbled/rollouts.",
)
_HTML = click.option(
    "--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the report there."
)


class _Group(click.Group):
    """A group whose first command may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` before a plan."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Group,
    short_help="Change a fleet in waves, as PLAN.toml says.",
)
def rollout() -> None:
    """Change a fleet in waves: nibblectl rollout PLAN.toml.

    Run again, it goes on where it stopped, also on another machine: devices run each command once.
    """


@rollout.command()
@_PLAN
@_STATE_DIR
@click.option("--dry-run", is_flag=True, help="Print the waves and who is in them; send nothing.")
@click.option(
    "--approve", "approved", multiple=True, metavar="WAVE", help="Agree to a wave in advance; may be repeated."
)
@click.option("--approve-all", is_flag=True, help="Agree to every wave in advance.")
@click.option("--forget", is_flag=True, help="Begin without the record of this machine; the broker is asked instead.")
@_HTML
@click.pass_obj
def run(target: Target, /, plan: Path, state_dir: Path | None, **options: Any) -> None:
    """Carry out PLAN.toml, from where it stands.

    A wave that needs approval is asked for on a terminal, and waits for nibblectl rollout approve elsewhere; with
    --no-wait the program ends instead, with status 3, once nothing can happen without a person.
    """
    loaded = _load(plan)
    journal = Journal(_directory(state_dir, loaded), loaded)
    seal = sealer(target)
    seal(_ANY, *commands.command(loaded, _ANY))  # a key that cannot be used ends it here, before anything is sent
    with target.connection() as messages:
        link = Link(loaded, messages, target.prefix, seal)
        with messages.hear(*link.filters) as inbox:
            try:
                retained = running.gather(inbox)
                if options["dry_run"]:
                    link.words(retained)
                    recorded = None if options["forget"] else journal.membership()
                    _print_waves(target, loaded, recorded or members(loaded, link.known))
                    return
                journal.lock()
                if options["forget"]:
                    journal.forget()
                agreed = _waves(loaded, options["approved"], everything=options["approve_all"])
                runner = running.Runner(
                    loaded, journal, link, tell=_teller(target), ask=Person(loaded, plan, agreed).ask
                )
                found = runner.start(retained)
                _warn(loaded, found)
                _end(target, loaded, journal, runner.run(inbox, waits=target.wait_s > 0), options["html_file"])
            except JournalError as error:
                fail(str(error), 2)
            except RefusedMessageError as error:
                fail(f"{error}\n  {_REFUSED}; go on: nibblectl rollout {plan}", UNREACHABLE)
            except KeyboardInterrupt:
                fail(f"devices in flight go on without being watched\n  go on: nibblectl rollout {plan}", INTERRUPTED)
            finally:
                journal.close()


def _request(what: str, help_: str) -> None:
    @rollout.command(what, help=help_)
    @_PLAN
    @_STATE_DIR
    @click.pass_obj
    def request(target: Target, plan: Path, state_dir: Path | None) -> None:
        _ask(target, plan, state_dir, what)


_request("pause", "Begin with no more devices until it is resumed; those in flight go on.")
_request("resume", "Go on from a pause: the failures up to now do not count again.")
_request("abort", "Stop PLAN.toml, and take back what was changed if it says so.")


@rollout.command()
@_PLAN
@_STATE_DIR
@click.option("--wave", required=True, help="The wave that may begin.")
@click.pass_obj
def approve(target: Target, plan: Path, state_dir: Path | None, wave: str) -> None:
    """Agree to a wave of PLAN.toml; also of one that runs in another terminal."""
    _ask(target, plan, state_dir, "approve", wave)


@rollout.command("report")
@_PLAN
@_STATE_DIR
@_HTML
@click.pass_obj
def report_(target: Target, plan: Path, state_dir: Path | None, html_file: Path | None) -> None:
    """Say what became of PLAN.toml, from the record of this machine; also while it runs."""
    loaded = _load(plan)
    journal = Journal(_directory(state_dir, loaded), loaded)
    try:
        history = [*journal.history()]
    except JournalError as error:
        fail(str(error), 2)
    if not history:
        fail(f"no record of rollout {loaded.id} in {journal.directory}; run it: nibblectl rollout {plan}", 2)
    _print_report(target, loaded, journal, html_file)


def _load(file: Path) -> Plan:
    try:
        return load(file)
    except PlanError as error:
        fail(str(error), 2)


def records(environment: Mapping[str, str]) -> Path:
    """Return where rollouts are recorded, by the XDG base directory specification."""
    home = environment.get("XDG_STATE_HOME") or Path(environment.get("HOME", "~")) / ".local" / "state"
    return Path(home).expanduser() / "nibbled" / "rollouts"


def _directory(given: Path | None, plan: Plan) -> Path:
    return (given or records(os.environ)) / plan.id


def _waves(plan: Plan, names: tuple[str, ...], *, everything: bool) -> tuple[int, ...]:
    known = [wave.name for wave in plan.waves]
    for name in names:
        if name not in known:
            fail(f"no wave {name!r} in the plan; there: {', '.join(known)}", 2)
    return tuple(range(len(known))) if everything else tuple(known.index(name) for name in names)


def _ask(target: Target, file: Path, state_dir: Path | None, what: str, wave: str | None = None) -> None:
    """Leave a request for the program that runs the rollout, unless that is over."""
    plan = _load(file)
    index = None if wave is None else _waves(plan, (wave,), everything=False)[0]
    journal = Journal(_directory(state_dir, plan), plan)
    if not journal.exists:
        fail(f"no record of rollout {plan.id} in {journal.directory}: was it begun on this machine?", 2)
    standing = _too_late(journal, what)
    if standing is not None:
        status, at = standing
        text = f"rollout {plan.id} is {status} since {report.moment(at)}, there is nothing left to {what}"
        fail(f"{text}\n  what became of it: nibblectl rollout report {file}", 2)
    journal.ask(what, index)
    if target.as_json:
        click.echo(json.dumps({"rollout": plan.id, "asked": what, **({} if wave is None else {"wave": wave})}))
    else:
        click.echo(f"{what}: taken up by the program that runs {plan.id}, now or when it is run again")


def _too_late(journal: Journal, what: str) -> tuple[Status, float] | None:
    """Return where a rollout stands, and since when in seconds since 1970, if nothing would come of a request."""
    standing: tuple[Status, float] | None = None
    try:
        for at, state in journal.history():
            if standing is None or standing[0] is not state.status:
                standing = state.status, at
    except JournalError:
        return None  # its plan was edited since: whoever runs the one from before has to be stopped all the same
    # What is being aborted goes on to its end, whatever is asked for.
    too_late = standing is not None and (standing[0].is_over or (standing[0] is Status.ABORTING and what != "abort"))
    return standing if too_late else None


def _teller(target: Target) -> Any:
    def tell(entry: Entry) -> None:
        at = report.moment(entry.at)
        click.echo(json.dumps({**entry.body(), "at": at}) if target.as_json else f"{at} {entry.text}")

    return tell


def _print_waves(target: Target, plan: Plan, found: Membership) -> None:
    if target.as_json:
        waves = [{"name": wave.name, "devices": ids} for wave, ids in zip(plan.waves, found.waves, strict=True)]
        more = {"left_out": found.left_out, "strangers": found.strangers, "outside": found.outside}
        click.echo(json.dumps({"rollout": plan.id, "waves": waves, **more}))
        return
    for wave, ids in zip(plan.waves, found.waves, strict=True):
        approval = ", after approval" if wave.approval else ""
        click.echo(f"wave {wave.name}: {number_of(len(ids), 'device')}{approval}")
        for device in ids:
            click.echo(f"  {device}")
    if found.left_out:
        click.echo(f"in no wave: {', '.join(found.left_out)}")
    _warn(plan, found)


def _warn(plan: Plan, found: Membership) -> None:
    if not any(found.waves):
        fail(f"no device takes part in {plan.id}: are [devices], the waves, --host and --prefix right?", 2)
    for ids, what in ((found.strangers, "the broker does not know"), (found.outside, "[devices] leaves out")):
        if ids:
            click.echo(f"nibblectl: the plan names devices that {what}: {', '.join(ids)}", err=True)


def _end(target: Target, plan: Plan, journal: Journal, state: Rollout, html_file: Path | None) -> None:
    _print_report(target, plan, journal, html_file)
    sys.exit(_STATUS.get(state.status, WAITS_FOR_A_PERSON))


def _print_report(target: Target, plan: Plan, journal: Journal, html_file: Path | None) -> None:
    built = report.build(plan, journal.history())
    if html_file is not None:
        html_file.write_text(page.html(built), encoding="utf-8")
    click.echo(json.dumps({"report": built}) if target.as_json else "\n".join(report.lines(built)))


if __name__ == "__main__":
    rollout()
