"""``nibblectl``: the operator's command. Makes keys, signs manifests, sends commands, shows what becomes of them.

What it ends with stands in `agent.exits`.
"""

from __future__ import annotations

from typing import Any

import click

import agent
from agent import exits
from agent.fleet import doctor_cli, fleet_cli, infer_cli, operations_cli, report_cli, trail_cli, trust_cli
from agent.fleet.bridge.cli import bridge
from agent.fleet.desired_cli import desired
from agent.fleet.options import Program, before_the_command, target_of
from agent.fleet.rollout.cli import rollout
from agent.fleet.sealing import sign_command


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "NIBBLECTL"},
)
@click.version_option(agent.__version__, prog_name="nibblectl")
@before_the_command
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Drive nibbled devices over MQTT.

    These options stand before the command, --device, --json, --wait and --no-wait also behind it. Each can be set as
    NIBBLECTL_<OPTION>, such as NIBBLECTL_DEVICE, or by a profile. keygen, sign, sign-command, verify and inspect need
    no broker.
    """
    context.obj = target_of(options)


for _command in (
    *(fleet_cli.devices, fleet_cli.show, report_cli.report),
    *(operations_cli.deploy, operations_cli.set_method, operations_cli.rollback, operations_cli.undeploy),
    *(operations_cli.compare, operations_cli.replan, operations_cli.self_test, operations_cli.cancel),
    *(operations_cli.follow, operations_cli.config, operations_cli.set_config),
    *(trail_cli.events, trail_cli.logs, infer_cli.infer, doctor_cli.doctor),
    *(trust_cli.keygen, trust_cli.sign, trust_cli.verify, trust_cli.inspect, sign_command),
    *(rollout, bridge, desired),
):
    main.add_command(_command)
main.add_command(fleet_cli.show, "status")
exits.explain(main, "nibblectl")


if __name__ == "__main__":
    main()
