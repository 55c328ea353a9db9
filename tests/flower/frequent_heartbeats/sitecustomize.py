"""On the path of a federation's processes: a SuperNode calls every 10 s, as often as a SuperLink allows, not every 30.

The SuperLink notices a killed node after two missing calls, so a test waits for that 20 s and not a minute.
Flower has no option for it.
"""

import sys
from pathlib import Path

if Path((sys.orig_argv[1:] or [""])[0]).name == "flower-supernode":
    from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
    from flwr.supercore import heartbeat
    from flwr.supernode import fleet_http_connection

    for module in (heartbeat, fleet_http_connection):
        module.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT_MIN_INTERVAL
