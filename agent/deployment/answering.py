"""What is committed and told when a command was judged, and what a command does that is done at once.

The engine keeps what is open and begins it; here a verdict becomes a record with its reports, in one transaction,
before the broker hears that the device has the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from agent.contract.commands import CollectLogs, SetConfig, Status
from agent.deployment.facts import concluded, config_changes
from agent.deployment.intake import Accepted, Answered, Repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.contract.reports import Report
    from agent.deployment.intake import CommandMessage, Verdict
    from agent.deployment.machine import Operation
    from agent.deployment.ports import Clock, Configuration, Journal, Logs
    from agent.deployment.reporting import Reporting

log = structlog.get_logger("engine")


class Answering:
    """Answers commands.

    Args:
        journal: keeps records and reports.
        reporting: builds what is published.
        config: the settings that a command may change.
        logs: what ``collect_logs`` asks for.
        clock: for the time of an end.
        on_status: called when health is to be told now, too.
    """

    def __init__(
        self,
        journal: Journal,
        reporting: Reporting,
        config: Configuration,
        logs: Logs,
        clock: Clock,
        *,
        on_status: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._reporting = reporting
        self._config = config
        self._logs = logs
        self._clock = clock
        self._on_status = on_status

    def commit(self, message: CommandMessage, verdict: Verdict) -> None:
        """Commit what became of ``message`` with its reports."""
        reporting = self._reporting
        if isinstance(verdict, Accepted):
            operation = verdict.operation
            self._journal.save(operation, reporting.accepted(operation), sequence=verdict.sequence)
        elif isinstance(verdict, Answered):
            answered = concluded(verdict.operation, reporting.selected(self._journal.served()), self._clock.now())
            config = {key: change["new"] for key, change in config_changes(answered).items()}
            told = [*reporting.answered(answered), *self._collected(verdict)]
            self._journal.save(answered, told, config=config)
        elif isinstance(verdict, Repeated):
            self._journal.queue(reporting.repeated(verdict))
        else:
            self._journal.queue(reporting.refused(message, verdict.refusal))

    def carry_out(self, verdict: Answered) -> None:
        """Do what ``set_config`` and ``status`` ask for; the reports wait in the outbox afterwards."""
        if isinstance(verdict.command, (SetConfig, Status)):
            self._config.apply(config_changes(verdict.operation))
            self.tell_everything()

    def tell_everything(self, open_operations: Sequence[Operation] = ()) -> None:
        """Tell what a broker that forgot everything, or somebody who asks, has to be told of the device."""
        self._journal.queue(self._reporting.everything(self._journal.served()))
        for operation in open_operations:
            self._journal.queue(self._reporting.operation(operation))
        self._on_status()

    def tell_server_lost(self, detail: str, mode: str) -> None:
        """Tell that the server ended by itself, and what is served from now on."""
        log.error("server_lost", detail=detail, mode=mode)
        told = self._reporting.event("server_lost", detail=detail, mode=mode)
        self._journal.queue([told, *self._reporting.reported(self._journal.served())])

    def _collected(self, verdict: Answered) -> list[Report]:
        """Return the log's entries, if that is what was asked for."""
        command = verdict.command
        if not isinstance(command, CollectLogs):
            return []
        entries, is_cut = self._logs.recent(command.since, command.max_bytes)
        return self._reporting.logs(verdict.operation, entries, is_cut=is_cut)
