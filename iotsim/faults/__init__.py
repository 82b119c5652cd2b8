"""What can be broken on purpose: on values, on the device, on the link.

On values
    `outlier`, `data_corruption`, `stuck`, `drift`, `noise`, `offset`, `dropout`, `battery_drain`
On the device
    `clock_drift`, `reboot`, `firmware_update`, `rate`, `slow_down`, `suspend`
On the link
    `disconnect`, `packet_loss` (also `network_degradation`), `latency_spike`, `duplicate`,
    `reorder`, `reconnect_storm`
"""
