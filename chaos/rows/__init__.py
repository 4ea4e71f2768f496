"""Every row of the catalogue, by name; which of them a run takes, in which order, is the seed's."""

from chaos.row import Row
from chaos.rows.broker import BROKER_ROWS
from chaos.rows.database import DATABASE_ROWS
from chaos.rows.gateway import GATEWAY_ROWS
from chaos.rows.machine import MACHINE_ROWS
from chaos.rows.messages import MESSAGE_ROWS
from chaos.rows.moments import MOMENT_ROWS
from chaos.rows.network import NETWORK_ROWS
from chaos.rows.processes import PROCESS_ROWS

ROWS: tuple[Row, ...] = (
    *PROCESS_ROWS,
    *BROKER_ROWS,
    *DATABASE_ROWS,
    *GATEWAY_ROWS,
    *NETWORK_ROWS,
    *MESSAGE_ROWS,
    *MOMENT_ROWS,
    *MACHINE_ROWS,
)
