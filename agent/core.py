"""What decides on a device, put together from the ports that it is given.

The supervisor gives it the real ones; tests and simulated fleets give it fakes, and have the same device otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.deployment.answering import Answering
from agent.deployment.engine import Engine
from agent.deployment.foresight import Foresight
from agent.deployment.groups import Groups
from agent.deployment.guard import MemoryGuard
from agent.deployment.hearing import QUIET_S, Hearing
from agent.deployment.inbox import Fallen
from agent.deployment.intake import Intake
from agent.deployment.keeper import Keeper
from agent.deployment.lookout import Lookout
from agent.deployment.losses import Losses
from agent.deployment.planner import Planner
from agent.deployment.pursuit import Pursuit
from agent.deployment.reporting import Reporting
from agent.deployment.signed import SignedMessages
from agent.deployment.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.contract.manifest import Identity
    from agent.contract.topics import Topics
    from agent.deployment.models import Served
    from agent.deployment.ports import Journal, Logs, Ports, Signatures, Transport
    from agent.deployment.runner import Runner
    from agent.live import LiveSettings
    from agent.planning.plan import Policy

JsonObject = dict[str, Any]


class Core:
    """The engine with what it goes by. It starts no thread.

    Args:
        live: the settings in force.
        ports: what steps work with.
        journal, transport, signatures, logs: as `agent.deployment.ports` has them.
        runner: where work is done that leaves the server alone.
        server_runner: where the work is done that speaks to it.
        topics: this device's topics.
        identity: who it is for the audience of a manifest.
        boot_id, agent: for reports.
        model_types: what a deploy may name as its model's type.
        policy: returns how freely methods may be chosen, as configured now.
        facts: returns ``memory``, ``trust`` and ``capabilities`` of the device, for reports.
        on_serving: called when what answers may have changed, from any thread.
        on_status: called when health is to be told now.
        quiet_s: see `agent.deployment.hearing`.
    """

    def __init__(
        self,
        live: LiveSettings,
        ports: Ports,
        *,
        journal: Journal,
        transport: Transport,
        signatures: Signatures,
        logs: Logs,
        runner: Runner,
        server_runner: Runner,
        topics: Topics,
        identity: Identity,
        boot_id: str,
        agent: str,
        model_types: frozenset[str],
        policy: Callable[[], Policy],
        facts: Callable[[], JsonObject],
        on_serving: Callable[[], None] = lambda: None,
        on_status: Callable[[], None] = lambda: None,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._live = live
        self._journal = journal
        self._transport = transport
        self._facts = facts
        clock, settings = ports.clock, live.current
        planner = Planner(ports, policy)
        self.guard = MemoryGuard(Foresight(planner).would_choose, live.watch_policy, on_alarm=on_status)
        self.keeper = Keeper(
            journal,
            ports.server,
            ports.store,
            runner,
            server_runner,
            on_change=on_serving,
            on_fallen=lambda: self.engine.post(Fallen()),
        )
        self.reporting = Reporting(
            topics, clock, boot_id=boot_id, agent=agent, facts=self._told, selected=self.keeper.selected
        )
        self.losses = Losses(journal, self.reporting, transport, clock)
        needs_signature = settings.trust.require_command_signature
        signed = SignedMessages(signatures, clock, identity.device, is_required=needs_signature)
        groups = Groups(
            settings.mqtt.groups,
            identity.device,
            journal,
            self.reporting,
            signed=signed,
            clock=clock,
            hearing=Hearing(lambda: transport.connection, quiet_s),
        )
        self.pursuit = Pursuit(journal, live, self.reporting, signed, groups)
        self.engine = Engine(
            journal=journal,
            transport=transport,
            intake=Intake(
                journal,
                signatures,
                clock,
                identity,
                live,
                signed=signed,
                require_signature=settings.trust.require_signature,
                model_types=model_types,
                generation=lambda: self.pursuit.generation,
            ),
            answering=Answering(journal, self.reporting, live, logs, clock, on_status=on_status),
            pursuit=self.pursuit,
            guard=self.guard,
            steps=lambda: Steps(ports, planner, soak_s=live.current.deployment.soak_s),
            runner=runner,
            server_runner=server_runner,
            reporting=self.reporting,
            keeper=self.keeper,
            losses=self.losses,
            clock=clock,
            total_s=lambda: live.current.deployment.total_s,
        )
        self.lookout = Lookout(
            ports.device,
            clock,
            interval_s=lambda: live.current.watch.interval_s,
            is_wanted=lambda: live.current.watch.mode != "off",
            post=self.engine.post,
        )

    def health(self, *, alarms: Sequence[str], server_starts: int) -> JsonObject:
        """Return what health tells of what is decided.

        Args:
            alarms: those of others, a sentence each.
            server_starts: how often the server was started.
        """
        operations = self.engine.open_operations
        return {
            **self.keeper.facts(),
            "alarms": [*self.keeper.alarms, *self.guard.alarms, *alarms],
            "served": list(self._journal.served()),
            "operations": [{"id": each.id, "state": str(each.state), "phase": str(each.phase)} for each in operations],
            "server_starts": server_starts,
            "broker_connected": self._transport.is_connected,
        }

    def _told(self, served: Mapping[str, Served]) -> JsonObject:
        return {**self._facts(), "config": self._live.overrides(), **self.pursuit.facts(served)}
